"""Gather the scores of an ablation's cells into one table: ``results_<set>.{json,md,csv,png}`` in the grid's folder.

Every interval is a percentile bootstrap that draws utterances and training seeds together
(:class:`~i2srf_kd.metrics.bootstrap.CrossedBootstrap`); differences are paired, utterance by utterance and seed by
seed. Layout of the JSON file, in which every path is relative to the folder that the file lies in:

    format                 1
    title, grid, grid_file, set, is_validation
    command                commands that led to it, one per line: those of earlier tables first
    environment            where the scores were collected
    trainings              list of {git_hash, espnet, torch, python, hardware, systems}: where the trainings ran; one
                           entry for all systems (teacher, cells) that ran alike
    utterances, seconds    of the scored set
    baseline               name of the undistilled cell that costs and gaps refer to
    compare_with           further cells that every cell is compared with
    interval               {level, resamples, method}
    metrics                names of the scores, in the order of the columns (keys of all "metrics" below)
    noisy                  {scored, audio_scp, reference_scp, metrics: {METRIC: SCORE}}
    teacher                {experiment, scored, enhanced, audio_scp, complexity, training, metrics: {METRIC: SCORE}}
    cells                  list, in the order of the grid; one per cell:
      name, distill        the distillation (mapping) or null
      student_config, student_args
      imported             {FILE: sha256} of the files that the distillation imports; absent where there are none
      seeds                list, one per seed that the grid asks for:
        seed, state        finished, failed, interrupted or waiting
        experiment         folder of the training (config.yaml, metrics.jsonl, images/)
        log                what its run printed
        scored, enhanced   folders of scores (scores.csv) and of enhanced audio (spk1.scp); null unless finished
        audio_scp          enhanced/spk1.scp; null unless finished
        metrics            {METRIC: mean over utterances}; null unless finished
        training           TRAINING; null where there is no metrics.jsonl
      metrics              {METRIC: SCORE}; null when no seed is finished
      differences          {NAME OF ANOTHER CELL: {METRIC: SCORE}}, this cell minus the other; null without common seeds
      gap_closed           {METRIC: {share, low, high, gap: SCORE}}: the cell's gain over the baseline divided by the
                           teacher's (gap), both positive where they are for the better; share, low and high are null
                           unless the whole interval of the gap is above zero; null for the baseline
      training             TRAINING, mean over seeds
      relative_cost        seconds per step relative to the baseline's; null where unknown
      complexity           complexity.json of the network, or null
    pictures               list of files, or empty

    SCORE     {mean, low, high, seed_std, n_seeds, n, n_nan, share_positive}; seed_std is null with one seed,
              share_positive (share of resamples above zero) tells something in differences alone; n counts
              utterances times seeds.
              STOI and ESTOI are fractions as in scores.csv, not percentages.
    TRAINING  {steps, seconds_per_step, hours, parameters, distillation_parameters}
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from i2srf_kd.ablation.cost import mean_cost, training_cost, training_environments
from i2srf_kd.ablation.grid import Cell, Grid
from i2srf_kd.ablation.runs import Run
from i2srf_kd.ablation.table import to_csv, to_markdown
from i2srf_kd.metrics.table import in_order
from i2srf_kd.results import model as results
from i2srf_kd.results.comparison import difference, gap_closed, means, read_system
from i2srf_kd.results.model import MIXTURE, TEACHER, System
from i2srf_kd.results.scores import LEVEL, RESAMPLES
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text
from i2srf_kd.system.provenance import scoring_record

FORMAT = 1
METHOD = (
    "percentile bootstrap, utterances and seeds drawn with replacement, each independently of the other, deviations of "
    "the seeds widened for their small number (Student's t)"
)


@dataclass(frozen=True)
class Places:
    """Where an ablation reads and writes.

    Args:
        root: folder of the grid.
        rawdir: formatted audio, ``rawdir/<set>``.
        noisy, teacher: folders with ``scored_<set>``.
        teacher_experiment: folder of the teacher's training.
    """

    root: Path
    rawdir: Path
    noisy: Path
    teacher: Path
    teacher_experiment: Path

    def relative(self, path: Path) -> str:
        """The path as the JSON file has it."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def build(
    grid: Grid,
    runs: Sequence[Run],
    places: Places,
    test_set: str,
    command: str = "",
    options: Optional[Mapping[str, str]] = None,
) -> Dict[str, Any]:
    """Everything that the table says about one set; the layout is that of the module's docstring.

    Args:
        grid: the whole grid.
        runs: all its runs; those that are not finished are listed without scores.
        places: where they are.
        test_set: which set.
        command: that led to it.
        options: what the options of the pipeline come to.

    Raises:
        UserError: scores that are missing, or were made of other utterances than those of the mixtures.
    """
    return _Collector(grid, runs, places, test_set).build(command, options or {})


