"""Distillation as ESPnet knows it: a criterion and its loss wrapper."""

from typing import Any, Dict, List, Mapping, Optional, Tuple

from espnet2.enh.loss.criterions.abs_loss import AbsEnhLoss
from espnet2.enh.loss.criterions.time_domain import TimeDomainLoss
from espnet2.enh.loss.wrappers.abs_wrapper import AbsLossWrapper
from torch import Tensor

from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.method import Layout, Side

# Where the distillation finds both networks' sides.
STUDENT_KEY, TEACHER_KEY = "distill_student", "distill_teacher"


class DistillCriterion(TimeDomainLoss):
    """Distillation as a criterion: it compares what both networks did, and the clean waveform where a method needs it.

    :class:`~i2srf_kd.espnet.model.DistillEnhancementModel` calls it by itself. In the loop over criteria of another
    ESPnet model it is one on waveforms, since ESPnet hands criteria of no other kind the reference.

    Args:
        config: the ``distill`` section (see :mod:`i2srf_kd.distill.distiller`).
        student, teacher: layouts of the two networks.
    """

    def __init__(self, config: Mapping[str, Any], student: Layout, teacher: Layout, name: str = "kd"):
        super().__init__(name)
        self.distiller = Distiller(config, student, teacher)

    def forward(  # type: ignore[override]
        self, ref: Optional[Tensor], inf: Mapping[str, Side]
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Loss and its terms; ``inf`` holds both sides, ``ref`` is the clean waveform."""
        return self.distiller(inf[STUDENT_KEY], inf[TEACHER_KEY], ref)


class DistillWrapper(AbsLossWrapper):
    """Hands the sides in ``others`` to the distillation criterion and logs each of its terms."""

    def __init__(self, criterion: AbsEnhLoss, weight: float = 1.0):
        super().__init__()
        if not isinstance(criterion, DistillCriterion):
            raise TypeError("distill_wrapper wraps the distill criterion alone")
        self.criterion = criterion
        self.weight = weight

    def forward(self, ref: List[Tensor], inf: List[Tensor], others: Optional[Dict] = None) -> Tuple[Tensor, Dict, Dict]:
        loss, terms = self.criterion(ref[0], others or {})
        stats = {f"{self.criterion.name}_{name}": value for name, value in terms.items()}
        stats[self.criterion.name] = loss.detach()
        return loss, stats, {}
