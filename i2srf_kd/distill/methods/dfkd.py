"""DFKD: another loss below and above a border that follows the signal (arXiv 2502.04711)."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from i2srf_kd.distill.matching import check_number, full_precision
from i2srf_kd.distill.method import DistillMethod, Layout, Side, register_method
from i2srf_kd.distill.methods.response import require_same_shape
from i2srf_kd.losses.compressed_spectrum import compress

# Bands below this energy count as silent: they have no direction to imitate.
_SILENT_ENERGY = 1e-8
_LENGTH_FLOOR = 0.01


def low_band(magnitude: Tensor) -> Tensor:
    """True at the bins of the low band, ``(B, T, F)`` from magnitudes ``(B, T, F)``.

    The cumulative maximum over frequency rises fastest from one bin to the next; the bin it rises to is the last one
    of the low band. Where it never rises, that is bin 1.
    """
    rise = magnitude.cummax(-1).values.diff(dim=-1)
    border = rise.argmax(-1, keepdim=True) + 1
    return torch.arange(magnitude.shape[-1], device=magnitude.device) <= border


def band_cosine_distance(student: Tensor, teacher: Tensor, band: Tensor) -> Tensor:
    """``1 - cos`` of both spectra inside the band: ``(B, T, F, 2)`` and ``(B, T, F)`` to ``(B, T)``; 0 for silence."""
    ours, theirs = (torch.where(band.unsqueeze(-1), x, 0).flatten(2) for x in (student, teacher))
    target_energy = theirs.square().sum(-1)
    silent = target_energy <= _SILENT_ENERGY
    # The student's length has a floor relative to the teacher's: the gradient stays bounded where it is silent.
    energy = torch.maximum(ours.square().sum(-1), _LENGTH_FLOOR**2 * target_energy)
    product = torch.where(silent, 1, energy * target_energy)
    return torch.where(silent, 0, 1 - (ours * theirs).sum(-1) * product.rsqrt())


@register_method("dfkd")
class DynamicFrequency(DistillMethod):
    """DFKD: the enhanced band is split per frame; direction below the border, direction and value above it.

    Definition, for compressed spectra s and t ``(B, T, F, 2)``: per frame, the border is where the cumulative maximum
    of the teacher's magnitude over frequency rises fastest. Low band: ``1 - cos(s, t)``. High band:
    ``(1 - mse_share) (1 - cos(s, t)) + mse_share * MSE(s, t)``. Both are means over clips and frames; a cosine is that
    of the vector of the band's real and imaginary parts.

    Source: dynamic frequency-adaptive distillation, arXiv 2502.04711. Our reading of what is public: the networks'
    outputs are compared, as compressed spectra; the bin that the fastest rise leads to belongs to the low band; bands
    in which the teacher is silent count 0.

        method: dfkd
        method_conf: {mse_share: 0.5, power: 0.3}
        weight: 1.0

    Args:
        mse_share: share of the squared error in the high band.
        power: exponent of the magnitude; 1 compares plain spectra.
        floor: added to the power spectrum.

    Raises:
        ValueError: for options out of range, or networks whose spectra have different shapes.
    """

    needs = ("spectrum",)
    source = "arXiv 2502.04711, our reading"

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        mse_share: float = 0.5,
        power: float = 0.3,
        floor: float = 1e-10,
    ):
        super().__init__(student, teacher)
        check_number("mse_share", mse_share, 0, 1)
        check_number("power", power, 0, 1, above=True)
        check_number("floor", floor, 0, above=True)
        self.mse_share, self.power, self.floor = float(mse_share), float(power), float(floor)

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        require_same_shape("spectrum", student.spectrum, teacher.spectrum)
        assert student.spectrum is not None and teacher.spectrum is not None
        with torch.autocast(student.spectrum.device.type, enabled=False):
            _, ours = self._compress(student.spectrum)
            magnitude, theirs = self._compress(teacher.spectrum.detach())
            low = low_band(magnitude)
            error = torch.where(low, 0, (ours - theirs).square().mean(-1)).sum(-1)
            error = error / (~low).sum(-1).clamp_min(1)
            high = (1 - self.mse_share) * band_cosine_distance(ours, theirs, ~low) + self.mse_share * error
            return {"low": band_cosine_distance(ours, theirs, low).mean(), "high": high.mean()}

    def _compress(self, spectrum: Tensor) -> Tuple[Tensor, Tensor]:
        return compress(full_precision(spectrum).movedim(1, -1), self.power, self.floor)