class _Collector:
    """Reads the scores of one set and compares them."""

    def __init__(self, grid: Grid, runs: Sequence[Run], places: Places, test_set: str):
        self.grid, self.runs, self.places, self.set = grid, runs, places, test_set
        self.noisy = read_system(MIXTURE, [places.noisy / f"scored_{test_set}"])
        teacher = places.teacher / f"scored_{test_set}"
        self.teacher = read_system(TEACHER, [teacher], places.teacher)
        self.utterances = list(self.noisy.runs[0].scores)
        self.metrics = in_order(self.noisy.metrics)
        self._check(TEACHER, self.teacher.runs[0])
        self.finished = {run.folder: self._read(run) for run in runs if run.state([test_set]) == "finished"}
        self.cells: Dict[str, System] = {}
        for cell in grid.cells:
            finished = [self.finished[run.folder] for run in runs if run.cell == cell and run.folder in self.finished]
            if finished:
                self.cells[cell.name] = System(cell.name, finished, complexity=finished[0].complexity)

    def _read(self, run: Run) -> results.Run:
        scored = results.Run(run.seed, run.folder, run.scored(self.set))
        self._check(run.title, scored)
        return scored

    def _check(self, title: str, run: results.Run) -> None:
        """All runs have the utterances and the scores of the mixtures."""
        odd = run.scores.keys() ^ set(self.utterances)
        if odd:
            raise UserError(
                f"{title} was scored on other utterances of {self.set} than the mixtures ({len(odd)} differ, "
                f"such as {min(odd)}): run the ablation again to score it anew"
            )
        missing = [metric for metric in self.metrics if metric not in run.scores[self.utterances[0]]]
        if missing:
            raise UserError(f"{title} was scored without {', '.join(missing)}: score all with one --score_args")

    def build(self, command: str, options: Mapping[str, str]) -> Dict[str, Any]:
        cells = [self._cell(cell) for cell in self.grid.cells]
        _add_relative_cost(cells, self.grid.baseline)
        return {
            "format": FORMAT,
            "title": self.grid.title,
            "grid": self.grid.name,
            "grid_file": self.places.relative(self.grid.path),
            "set": self.set,
            "is_validation": self.set == options.get("valid_set"),
            "command": command,
            "environment": scoring_record(),
            "trainings": self._trainings(),
            "utterances": len(self.utterances),
            "seconds": self.noisy.runs[0].summary["seconds"],
            "baseline": self.grid.baseline,
            "compare_with": self.grid.compare_with,
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "method": METHOD},
            "metrics": self.metrics,
            "noisy": self._mixture(),
            "teacher": self._teacher(),
            "cells": cells,
            "pictures": [],
        }

    def _trainings(self) -> List[Dict[str, Any]]:
        """Where the teacher and the finished runs were trained."""
        folders = {"teacher": [self.places.teacher_experiment]}
        for cell in self.grid.cells:
            folders[cell.name] = [run.folder for run in self.runs if run.cell == cell and run.folder in self.finished]
        entries: Dict[Tuple[Tuple[str, Any], ...], List[str]] = {}
        for name, places in folders.items():
            for record in dict.fromkeys(record for place in places for record in training_environments(place)):
                entries.setdefault(record, []).append(name)
        return [{**dict(record), "systems": names} for record, names in entries.items()]

    def _mixture(self) -> Dict[str, Any]:
        relative, raw = self.places.relative, self.places.rawdir / self.set
        return {
            "scored": relative(self.places.noisy / f"scored_{self.set}"),
            "audio_scp": relative(raw / "wav.scp"),
            "reference_scp": relative(raw / "spk1.scp"),
            "metrics": self.noisy.metrics,
        }

    def _teacher(self) -> Dict[str, Any]:
        relative, enhanced = self.places.relative, self.places.teacher / f"enhanced_{self.set}"
        return {
            "experiment": relative(self.places.teacher_experiment),
            "scored": relative(self.places.teacher / f"scored_{self.set}"),
            "enhanced": relative(enhanced),
            "audio_scp": relative(enhanced / "spk1.scp"),
            "complexity": self.teacher.complexity,
            "training": training_cost(self.places.teacher_experiment),
            "metrics": self.teacher.metrics,
        }

    def _cell(self, cell: Cell) -> Dict[str, Any]:
        runs = [run for run in self.runs if run.cell == cell]
        seeds = [self._seed(run) for run in runs]
        system = self.cells.get(cell.name)
        others = dict.fromkeys([self.grid.baseline, *self.grid.compare_with])
        return {
            "name": cell.name,
            **cell.definition(),
            "seeds": seeds,
            "metrics": means(system) if system else None,
            "differences": {other: self._differences(cell.name, other) for other in others if other != cell.name},
            "gap_closed": self._gap_closed(cell.name),
            "training": mean_cost([seed["training"] for seed in seeds if seed["state"] == "finished"]),
            "complexity": system.complexity if system else None,
        }

    def _seed(self, run: Run) -> Dict[str, Any]:
        relative = self.places.relative
        scored = self.finished.get(run.folder)
        enhanced = run.enhanced(self.set)
        return {
            "seed": run.seed,
            "state": run.state([self.set]),
            "experiment": relative(run.folder),
            "log": relative(run.log),
            "scored": relative(run.scored(self.set)) if scored else None,
            "enhanced": relative(enhanced) if scored else None,
            "audio_scp": relative(enhanced / "spk1.scp") if scored else None,
            "metrics": {m: scored.summary["metrics"][m]["mean"] for m in self.metrics} if scored else None,
            "training": training_cost(run.folder),
        }

    def _differences(self, name: str, other: str) -> Optional[Dict[str, Any]]:
        return difference(self.cells.get(name), self.cells.get(other)) or None

    def _gap_closed(self, name: str) -> Optional[Dict[str, Any]]:
        if name == self.grid.baseline:
            return None
        return gap_closed(self.cells.get(name), self.cells.get(self.grid.baseline), self.teacher) or None


