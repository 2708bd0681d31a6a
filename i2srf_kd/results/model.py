"""One model of results: systems, their trainings (one per seed), the scores of every utterance, and their statistics.

``RESULTS.md``, the table of cost and quality, the table of an ablation and the report all read their numbers here.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, TypeVar

from i2srf_kd.data.kaldi_dir import Table
from i2srf_kd.inference.experiment import CONFIG
from i2srf_kd.metrics.table import in_order
from i2srf_kd.results.files import read_audio_paths, read_json, read_log
from i2srf_kd.results.scores import read_csv
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError

MIXTURE = "noisy"
"""Name of the system that is the unprocessed mixture; its row opens every table."""
TEACHER = "teacher"
METRICS_LOG, DIAGNOSTICS_LOG, ENVIRONMENT = "metrics.jsonl", "diagnostics.jsonl", "environment.json"

Content = TypeVar("Content")
Score = Dict[str, Any]  # mean, low, high, n, n_nan and, over seeds, more; see i2srf_kd.ablation.collect


@dataclass
class Run:
    """One training with its scores; what is absent is None.

    Attributes:
        seed: of the training, None where it has none (the mixtures).
        experiment: folder that the training wrote.
        scored: folder with ``scores.csv`` and ``summary.json``.
        audio_scp: table of enhanced files.
        state: ``finished``, or how far an unfinished one got.
    """

    seed: Optional[int] = None
    experiment: Optional[Path] = None
    scored: Optional[Path] = None
    audio_scp: Optional[Path] = None
    state: str = "finished"

    @cached_property
    def scores(self) -> Dict[str, Dict[str, float]]:
        """Scores of each utterance, by its name; empty where nothing is scored."""
        if self.scored is None or not (self.scored / "scores.csv").is_file():
            return {}
        return {row["utt"]: row for row in read_csv(self.scored / "scores.csv")}

    @cached_property
    def summary(self) -> Dict[str, Any]:
        """``summary.json``: how it was scored, and means of the scores.

        Raises:
            UserError: it is absent or holds no means.
        """
        assert self.scored is not None
        file = self.scored / "summary.json"
        summary = read_json(file, "score the system first (python -m i2srf_kd.bin.score)")
        if "metrics" not in summary:
            raise UserError(f"{file}: holds no metrics; score the system again")
        return summary

    @cached_property
    def metrics(self) -> List[Dict[str, Any]]:
        """Lines of ``metrics.jsonl``."""
        return self._optional(METRICS_LOG, read_log) or []

    @cached_property
    def diagnostics(self) -> List[Dict[str, Any]]:
        """Lines of ``diagnostics.jsonl``, in the order of their steps."""
        return sorted(self._optional(DIAGNOSTICS_LOG, read_log) or [], key=lambda line: line.get("step", 0))

    @cached_property
    def config(self) -> Dict[str, Any]:
        """Options of the training."""
        return self._optional(CONFIG, read_yaml) or {}

    @cached_property
    def starts(self) -> List[Dict[str, Any]]:
        """The environment at each start of the training."""
        return list((self._optional(ENVIRONMENT, read_json) or {}).get("starts", []))

    @cached_property
    def complexity(self) -> Optional[Dict[str, Any]]:
        """Size and cost of the network."""
        return self._optional("complexity.json", read_json)

    @cached_property
    def times(self) -> Dict[str, Any]:
        """``steps``, ``seconds_per_step`` (None where it was not measured) and ``hours`` of a training.

        Hours are those of the epochs, training and validation, as ``metrics.jsonl`` has them; what was computed twice
        because of a kill is not in it. Seconds per step depend on what else ran on the machine.
        """
        epochs = [record for record in self.metrics if record["phase"] == "train" and record.get("total_count")]
        # total_count goes on from epoch to epoch
        totals = [0, *(int(record["total_count"]) for record in epochs)]
        counts = [after - before for before, after in zip(totals, totals[1:], strict=False)]
        timed = [(epoch["train_time"], n) for epoch, n in zip(epochs, counts, strict=True) if epoch.get("train_time")]
        steps_timed = sum(n for _, n in timed)
        return {
            "steps": totals[-1],
            "seconds_per_step": math.fsum(t * n for t, n in timed) / steps_timed if steps_timed else None,
            "hours": math.fsum(record.get("seconds") or 0.0 for record in self.metrics) / 3600,
        }

    def audio(self) -> Table:
        """Enhanced file of each utterance."""
        return read_audio_paths(self.audio_scp)

    def _optional(self, name: str, read: Callable[[Path], Content]) -> Optional[Content]:
        path = self.experiment / name if self.experiment is not None else None
        return read(path) if path is not None and path.is_file() else None


@dataclass
class System:
    """A row of the table.

    Attributes:
        name: unique among those that are compared.
        runs: its seeds; one for the mixtures and the teacher.
        metrics: score by metric.
        differences: name of another system to score by metric, this system minus the other.
        gap_closed: metric to the share of the teacher's gain over the baseline.
        distilled: whether it learned from the teacher.
        relative_cost: seconds per training step relative to the baseline's.
        complexity: size and cost of the network.
    """

    name: str
    runs: List[Run]
    metrics: Dict[str, Score] = field(default_factory=dict)
    differences: Dict[str, Dict[str, Score]] = field(default_factory=dict)
    gap_closed: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    distilled: bool = False
    relative_cost: Optional[float] = None
    complexity: Optional[Dict[str, Any]] = None

    @property
    def trained(self) -> List[Run]:
        """Seeds that have left a log of their training."""
        return [run for run in self.runs if run.metrics]

    @property
    def scored(self) -> List[Run]:
        """Seeds that are scored."""
        return [run for run in self.runs if run.scores]

    @property
    def has_seeds(self) -> bool:
        """False for the one run of mixtures or a teacher, which stands for each seed of others."""
        return len(self.runs) != 1 or self.runs[0].seed is not None

    def with_seeds(self, seeds: Sequence[Optional[int]]) -> List[Run]:
        """The runs of these seeds, in their order."""
        if not self.has_seeds:
            return self.runs * len(seeds)
        by_seed = {run.seed: run for run in self.scored}
        return [by_seed[seed] for seed in seeds]


def metrics_of(systems: Iterable[System]) -> List[str]:
    """Metrics of any of the systems, in the order of the columns."""
    return in_order(metric for system in systems for metric in system.metrics)
