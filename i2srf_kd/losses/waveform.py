"""Losses on waveforms: relative L1 and negative SI-SDR."""

import torch
from torch import Tensor

_SILENCE = 1e-4  # mean magnitude, 80 dB below full scale
_USUAL = 0.05  # mean magnitude of speech


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


def negative_si_sdr(estimate: Tensor, reference: Tensor, limit_db: float = 30.0) -> Tensor:
    """Negative scale-invariant signal-to-distortion ratio (Le Roux et al., arXiv 1811.02508), means not removed.

    Args:
        estimate, reference: waveforms ``(B, samples)``.
        limit_db: ratios near and beyond it count less and less (soft maximum, as in Wisdom et al., arXiv 2006.12701),
            so that easy examples do not rule the gradient.

    Returns:
        dB, ``(B,)``; 0 where the reference is silent.
    """
    energy = reference.square().sum(1, keepdim=True)
    target = (estimate * reference).sum(1, keepdim=True) / energy.clamp(min=1e-8) * reference
    target_energy = target.square().sum(1)
    error_energy = (estimate - target).square().sum(1)
    floor = 10 ** (-limit_db / 10) * target_energy
    ratio = 10 * torch.log10((error_energy + floor + 1e-8) / (target_energy + 1e-8))
    return torch.where(energy.squeeze(1) > 1e-8, ratio, torch.zeros_like(ratio))
