"""Recipes hold configuration and corpus work; what two of them need lives in the package or in egs/TEMPLATE."""

from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest
from places import REPOSITORY

EGS = REPOSITORY / "egs"
RUN = 5  # so many lines in a row that are the same, comments and blank lines aside, are a copy


def code_lines(path: Path) -> List[str]:
    """Lines of a script without indentation, comments and blank lines."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def runs(lines: List[str]) -> Set[Tuple[str, ...]]:
    return {tuple(lines[i : i + RUN]) for i in range(len(lines) - RUN + 1)}


def scripts(recipe: Path) -> Iterator[Path]:
    """Own scripts: links to shared ones and what a run leaves behind are not."""
    for path in [*recipe.glob("*"), *recipe.glob("local/**/*")]:
        if path.suffix in (".sh", ".py") and not path.is_symlink():
            yield path


def shared_runs(folders: List[Path]) -> Dict[Tuple[str, str], int]:
    """Pairs of scripts of different folders that share runs of lines, and how many."""
    known = [(folder, path, runs(code_lines(path))) for folder in folders for path in scripts(folder)]
    found = {}
    for i, (folder, path, mine) in enumerate(known):
        for other_folder, other, theirs in known[i + 1 :]:
            if folder != other_folder and mine & theirs:
                found[str(path), str(other)] = len(mine & theirs)
    return found


def test_recipes_share_no_code_by_copy() -> None:
    recipes = [path for path in sorted(EGS.iterdir()) if (path / "run.sh").is_file() or path.name == "TEMPLATE"]
    assert {"TEMPLATE", "l3das23", "voicebank"} <= {path.name for path in recipes}
    assert shared_runs(recipes) == {}


@pytest.mark.parametrize("changed", ["", "  # a remark\n\n"])
def test_a_copy_is_noticed(tmp_path: Path, changed: str) -> None:
    body = "".join(f"step_{i} --option {i}\n{changed if i == 2 else ''}" for i in range(RUN))
    for name, first in (("a", "#!/bin/sh\n"), ("b", "#!/bin/bash\nset -eu\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.sh").write_text(first + body)
    assert list(shared_runs([tmp_path / "a", tmp_path / "b"]).values()) == [1]
