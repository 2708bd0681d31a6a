"""What a report is about: systems with their trainings, scores and audio, read from an ablation or from experiments.

An ablation is the table that :mod:`i2srf_kd.ablation.collect` writes (``results_<set>.json``; its docstring has the
layout). Experiment folders are put into the same form: each is a system, those called ``<name>_seed<number>`` are the
seeds of one.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

from i2srf_kd.results.comparison import difference, means
from i2srf_kd.results.files import read_json
from i2srf_kd.results.model import METRICS_LOG, MIXTURE, TEACHER, Run, System, metrics_of
from i2srf_kd.results.scores import LEVEL
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike


@dataclass
class Study:
    """Everything that a report shows."""

    title: str
    test_set: str
    systems: List[System]
    baseline: Optional[str]
    mixture_scp: Optional[Path] = None
    reference_scp: Optional[Path] = None
    command: str = ""
    environment: Dict[str, Any] = field(default_factory=dict)
    interval: str = ""
    is_validation: bool = False
    source: Path = Path(".")

    @property
    def metrics(self) -> List[str]:
        """Metrics that any system has, in the order of the columns."""
        return metrics_of(self.systems)

    @property
    def pesq(self) -> str:
        """The PESQ that systems are ranked by: WB-PESQ, or NB-PESQ where the audio has no wide band."""
        return "pesq_nb" if "pesq_wb" not in self.metrics and "pesq_nb" in self.metrics else "pesq_wb"

    @property
    def cells(self) -> List[System]:
        """The students."""
        return [system for system in self.systems if system.name not in (MIXTURE, TEACHER)]

    def system(self, name: Optional[str]) -> Optional[System]:
        """The system of that name, if there is one."""
        return next((system for system in self.systems if system.name == name), None)


def read_study(paths: Sequence[PathLike], test_set: Optional[str] = None, title: Optional[str] = None) -> Study:
    """Read an ablation's folder or table, or experiment folders, or a folder of experiments.

    Args:
        paths: one ablation, or any number of experiments.
        test_set: which test set, where there are several.
        title: of the report.

    Raises:
        UserError: nothing to report on, or not clear what.
    """
    folders = [Path(path) for path in paths]
    for folder in folders:
        if not folder.exists():
            raise UserError(f"{folder}: no such folder")
    table = _table_of(folders[0], test_set) if len(folders) == 1 else None
    return read_ablation(table, title) if table is not None else read_experiments(folders, test_set, title)


def _table_of(path: Path, test_set: Optional[str]) -> Optional[Path]:
    """The table of an ablation; None for other folders."""
    if path.is_file():
        return path
    tables = {file.stem[len("results_") :]: file for file in sorted(path.glob("results_*.json"))}
    tables = {name: file for name, file in tables.items() if "cells" in read_json(file)}
    if not tables:
        return None
    return tables[_choose(tables, test_set, str(path))]


def _choose(sets: Iterable[str], wanted: Optional[str], where: str) -> str:
    names = sorted(sets)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    if wanted is None and "test" in names:
        return "test"
    asked = "which test set?" if wanted is None else f"no test set {wanted}:"
    raise UserError(f"{where}: {asked} give --set with one of {', '.join(names)}")


# Ablations ------------------------------------------------------------------------------------------------------------


def read_ablation(path: PathLike, title: Optional[str] = None) -> Study:
    """Read the table of an ablation.

    Raises:
        UserError: it is not one, or of a newer format.
    """
    path = Path(path)
    content = read_json(path)
    if content.get("format") != 1 or "cells" not in content:
        raise UserError(f"{path}: not a table of an ablation that this version can read; collect it again")
    try:
        return _ablation(path, content, title)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a complete table of an ablation ({error!r}); collect it again") from None


def _ablation(path: Path, content: Mapping[str, Any], title: Optional[str]) -> Study:
    def at(name: Optional[str]) -> Optional[Path]:
        return None if name is None else path.parent / name

    def run(entry: Mapping[str, Any]) -> Run:
        experiment, scored, audio = (at(entry.get(key)) for key in ("experiment", "scored", "audio_scp"))
        return Run(entry.get("seed"), experiment, scored, audio, entry.get("state", "finished"))

    noisy, teacher = content["noisy"], content.get("teacher")
    systems = [System(MIXTURE, [run(noisy)], noisy["metrics"] or {})]
    if teacher:
        systems.append(System(TEACHER, [run(teacher)], teacher["metrics"] or {}, complexity=teacher.get("complexity")))
    for cell in content["cells"]:
        systems.append(
            System(
                cell["name"],
                [run(seed) for seed in cell["seeds"]],
                cell["metrics"] or {},
                cell.get("differences") or {},
                cell.get("gap_closed") or {},
                bool(cell.get("distill")),
                cell.get("relative_cost"),
                cell.get("complexity"),
            )
        )
    interval = content.get("interval") or {}
    return Study(
        title or content.get("title") or path.parent.name,
        content.get("set", ""),
        systems,
        content.get("baseline"),
        at(noisy.get("audio_scp")),
        at(noisy.get("reference_scp")),
        content.get("command") or "",
        content.get("environment") or {},
        f"{100 * interval.get('level', LEVEL):g} % interval, {interval.get('method', 'bootstrap')}",
        bool(content.get("is_validation")),
        path,
    )


# Experiments ----------------------------------------------------------------------------------------------------------


def read_experiments(paths: Sequence[Path], test_set: Optional[str] = None, title: Optional[str] = None) -> Study:
    """Read experiment folders, or all of a folder of experiments; a student brings its teacher and the mixtures along.

    Raises:
        UserError: there is no experiment, or two share a name.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in _experiments_in(path)}.values())
    found = {name for folder in folders for name in _sets_scored(folder)}
    chosen = _choose(found, test_set, ", ".join(map(str, paths))) if found or test_set else ""
    runs = [_run_of(folder, chosen) for folder in folders]
    teacher = next((t for t in (_teacher_of(run, folders) for run in runs) if t is not None), None)
    if teacher is not None and teacher not in folders:
        runs.append(_run_of(teacher, chosen))
    groups: Dict[str, List[Run]] = {}
    for run in runs:
        assert run.experiment is not None
        groups.setdefault(TEACHER if run.experiment == teacher else _system_name(run.experiment), []).append(run)
    systems = [_system(name, group) for name, group in groups.items()]
    noisy = folders[0].parent / MIXTURE / f"scored_{chosen}"
    systems.append(System(MIXTURE, [Run(scored=noisy)] if noisy.is_dir() else []))
    order = {MIXTURE: 0, TEACHER: 1}
    systems.sort(key=lambda system: (order.get(system.name, 2), system.distilled, system.name))
    systems = [system for system in systems if system.runs]
    plain = [system for system in systems if system.name not in order and not system.distilled]
    baseline = plain[0] if plain else None
    _score(systems, baseline)
    data_dir = _data_dir(runs, chosen)
    table = _pipeline_results(folders[0].parent, chosen)
    return Study(
        title or table.get("title") or (paths[0].resolve().name if len(paths) == 1 else "Experiments"),
        chosen,
        systems,
        baseline.name if baseline is not None else None,
        data_dir / "wav.scp" if data_dir else None,
        data_dir / "spk1.scp" if data_dir else None,
        "\n".join(table.get("commands") or []),
        table.get("environment") or {},
        f"{100 * LEVEL:g} % interval, percentile bootstrap over utterances and seeds, deviations of the seeds widened "
        "for their small number",
        source=paths[0],
    )


