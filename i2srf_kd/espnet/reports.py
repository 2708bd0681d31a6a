"""What talks to ESPnet's reporter: saving and restoring it, and what is written of a finished epoch."""

import dataclasses
import datetime
import importlib.util
import logging
import math
import time
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Tuple

import torch
from espnet2.train.reporter import Average, Reporter, SubReporter, WeightedAverage

from i2srf_kd.training.monitor import MetricsLog
from i2srf_kd.training.state import rng_state

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Position:
    """Where in a phase of an epoch the run is.

    Attributes:
        epoch: 1-based.
        sub_reporter: of the phase.
        batches: that are done.
        samples: that went through the model on this rank, padding not counted.
    """

    epoch: int
    sub_reporter: SubReporter
    batches: int = 0
    samples: int = 0

    def state_dict(self) -> Dict[str, Any]:
        """State for a checkpoint, with this rank's random numbers."""
        return {
            "epoch": self.epoch,
            "batches_done": self.batches,
            "samples": self.samples,
            "sub_reporter": dump_sub_reporter(self.sub_reporter),
            "rng": rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, apart from the random numbers."""
        self.batches, self.samples = state["batches_done"], state["samples"]
        restore_sub_reporter(self.sub_reporter, state["sub_reporter"])


class EpochReports:
    """Writes down what finished epochs were like: log, metrics.jsonl, curves, tensorboard.

    Args:
        output_dir: folder of the experiment.
        reporter: of the run, with the epochs that are finished already.
        draw_curves, use_tensorboard: ESPnet's options.
    """

    def __init__(self, output_dir: Path, reporter: Reporter, draw_curves: bool, use_tensorboard: bool):
        self.reporter = reporter
        self.metrics = MetricsLog(output_dir, max(reporter.stats, default=0))
        self.image_dir = output_dir / "images"
        self.draw_curves = draw_curves and _installed("matplotlib", "no curves are drawn")
        self.writers: Dict[str, Any] = {}
        if use_tensorboard and _installed("tensorboard", "metrics.jsonl holds the same values"):
            from torch.utils.tensorboard import SummaryWriter

            steps = max((s["train"]["total_count"] for s in reporter.stats.values()), default=0)
            # Points that the last run wrote after its last checkpoint are hidden.
            purge = steps + 1 if steps else None
            for phase in ("train", "valid"):
                self.writers[phase] = SummaryWriter(str(output_dir / "tensorboard" / phase), purge_step=purge)

    def write(self, epoch: int, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Report an epoch with its values by phase."""
        logger.info(self.reporter.log_message())
        for phase, entries in values.items():
            self.metrics.append(epoch, phase, entries)
        if self.draw_curves:
            self.reporter.matplotlib_plot(self.image_dir)
        for phase, writer in self.writers.items():
            self.reporter.tensorboard_add_scalar(writer, key1=phase)
            writer.flush()


def _installed(package: str, otherwise: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        logger.warning("%s is not installed: %s", package, otherwise)
    return found


def skipped_updates(sub_reporter: SubReporter) -> int:
    """Updates that ESPnet left out because the norm of the gradient was not finite.

    Every update reports ``train_time``, but only one that was made reports ``grad_norm``.
    """

    def count(name: str) -> int:
        return sum(math.isfinite(item.value) for item in sub_reporter.stats.get(name, ()))

    return count("train_time") - count("grad_norm")


def dump_sub_reporter(reporter: SubReporter) -> Dict[str, Any]:
    """An ESPnet ``SubReporter`` between two steps, as tensors and numbers."""
    stats: Dict[str, Tuple[torch.Tensor, Any]] = {}
    for name, items in reporter.stats.items():
        weights = [item.weight for item in items] if isinstance(items[0], WeightedAverage) else None
        stats[name] = (_doubles([item.value for item in items]), None if weights is None else _doubles(weights))
    return {
        "stats": stats,
        "count": reporter.count,
        "total_count": reporter.total_count,
        "seconds": time.perf_counter() - reporter.start_time,
    }


def _doubles(values: Sequence[Any]) -> torch.Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def restore_sub_reporter(reporter: SubReporter, state: Mapping[str, Any]) -> None:
    """Undo :func:`dump_sub_reporter`."""
    for name, (values, weights) in state["stats"].items():
        if weights is None:
            reporter.stats[name] = [Average(value) for value in values.tolist()]
        else:
            pairs = zip(values.tolist(), weights.tolist(), strict=True)
            reporter.stats[name] = [WeightedAverage(value, weight) for value, weight in pairs]
    reporter.count = state["count"]
    reporter.total_count = state["total_count"]
    reporter.start_time = time.perf_counter() - state["seconds"]


def dump_reporter(stats: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> Dict[int, Dict[str, Dict[str, Any]]]:
    """Finished epochs of an ESPnet ``Reporter``; its time spans become seconds."""
    return {
        epoch: {phase: {**values, "time": values["time"].total_seconds()} for phase, values in phases.items()}
        for epoch, phases in stats.items()
    }


def load_reporter(stats: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> Dict[str, Any]:
    """Undo :func:`dump_reporter`; the result is for ``Reporter.load_state_dict``."""
    restored = {
        epoch: {
            phase: {**values, "time": datetime.timedelta(seconds=values["time"])} for phase, values in phases.items()
        }
        for epoch, phases in stats.items()
    }
    return {"stats": restored, "epoch": max(restored, default=0)}
