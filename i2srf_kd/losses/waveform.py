"""Losses on waveforms: relative L1 and negative SI-SDR."""

import torch
from torch import Tensor

_SILENCE = 1e-4  # mean magnitude, 80 dB below full scale
_USUAL = 0.05  # mean magnitude of speech
_SILENT_ENERGY = 1e-8


def relative_l1_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute error over the mean magnitude of the reference, so that loud and quiet recordings count alike.

    Args:
        estimate, reference: waveforms ``(B, samples)``, full scale 1.

    Returns:
        ``(B,)``. 1 for a silent estimate. Where the reference is silent, the error is relative to usual speech: else
        such an example would rule its batch.
    """
    level = reference.abs().mean(1)
    level = torch.where(level < _SILENCE, torch.full_like(level, _USUAL), level)
    return (estimate - reference).abs().mean(1) / level


def negative_si_sdr(estimate: Tensor, target: Tensor, limit_db: float = 30.0) -> Tensor:
    """Negative scale-invariant signal-to-distortion ratio (Le Roux et al., arXiv 1811.02508), means not removed.

    Args:
        estimate, target: waveforms ``(B, samples)``.
        limit_db: ratios near and beyond it count less and less (soft maximum, as in Wisdom et al., arXiv 2006.12701),
            so that easy examples do not rule the gradient, which stays finite as the estimate reaches the target.

    Returns:
        dB, ``(B,)``; 0 where both are silent.
    """
    scale = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + _SILENT_ENERGY)
    projection = scale * target
    energy = projection.square().sum(-1)
    error = (estimate - projection).square().sum(-1)
    floored = error + 10 ** (-limit_db / 10) * energy
    return 10 * torch.log10((floored + _SILENT_ENERGY) / (energy + _SILENT_ENERGY))


def si_sdr_loss(estimate: Tensor, reference: Tensor, limit_db: float = 30.0) -> Tensor:
    """:func:`negative_si_sdr`, but 0 where the reference is silent: such an example would rule its batch."""
    ratio = negative_si_sdr(estimate, reference, limit_db)
    return torch.where(reference.square().sum(-1) > _SILENT_ENERGY, ratio, torch.zeros_like(ratio))
