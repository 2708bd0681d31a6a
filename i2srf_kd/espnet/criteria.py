"""Training losses on waveforms as ESPnet criteria; each takes ``name`` and ``only_for_test`` as ESPnet's own do.

criterions:
  - {name: compressed_spectrum, wrapper: fixed_order, wrapper_conf: {weight: 1.0}}
  - {name: pesq, wrapper: fixed_order, wrapper_conf: {weight: 0.03}}
  - {name: relative_l1, wrapper: fixed_order, wrapper_conf: {weight: 0.05}}

Logs call the losses ``pesq_loss`` and ``si_sdr_loss``: ``pesq`` and ``si_sdr`` are scores of enhanced utterances there.
"""

from typing import Optional, Sequence

from espnet2.enh.loss.criterions.time_domain import TimeDomainLoss
from torch import Tensor

from i2srf_kd.losses.multi_resolution import multi_resolution_loss
from i2srf_kd.losses.perceptual_quality import RATE, pesq_loss
from i2srf_kd.losses.waveform import relative_l1_loss, si_sdr_loss


class RelativeL1Criterion(TimeDomainLoss):
    """Mean absolute error over the mean magnitude of the reference (:mod:`i2srf_kd.losses.waveform`)."""

    def __init__(self, name: Optional[str] = None, only_for_test: bool = False):
        super().__init__(name or "relative_l1", only_for_test=only_for_test)

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Waveforms ``(B, samples)`` to ``(B,)``."""
        return relative_l1_loss(inf, ref)


class SISDRCriterion(TimeDomainLoss):
    """Negative SI-SDR in dB, means not removed, ratios beyond ``limit_db`` of little weight.

    ESPnet's own ``si_snr`` removes the means and has no limit.
    """

    def __init__(self, limit_db: float = 30.0, name: Optional[str] = None, only_for_test: bool = False):
        super().__init__(name or "si_sdr_loss", only_for_test=only_for_test)
        self.limit_db = float(limit_db)

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Waveforms ``(B, samples)`` to ``(B,)``."""
        return si_sdr_loss(inf, ref, self.limit_db)


class MultiResolutionCriterion(TimeDomainLoss):
    """Multi-resolution STFT loss (:mod:`i2srf_kd.losses.multi_resolution`) with Hann windows of ``sizes`` samples."""

    def __init__(
        self, sizes: Sequence[int] = (512, 1024, 2048), name: Optional[str] = None, only_for_test: bool = False
    ):
        super().__init__(name or "multi_resolution", only_for_test=only_for_test)
        if not sizes or any(not isinstance(size, int) or size < 16 for size in sizes):
            raise ValueError(f"multi_resolution: sizes must be windows of 16 samples or more, not {sizes}")
        self.sizes = tuple(sizes)

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Waveforms ``(B, samples)`` to ``(B,)``."""
        return multi_resolution_loss(inf, ref, self.sizes)


class PESQCriterion(TimeDomainLoss):
    """4.5 minus the raw score of differentiable wide-band PESQ (:mod:`i2srf_kd.losses.perceptual_quality`).

    A model that learns from it is judged by its own measure in WB-PESQ: read STOI, SI-SDR and DNSMOS beside it.
    """

    sample_rate = RATE

    def __init__(self, name: Optional[str] = None, only_for_test: bool = False):
        super().__init__(name or "pesq_loss", only_for_test=only_for_test)

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Waveforms ``(B, samples)`` at 16 kHz to ``(B,)``."""
        return pesq_loss(inf, ref)
