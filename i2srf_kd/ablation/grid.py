"""Grid files: which cells an ablation has, and what each of them trains.

    title: Does the weight matter?
    options: {teacher_config: conf/small/train_teacher.yaml}   # options of run.sh, for all cells
    seeds: [0, 1, 2]
    baseline: undistilled                                       # the cell without a teacher
    compare_with: [response]                                    # every cell is compared with these as well
    cells:
      undistilled: {distill: null}
      response: {distill: conf/distill/response_spectrum.yaml}
      time_only: {distill: conf/distill/i2srf_tfckd.yaml, overrides: {method_conf.calibration.frequency_stream: false}}
    cross:                                                      # one cell for every combination
      - name: "{method}-w{weight}"
        over: {method: [i2rf_tfckd, i2srf_tfckd], weight: [0.1, 1.0]}
        distill: conf/distill/{method}.yaml
        overrides: {weight: "{weight}"}

Paths are relative to the recipe's folder.
"""

import copy
import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from i2srf_kd.system.config import read_yaml, refuse_unknown
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.fingerprints import sha256_of
from i2srf_kd.system.user_modules import absolute_entries, module_files

#: Options of the pipeline that the ablation sets itself, and why they cannot be given.
RESERVED = {
    "stage": "the ablation chooses the stages",
    "stop_stage": "the ablation chooses the stages",
    "distill_config": "each cell has its own (distill:)",
    "student_tag": "each cell has its own folder",
    "baseline_tag": "the undistilled student is a cell",
    "with_baseline": "the undistilled student is a cell",
    "logdir": "each cell has its own folder",
    "score_systems": "the ablation chooses what is scored",
    "show_options": "give it to run.sh",
    "force": "remove the folder of a cell to train it again, or give the grid file another name",
    "cmd_backend": "give it on the command line, or set it in cmd.sh",
    "num_nodes": "a run uses one machine; train the teacher on several with run.sh --stop_stage 4",
    "submit": "give --cmd_backend slurm, and the runs become a job array",
    "status": "give --action list",
    "results_title": "the grid has a title",
}
_GRID_KEYS = ("title", "options", "seeds", "baseline", "compare_with", "cells", "cross")
_CELL_KEYS = ("distill", "overrides", "student_config", "student_args", "seeds")
_CROSS_KEYS = ("name", "over", *_CELL_KEYS)
_CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED_NAMES = ("logs", "noisy", "teacher")


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Args:
        name: also the name of its folder.
        distill: content of its distillation file, None for a student without a teacher.
        student_config: configuration of its student; None: that of the run.
        student_args: further options of its training.
        seeds: seeds it is trained with.
    """

    name: str
    distill: Optional[Dict[str, Any]]
    student_config: Optional[str]
    student_args: str
    seeds: Tuple[int, ...]

    def definition(self) -> Dict[str, Any]:
        """What tells its training from others; not its name and seeds."""
        own = {"distill": self.distill, "student_config": self.student_config, "student_args": self.student_args}
        imported = self._imported()
        return {**own, "imported": imported} if imported else own

    def _imported(self) -> Dict[str, str]:
        """Fingerprints of the files that the distillation imports: a method that is edited is another one."""
        return {str(path): sha256_of(path) for path in module_files((self.distill or {}).get("import"))}


@dataclass(frozen=True)
class Grid:
    """A grid file that has been read and checked.

    Args:
        path: the file; its stem names the grid's folder.
        title: of the table.
        options: options of ``run.sh`` for all cells.
        cells: in the order of the file, crossed ones last.
        baseline: name of the cell without a teacher.
        compare_with: names of further cells that every cell is compared with.
    """

    path: Path
    title: str
    options: Dict[str, str]
    cells: List[Cell]
    baseline: str
    compare_with: List[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the grid and of its folder."""
        return self.path.stem

    def select(self, cells: Sequence[str] = (), seeds: Sequence[int] = ()) -> "Grid":
        """The same grid with some cells and seeds alone; the baseline and ``compare_with`` stay named.

        Raises:
            UserError: a name is not in the grid.
        """
        known = [cell.name for cell in self.cells]
        for name in cells:
            if name not in known:
                raise UserError(f"--cells {name}: {self.path} has no such cell; it has {', '.join(known)}")
        chosen = [cell for cell in self.cells if not cells or cell.name in cells]
        absent = [seed for seed in seeds if not any(seed in cell.seeds for cell in chosen)]
        if absent:
            raise UserError(f"--seeds {' '.join(map(str, absent))}: no chosen cell of {self.path} has that seed")
        if seeds:
            chosen = [replace(cell, seeds=tuple(seed for seed in cell.seeds if seed in seeds)) for cell in chosen]
        return replace(self, cells=chosen)