def _pipeline_results(folder: Path, test_set: str) -> Dict[str, Any]:
    """What the pipeline has written beside its table, if it got that far."""
    files = [folder / f"results_{test_set}.json", folder / "results.json"]
    return next((read_json(file) for file in files if file.is_file()), {})


def _experiments_in(path: Path) -> List[Path]:
    if (path / METRICS_LOG).is_file():
        return [path]
    inside = sorted(log.parent for log in path.glob(f"*/{METRICS_LOG}") if ".bak-" not in log.parent.name)
    if not inside:
        raise UserError(f"{path}: neither an ablation nor an experiment: no results_<set>.json, no {METRICS_LOG}")
    return inside


def _sets_scored(folder: Path) -> List[str]:
    return [file.parent.name[len("scored_") :] for file in folder.glob("scored_*/scores.csv")]


def _run_of(folder: Path, test_set: str) -> Run:
    scored, audio = folder / f"scored_{test_set}", folder / f"enhanced_{test_set}" / "spk1.scp"
    run = Run(None, folder, scored if scored.is_dir() else None, audio if audio.is_file() else None)
    run.seed = run.config.get("seed")
    return run


def _system_name(folder: Path) -> str:
    return re.sub(r"_seed\d+$", "", folder.resolve().name)


def _system(name: str, runs: List[Run]) -> System:
    folders = [run.experiment for run in runs if run.experiment is not None]
    if len({folder.name for folder in folders}) < len(folders):
        raise UserError(f"{', '.join(map(str, folders))}: several experiments of one name; report on them one by one")
    return System(name, runs, distilled=bool(runs[0].config.get("distill")), complexity=runs[0].complexity)


def _teacher_of(run: Run, folders: Sequence[Path]) -> Optional[Path]:
    """Folder of the teacher that a student learned from, if it is still there.

    One that was moved or copied with the student stands for the one that the student's options name.
    """
    config, output_dir = run.config.get("teacher_config"), run.config.get("output_dir")
    if not config or run.experiment is None:
        return None
    recorded = Path(config).parent
    beside = run.experiment / os.path.relpath(recorded, output_dir) if output_dir else None
    teacher = beside if beside is not None and beside.is_dir() else _located(recorded, run)
    if teacher is None:
        return None
    return next((folder for folder in folders if folder.samefile(teacher)), teacher)


def _located(path: Path, run: Run) -> Optional[Path]:
    """A path of a training's options, which may be relative to the folder that it was started in."""
    starts = [Path(start["working_directory"]) for start in run.starts[-1:] if "working_directory" in start]
    candidates = [path] if path.is_absolute() else [folder / path for folder in (*starts, Path("."))]
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def _data_dir(runs: Iterable[Run], test_set: str) -> Optional[Path]:
    """The test set's folder, beside that of the validation set."""
    for run in runs:
        for path, *_ in run.config.get("valid_data_path_and_name_and_type") or []:
            folder = _located(Path(path).parent.parent / test_set, run) if test_set else None
            if folder is not None and (folder / "wav.scp").is_file() and (folder / "spk1.scp").is_file():
                return folder
    return None


def _score(systems: Sequence[System], baseline: Optional[System]) -> None:
    """Fill in means with their intervals, and paired differences to the baseline."""
    for system in systems:
        system.metrics = means(system)
        if baseline is not None and system.distilled and (differences := difference(system, baseline)):
            system.differences[baseline.name] = differences
