"""What a stage leaves behind, as checksums that two runs must have in common; and what it must not leave behind."""

import hashlib
import json
import re
from pathlib import Path
from typing import Dict, List

import torch
from reliability.losses import MODELS

from i2srf_kd.system.files import is_temporary

#: Patterns, below the folder of a run, of the files that are the result of a stage.
RESULTS: Dict[int, List[str]] = {
    1: ["data/*/*"],
    2: ["dump/raw/*/audio/**/*", "dump/raw/*/*"],
    3: ["exp/stats/**/speech_shape", "exp/stats/**/utterances.tsv", "exp/stats/corpus_report.md"],
    **{
        number: [f"exp/{model}/{name}" for name in ("*epoch.pth", "*.ave.pth", "*.best.pth", "metrics.jsonl")]
        for number, model in MODELS.items()
    },
    6: [
        "exp/*/enhanced_test/wav/*", "exp/*/scored_test/scores.csv", "exp/*/scored_test/summary.json",
        "exp/RESULTS.md",
    ],
}  # fmt: skip

# Of one run alone: how long something took, when it was, what is kept of the run before.
_TIMES = re.compile(r"time|seconds|throughput|per_second|memory|_mb$|_gb$")
_OWN_NAMES = re.compile(
    r"exp/logs/.*\.(1|slurm/.*|finished)$|/tensorboard/|/journal\.|/checkpoint\.previous\.pth$|exp/logs/[^/]*\.log$"
)


def digests(folder: Path, stage: int) -> Dict[str, str]:
    """Checksum of each result of a stage by its name below ``folder``."""
    found = {}
    for pattern in RESULTS[stage]:
        for path in folder.glob(pattern):
            if path.is_file() and not path.name.startswith("."):
                found[str(path.relative_to(folder))] = hashlib.sha256(content(path)).hexdigest()
    return found


def content(path: Path) -> bytes:
    """What counts in a file: weights by name and bit, tables without the time they took, everything else as it is."""
    if path.suffix == ".pth":
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return b"".join(
            f"{name} {value.dtype} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes()
            for name, value in weights.items()
        )
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [{key: value for key, value in line.items() if not _TIMES.search(key)} for line in lines]
        return json.dumps(kept, sort_keys=True).encode()
    if path.name == "RESULTS.md":
        lines_of_table = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        return "\n".join(lines_of_table).encode()
    return path.read_bytes()


def differences(expected: Dict[str, str], actual: Dict[str, str]) -> List[str]:
    """Names whose contents differ, are missing or were not expected."""
    return sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))


def names(folder: Path) -> List[str]:
    """All files and links below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def left_behind(expected: Path, actual: Path) -> List[str]:
    """Files that an undisturbed run does not have, apart from logs and what is kept of the run before."""
    extra = set(names(actual)) - set(names(expected))
    return sorted(name for name in extra if is_temporary(name) or not _OWN_NAMES.search(name))