def _add_relative_cost(cells: Sequence[Dict[str, Any]], baseline: str) -> None:
    """Seconds per step relative to the baseline's."""
    own = {cell["name"]: (cell["training"] or {}).get("seconds_per_step") for cell in cells}
    for cell in cells:
        seconds, reference = own[cell["name"]], own.get(baseline)
        cell["relative_cost"] = seconds / reference if seconds and reference else None


def _with_earlier(command: str, file: Path) -> str:
    """The commands of the table that is there, and this one where it is new."""
    try:
        earlier = str(json.loads(file.read_text(encoding="utf-8"))["command"]).splitlines()
    except (OSError, ValueError, KeyError, TypeError):
        earlier = []
    return "\n".join(dict.fromkeys([*earlier, *command.splitlines()]))


def write(results: Dict[str, Any], root: Path) -> Path:
    """Write ``results_<set>.{md,csv,json,png}`` into the grid's folder; the path of the Markdown file."""
    stem = f"results_{results['set']}"
    results["command"] = _with_earlier(results["command"], root / f"{stem}.json")
    picture = root / f"{stem}.png"
    if any(any(cell["differences"].values()) for cell in results["cells"]):
        from i2srf_kd.ablation.picture import forest_plot

        forest_plot(results, picture)
        results["pictures"] = [picture.name]
    else:
        picture.unlink(missing_ok=True)
    write_text(root / f"{stem}.csv", to_csv(results))
    write_text(root / f"{stem}.md", to_markdown(results))
    write_text(root / f"{stem}.json", json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return root / f"{stem}.md"
