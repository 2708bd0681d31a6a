"""Which epochs are the best, and what is published of them: links, averages, and the removal of the others."""

import logging
import math
from pathlib import Path
from typing import Any, Collection, Dict, List, Mapping, Sequence, Set

from i2srf_kd.system.errors import UserError
from i2srf_kd.training.checkpoint import remove_dangling_links, replace_link, write_averages

logger = logging.getLogger(__name__)

Criterion = Sequence[str]  # phase, name of the value, min or max
Stats = Mapping[int, Mapping[str, Mapping[str, Any]]]  # values by epoch, phase and name


def check_criterion(option: str, criterion: Criterion) -> None:
    """Refuse a criterion that can never choose an epoch.

    Raises:
        UserError: names the option.
    """
    phase, name, mode = criterion
    if phase not in ("train", "valid") or mode not in ("min", "max"):
        raise UserError(
            f"--{option} {phase},{name},{mode}: the phase is train or valid, and the best value the min or the max"
        )


def refuse_unknown(criteria: Mapping[str, Sequence[Criterion]], phase: str, known: Collection[str]) -> None:
    """Tell which criterion of a phase names a value that is not reported.

    Args:
        criteria: by option.
        phase: ``train`` or ``valid``.
        known: values that are reported.

    Raises:
        UserError: names the option, and what it can choose among.
    """
    for option, entries in criteria.items():
        for wanted, name, _ in entries:
            if wanted == phase and name not in known:
                listed = ", ".join(f"{phase},{other}" for other in sorted(known))
                raise UserError(f"--{option} {phase},{name} is not reported; choose among {listed}")


def rank_epochs(stats: Stats, phase: str, name: str, mode: str) -> List[int]:
    """Epochs by a value, the best first; ties go to the earlier one, epochs without a finite value are left out."""
    values = [(phases.get(phase, {}).get(name), epoch) for epoch, phases in stats.items()]
    sign = 1 if mode == "min" else -1
    finite = [(sign * float(value), epoch) for value, epoch in values if value is not None and math.isfinite(value)]
    return [epoch for _, epoch in sorted(finite)]


class BestEpochs:
    """Publishes the best epochs of an experiment.

    Args:
        output_dir: holds ``<epoch>epoch.pth``.
        criteria: what an epoch may be best by.
        nbests: how many best epochs are averaged, each number by itself; the largest is how many are kept.
        interval: epochs from one intermediate average to the next, 0 for none.
    """

    def __init__(self, output_dir: Path, criteria: Sequence[Criterion], nbests: Sequence[int], interval: int = 0):
        self.output_dir = output_dir
        self.criteria = criteria
        self.nbests = nbests
        self.interval = interval
        self._missing: Set[int] = set()

    def rankings(self, stats: Stats) -> Dict[str, List[int]]:
        """Epochs by each criterion, the best first, as far as their weights are kept."""
        rankings = {}
        for phase, name, mode in self.criteria:
            epochs = rank_epochs(stats, phase, name, mode)
            kept = [epoch for epoch in epochs if (self.output_dir / f"{epoch}epoch.pth").exists()]
            lost = set(epochs[: max(self.nbests)]) - set(kept) - self._missing
            if lost:
                logger.warning(
                    f"epoch(s) {', '.join(map(str, sorted(lost)))} are among the best by {phase}.{name}, but their "
                    "weights were not kept: links and averages do without them"
                )
                self._missing |= lost
            rankings[f"{phase}.{name}"] = kept
        return rankings

    def publish(self, stats: Stats, epoch: int) -> None:
        """Renew links, write interval averages, remove epochs that are neither among the best nor the latest."""
        replace_link(self.output_dir / "latest.pth", f"{epoch}epoch.pth")
        rankings = self.rankings(stats)
        improved = [criterion for criterion, epochs in rankings.items() if epochs[:1] == [epoch]]
        for criterion, epochs in rankings.items():
            if epochs:
                replace_link(self.output_dir / f"{criterion}.best.pth", f"{epochs[0]}epoch.pth")
        logger.info(f"epoch {epoch} is the best so far by: {', '.join(improved) or 'none'}")
        if self.interval > 0 and epoch % self.interval == 0:
            write_averages(self.output_dir, rankings, self.nbests, suffix=f"till{epoch}epoch.")
        kept = {epoch}.union(*(epochs[: max(self.nbests)] for epochs in rankings.values()))
        for other in range(1, epoch):
            if other not in kept:
                (self.output_dir / f"{other}epoch.pth").unlink(missing_ok=True)
        remove_dangling_links(self.output_dir)

    def write_averages(self, stats: Stats) -> None:
        """Write the averages of the best epochs so far, one also by the name that ESPnet's recipes expect."""
        rankings = self.rankings(stats)
        write_averages(self.output_dir, rankings, self.nbests)
        expected = self.output_dir / "valid.loss.ave.pth"
        if not expected.exists() and any(rankings.values()):
            replace_link(expected, next(f"{criterion}.ave.pth" for criterion, epochs in rankings.items() if epochs))
