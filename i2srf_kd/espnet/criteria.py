"""Training losses of the task as ESPnet criteria; each takes ``name`` and ``only_for_test`` as ESPnet's own do.

criterions:
  - {name: compressed_spectrum, wrapper: fixed_order, wrapper_conf: {weight: 1.0}}
  - {name: pesq, wrapper: fixed_order, wrapper_conf: {weight: 0.03}}
  - {name: relative_l1, wrapper: fixed_order, wrapper_conf: {weight: 0.05}}

Logs call the losses ``pesq_loss`` and ``si_sdr_loss``: ``pesq`` and ``si_sdr`` are scores of enhanced utterances there.
"""

from typing import Any, Optional, Sequence

import torch
from espnet2.enh.loss.criterions.tf_domain import FrequencyDomainLoss
from espnet2.enh.loss.criterions.time_domain import TimeDomainLoss
from torch import Tensor

from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.losses.multi_resolution import multi_resolution_loss
from i2srf_kd.losses.perceptual_quality import RATE, pesq_loss
from i2srf_kd.losses.waveform import relative_l1_loss, si_sdr_loss
from i2srf_kd.nets.stft import STFT
from i2srf_kd.system.errors import UserError


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