def read_grid(path: PathLike, check: Optional[Callable[[Mapping[str, Any]], None]] = None) -> Grid:
    """Read a grid file.

    Args:
        path: the file.
        check: raises ValueError for a distillation that cannot be built; see
            :func:`i2srf_kd.ablation.check.check_distill`.

    Raises:
        UserError: names the file, the cell and what is wrong with it.
    """
    return _Reader(Path(path), check).read()


class _Reader:
    """Turns the content of a file into a :class:`Grid`."""

    def __init__(self, path: Path, check: Optional[Callable[[Mapping[str, Any]], None]]):
        self.path = path
        self.check = check
        self.cells: Dict[str, Cell] = {}

    def read(self) -> Grid:
        content = self._load(self.path)
        refuse_unknown(content, _GRID_KEYS, f"{self.path}: a grid")
        if not _CELL_NAME.fullmatch(self.path.stem):
            raise self._error("its name becomes a folder: use letters, digits and . _ + - in it")
        seeds = self._seeds(content.get("seeds", [0]), "seeds")
        cells = self._mapping(content.get("cells") or {}, "cells")
        for name, entry in cells.items():
            self._add(str(name), self._mapping(entry, f"cell {name}"), seeds)
        for entry in self._list(content.get("cross") or [], "cross"):
            self._cross(self._mapping(entry, "an entry of cross"), seeds)
        if not self.cells:
            raise self._error("it has no cells")
        self._no_twins()
        baseline, compare_with = self._references(content)
        options = {k: _word(v) for k, v in self._mapping(content.get("options") or {}, "options").items()}
        check_options(options, f"{self.path}: options")
        title = str(content.get("title") or self.path.stem)
        return Grid(self.path, title, options, list(self.cells.values()), baseline, compare_with)

    def _references(self, content: Mapping[str, Any]) -> Tuple[str, List[str]]:
        baseline = content.get("baseline")
        if baseline is None:
            raise self._error("name the cell without a teacher that the others are compared with (baseline: ...)")
        compare_with = [str(name) for name in self._list(content.get("compare_with") or [], "compare_with")]
        for key, name in [("baseline", baseline), *(("compare_with", name) for name in compare_with)]:
            if name not in self.cells:
                raise self._error(f"{key}: there is no cell {name!r}; there are {', '.join(self.cells)}")
        if self.cells[baseline].distill is not None:
            raise self._error(f"baseline: cell {baseline} has a teacher; the baseline needs distill: null")
        return baseline, [name for name in dict.fromkeys(compare_with) if name != baseline]

    def _cross(self, entry: Mapping[str, Any], seeds: Tuple[int, ...]) -> None:
        refuse_unknown(entry, _CROSS_KEYS, f"{self.path}: an entry of cross")
        if "name" not in entry or "over" not in entry:
            raise self._error("an entry of cross needs name, such as '{method}-w{weight}', and over, its lists")
        over = self._mapping(entry["over"], "over")
        choices = [self._choices(name, values) for name, values in over.items()]
        rest = {key: value for key, value in entry.items() if key not in ("name", "over")}
        for combination in itertools.product(*choices):
            labels = {name: label for name, (label, _) in zip(over, combination, strict=True)}
            values = {name: value for name, (_, value) in zip(over, combination, strict=True)}
            # In the name a value stands for itself by its label; elsewhere it keeps its type.
            self._add(self._fill(entry["name"], labels), self._fill(rest, values), seeds)

    def _choices(self, name: str, values: Any) -> List[Tuple[str, Any]]:
        """Labels and values of one crossed list, which may be given as a mapping of label to value."""
        if isinstance(values, dict) and values:
            return [(str(label), value) for label, value in values.items()]
        if isinstance(values, list) and values and not any(isinstance(v, (dict, list)) for v in values):
            return [(_word(value), value) for value in values]
        raise self._error(f"over: {name} needs a list such as [0.1, 1.0], or a mapping of label to value")

    def _fill(self, template: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(template, dict):
            return {self._fill(key, values): self._fill(value, values) for key, value in template.items()}
        if isinstance(template, list):
            return [self._fill(value, values) for value in template]
        if not isinstance(template, str):
            return template
        whole = re.fullmatch(r"\{(\w+)\}", template)
        if whole and whole.group(1) in values:
            return copy.deepcopy(values[whole.group(1)])

        def filled(match: "re.Match[str]") -> str:
            if match.group(1) not in values:
                raise self._error(f"{template!r}: over has no {match.group(1)}; it has {', '.join(values)}")
            return _word(values[match.group(1)])

        return re.sub(r"\{(\w+)\}", filled, template)

    def _add(self, name: str, entry: Mapping[str, Any], seeds: Tuple[int, ...]) -> None:
        if not _CELL_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            raise self._error(
                f"cell {name!r}: a name has letters, digits and . _ + -, and is none of noisy, teacher, logs"
            )
        if name in self.cells:
            raise self._error(f"cell {name} is there twice")
        refuse_unknown(entry, _CELL_KEYS, f"{self.path}: cell {name}")
        if "distill" not in entry:
            raise self._error(
                f"cell {name}: say what it distils (distill: a file, its content, or null for no teacher)"
            )
        student_config = entry.get("student_config")
        if student_config is not None and not Path(str(student_config)).is_file():
            raise self._error(f"cell {name}: student_config {student_config}: no such file")
        self.cells[name] = Cell(
            name=name,
            distill=self._distill(name, entry["distill"], self._mapping(entry.get("overrides") or {}, "overrides")),
            student_config=None if student_config is None else str(student_config),
            student_args=str(entry.get("student_args") or ""),
            seeds=self._seeds(entry["seeds"], f"cell {name}: seeds") if "seeds" in entry else seeds,
        )

    def _distill(self, name: str, source: Any, overrides: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
        if source is None:
            if overrides:
                raise self._error(f"cell {name}: overrides without distill: there is nothing to override")
            return None
        folder = Path.cwd()
        if isinstance(source, str):
            folder = Path(source).parent
            content = self._load(Path(source))
        else:
            content = self._mapping(source, f"cell {name}: distill")
        distill = copy.deepcopy(dict(content.get("distill", content)))
        try:
            for key, value in overrides.items():
                override(distill, str(key), value)
            if "import" in distill:  # the derived file lies in another folder
                distill["import"] = absolute_entries(distill["import"], [folder, Path.cwd()])
            if self.check:
                self.check(distill)
        except (ValueError, TypeError) as error:
            raise self._error(f"cell {name}: {error}") from None
        return distill

    def _no_twins(self) -> None:
        cells = list(self.cells.values())
        for first, second in itertools.combinations(cells, 2):
            if first.definition() == second.definition() and set(first.seeds) & set(second.seeds):
                raise self._error(f"cells {first.name} and {second.name} train the same: remove one of them")

    def _load(self, path: Path) -> Dict[str, Any]:
        return read_yaml(path, str(path) if path == self.path else f"{self.path}: {path}")

    def _mapping(self, value: Any, what: str) -> Dict[Any, Any]:
        if not isinstance(value, dict):
            raise self._error(f"{what} must hold 'key: value' pairs, not {value!r}")
        return value

    def _list(self, value: Any, what: str) -> List[Any]:
        if not isinstance(value, list):
            raise self._error(f"{what} must be a list, not {value!r}")
        return value

    def _seeds(self, value: Any, what: str) -> Tuple[int, ...]:
        seeds = self._list(value, what)
        whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
        if not seeds or not whole or len(set(seeds)) < len(seeds):
            raise self._error(f"{what} must be different whole numbers such as [0, 1, 2], not {value!r}")
        return tuple(seeds)

    def _error(self, text: str) -> UserError:
        return UserError(f"{self.path}: {text}")


def override(distill: Dict[str, Any], key: str, value: Any) -> None:
    """Set one option of a distillation in place.

    Args:
        distill: content of a distillation file.
        key: dotted, such as ``method_conf.calibration.time_stream``; a number counts into a list (``method.0.weight``).
        value: what to set.

    Raises:
        ValueError: the key runs through something that has no options.
    """
    *path, last = key.split(".")
    place: Any = distill
    for word in path:
        if isinstance(place, dict):
            if place.get(word) is None:
                place[word] = {}
            place = place[word]
        else:
            place = _item(place, word, key)
    if isinstance(place, dict):
        place[last] = value
    else:
        _item(place, last, key)
        place[int(last)] = value


def _item(place: Any, word: str, key: str) -> Any:
    if not isinstance(place, list):
        raise ValueError(f"overrides: {key}: {place!r} has no {word}")
    if not word.isdigit() or int(word) >= len(place):
        raise ValueError(f"overrides: {key}: {word} does not count into a list of {len(place)}")
    return place[int(word)]


def check_options(options: Mapping[str, str], source: str) -> None:
    """Refuse options of the pipeline that the ablation sets itself.

    Raises:
        UserError: names the option; ``source`` says where it was given.
    """
    for name in options:
        if name in RESERVED:
            raise UserError(f"{source}: {name} cannot be given: {RESERVED[name]}")


def _word(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
