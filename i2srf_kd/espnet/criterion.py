"""Training criteria as ESPnet knows them: the task loss, and distillation with its wrapper."""

from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from espnet2.enh.loss.criterions.abs_loss import AbsEnhLoss
from espnet2.enh.loss.criterions.tf_domain import FrequencyDomainLoss
from espnet2.enh.loss.criterions.time_domain import TimeDomainLoss
from espnet2.enh.loss.wrappers.abs_wrapper import AbsLossWrapper
from torch import Tensor

from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.method import Layout, Side
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.nets.stft import STFT
from i2srf_kd.system.errors import UserError

# Where the distillation finds both networks' sides.
STUDENT_KEY, TEACHER_KEY = "distill_student", "distill_teacher"


class CompressedSpectrumCriterion(FrequencyDomainLoss):
    """Power-law compressed spectral loss on the enhanced waveform's spectrum.

        criterions:
          - {name: compressed_spectrum, conf: {power: 0.3}, wrapper: fixed_order, wrapper_conf: {weight: 1.0}}

    ESPnet hands it the spectrum of the resynthesised waveform, not that which the network gave: only what is left after
    resynthesis counts, so this is a consistency loss as well.

    Networks that work on the waveform (``encoder: same``) are compared through an STFT of ``n_fft`` and ``hop_length``.
    """

    def __init__(
        self,
        power: float = 0.3,
        complex_share: float = 0.3,
        floor: float = 1e-10,
        n_fft: int = 512,
        hop_length: int = 256,
        name: Optional[str] = None,
        only_for_test: bool = False,
    ):
        super().__init__(name or "compressed_spectrum", only_for_test=only_for_test)
        # YAML reads 1e-5 as a word: it wants 1.0e-5.
        self.power, self.complex_share, self.floor = float(power), float(complex_share), float(floor)
        self.stft = STFT(n_fft, hop_length)

    @property
    def compute_on_mask(self) -> bool:
        return False

    @property
    def mask_type(self) -> Optional[str]:
        return None

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Complex spectra ``(B, T, F)``, or waveforms ``(B, samples)``, to ``(B,)``."""
        ref, inf = self._spectrum(ref), self._spectrum(inf)
        return compressed_spectrum_loss(inf, ref, self.power, self.complex_share, self.floor)

    def _spectrum(self, signal: Tensor) -> Tensor:
        if signal.is_complex():
            return signal
        if signal.dim() != 2:
            raise UserError(
                "compressed_spectrum compares spectra or waveforms: with a learned encoder use compressed_spectrum_td"
            )
        planes = self.stft(signal)
        return torch.complex(planes[:, 0], planes[:, 1])


class CompressedSpectrumTDCriterion(TimeDomainLoss):
    """The same loss for networks with a learned encoder, whose own output is not a spectrum: on decoded waveforms.

        criterions:
          - {name: compressed_spectrum_td, conf: {power: 0.3}, wrapper: fixed_order, wrapper_conf: {weight: 1.0}}

    Args:
        name: of the loss in logs; by default that of :class:`CompressedSpectrumCriterion`.
        only_for_test: as in ESPnet.
        conf: options of :class:`CompressedSpectrumCriterion`.
    """

    def __init__(self, name: Optional[str] = None, only_for_test: bool = False, **conf: Any):
        super().__init__(name or "compressed_spectrum", only_for_test=only_for_test)
        self.spectral = CompressedSpectrumCriterion(**conf)

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Waveforms ``(B, samples)`` to ``(B,)``."""
        return self.spectral(ref, inf)


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
