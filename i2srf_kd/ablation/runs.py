"""The runs of an ablation, one per cell and seed: their folders, their state, and how one of them is carried out.

exp/ablation/<grid>/<cell>/cell.yaml         what the cell trains
exp/ablation/<grid>/<cell>/distill.yaml      its distillation file, derived
exp/ablation/<grid>/<cell>/seed<k>/          experiment folder, with scored_<set>, enhanced_<set>, logs/, state.json
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Mapping, Sequence, Tuple

import yaml

from i2srf_kd.ablation.grid import Cell, Grid
from i2srf_kd.jobs.messages import last_lines
from i2srf_kd.pipeline.recipe import Pipeline, parse_option_words
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text
from i2srf_kd.system.fingerprints import fingerprint_of_text
from i2srf_kd.system.locks import held, holder_of, wait_for
from i2srf_kd.system.processes import call
from i2srf_kd.system.signals import EXIT_INTERRUPTED

EXIT_REFUSED = 2
_STATE = "state.json"
_NO_INPUTS = ("python", "num_threads", "ngpu", "nj", "inference_nj", "scratch")  # options that change no result
_CELL = "cell.yaml"


@dataclass(frozen=True)
class Run:
    """One cell with one seed.

    Args:
        cell: what is trained.
        seed: of the training.
        folder: its experiment folder.
    """

    cell: Cell
    seed: int
    folder: Path

    @property
    def title(self) -> str:
        """What it is called on the terminal."""
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """What its run prints."""
        return self.folder / "logs" / "run.log"

    def scored(self, test_set: str) -> Path:
        """Its scores of a set."""
        return self.folder / f"scored_{test_set}"

    def enhanced(self, test_set: str) -> Path:
        """Its enhanced audio of a set."""
        return self.folder / f"enhanced_{test_set}"

    def state(self, test_sets: Sequence[str]) -> str:
        """``finished`` (trained, and scored on all sets), ``failed``, ``interrupted`` or ``waiting`` (not begun)."""
        done = [self.folder / ".done_train", *(self.folder / f".done_{name}" for name in test_sets)]
        if all(path.is_file() for path in done):  # whatever came later, such as a rerun that was refused
            return "finished"
        code = self.exit_code
        if code and not stopped_by_signal(code):
            return "failed"
        return "interrupted" if code or (self.folder / "options.yaml").exists() else "waiting"

    @property
    def exit_code(self) -> int:
        """How its last call of the pipeline ended; 0 where that is not known."""
        try:
            return int(self._last_call()["exit_code"])
        except (ValueError, KeyError, TypeError):
            return 0

    def _last_call(self) -> Mapping[str, Any]:
        try:
            return dict(json.loads((self.folder / _STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def is_current(self, test_sets: Sequence[str], inputs: str) -> bool:
        """Whether it is finished, and its last call succeeded with these :func:`inputs_of`: nothing is left to do."""
        last = self._last_call()
        return self.state(test_sets) == "finished" and last.get("exit_code") == 0 and last.get("inputs") == inputs


def stopped_by_signal(code: int) -> bool:
    """Whether an exit code means that the same command can go on."""
    return code == EXIT_INTERRUPTED or code >= 128


def runs_of(grid: Grid, root: Path) -> List[Run]:
    """All runs of a grid, the seeds outermost: all cells have a first result before any has a second."""
    seeds = dict.fromkeys(seed for cell in grid.cells for seed in cell.seeds)
    return [
        Run(cell, seed, root / cell.name / f"seed{seed}") for seed in seeds for cell in grid.cells if seed in cell.seeds
    ]


def check_cells(grid: Grid, root: Path) -> None:
    """Make sure that what is in the cells' folders is what the grid file says.

    Raises:
        UserError: a cell was begun with another definition.
    """
    for cell in grid.cells:
        folder = root / cell.name
        begun = [*folder.glob("seed*/options.yaml"), *folder.glob("seed*/.done_train")]
        if begun and not _is_current(cell, folder):
            raise UserError(
                f"{grid.path}: cell {cell.name} has changed since it was trained ({folder / _CELL} has the old "
                f"definition): give the changed cell another name, or remove {folder}"
            )


def _definition(cell: Cell) -> str:
    return yaml.safe_dump(cell.definition(), sort_keys=False, allow_unicode=True)


def _is_current(cell: Cell, folder: Path) -> bool:
    path = folder / _CELL
    return path.is_file() and path.read_text(encoding="utf-8") == _definition(cell)


def write_cells(grid: Grid, root: Path) -> None:
    """Write every cell's definition and derived distillation file, each only where it changes.

    Raises:
        UserError: a cell was begun with another definition, which is still there to be collected.
    """
    check_cells(grid, root)
    for cell in grid.cells:
        folder = root / cell.name
        if _is_current(cell, folder):
            continue
        if cell.distill is not None:
            text = f"# Derived from {grid.path}, cell {cell.name}\n"
            write_text(folder / "distill.yaml", text + yaml.safe_dump(cell.distill, sort_keys=False))
        write_text(folder / _CELL, _definition(cell))


def command_of(run: Run, pipeline: Pipeline, expdir: str) -> List[str]:
    """The call of the pipeline that trains and scores one run on this machine."""
    distill = run.folder.parent / "distill.yaml"
    options = {
        "stage": "5",
        "stop_stage": "6",
        "seed": str(run.seed),
        "distill_config": "none" if run.cell.distill is None else str(distill),
        "student_tag": os.path.relpath(run.folder, expdir),
        "logdir": str(run.folder / "logs"),
        "score_systems": "student_kd",
        "cmd_backend": "local",  # the run is itself an element of a job array
    }
    if run.cell.student_config is not None:
        options["student_config"] = run.cell.student_config
    if run.cell.student_args:
        common = pipeline.options.get("student_args", "")
        options["student_args"] = f"{common} {run.cell.student_args}".strip()
    return pipeline.with_options(**options).command()


def inputs_of(run: Run, pipeline: Pipeline, expdir: str, files: Sequence[Path]) -> str:
    """A text that changes when a run could come out otherwise: its options, its cell, and what it reads.

    Args:
        run: the run.
        pipeline: of all runs.
        expdir: folder of the experiments.
        files: configuration, and records of the stages that the run builds on; those that are absent count as well.
    """
    options = parse_option_words(command_of(run, pipeline, expdir)[1:])
    kept = {name: value for name, value in options.items() if name not in _NO_INPUTS}
    contents = [path.read_text(encoding="utf-8") if path.is_file() else None for path in files]
    text = json.dumps([kept, _definition(run.cell), contents], sort_keys=True)
    return fingerprint_of_text(text)


def write_plan(runs: Sequence[Tuple[Run, str]], pipeline: Pipeline, expdir: str, path: Path) -> None:
    """Write what the elements of the job array do, one entry for each run with its :func:`inputs_of`."""
    entries = [
        {
            "title": run.title,
            "folder": str(run.folder),
            "inputs": inputs,
            "command": command_of(run, pipeline, expdir),
        }
        for run, inputs in runs
    ]
    write_text(path, json.dumps(entries, indent=1) + "\n")


def carry_out(plan: Path, number: int) -> int:
    """Carry out entry ``number`` (from 1) of a plan and note how it ended.

    Returns:
        The pipeline's exit code.

    Raises:
        UserError: there is no such entry, or the run is still being carried out elsewhere.
    """
    try:
        entry: Mapping[str, Any] = json.loads(plan.read_text(encoding="utf-8"))[number - 1]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{plan}: cannot read run {number} ({error})") from None
    folder = Path(entry["folder"])
    log = folder / "logs" / "run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with held(folder / ".run.lock", f"{entry['title']}: {folder}") as lock:
        wait_for(lambda: _trainer_of(folder), f"{entry['title']}: {folder}")
        (folder / _STATE).unlink(missing_ok=True)
        if log.exists():
            os.replace(log, log.with_name("run.log.1"))
        print(f"{entry['title']}: log {log}", flush=True)
        with log.open("wb") as output:
            code = call(entry["command"], output, pass_fds=[lock])
        write_text(folder / _STATE, json.dumps({"exit_code": code, "inputs": entry["inputs"]}) + "\n")
    if code and code != EXIT_INTERRUPTED:
        print("\n".join(f"{entry['title']} | {line}" for line in last_lines(log)), flush=True)
    return code


def _trainer_of(folder: Path) -> str:
    """Who trains in the folder (see :func:`i2srf_kd.training.run_guard.lock_experiment`); empty when nobody does."""
    holder = holder_of(folder / ".lock")
    return holder and f"the training {holder}"
