"""Multi-resolution STFT loss (Yamamoto, Song and Kim, "Parallel WaveGAN", ICASSP 2020, arXiv 1910.11480)."""

from typing import Sequence

import torch
from torch import Tensor

_SILENCE = 1e-4  # peak, 80 dB below full scale
_FLOOR = 1e-7  # added to the power spectrum: the logarithm and the square root stay finite in empty bins


def multi_resolution_loss(estimate: Tensor, reference: Tensor, sizes: Sequence[int] = (512, 1024, 2048)) -> Tensor:
    """Spectral convergence plus mean difference of log magnitudes, averaged over several window sizes.

    Args:
        estimate, reference: waveforms ``(B, samples)``.
        sizes: Hann windows in samples; the hop is a quarter of each.

    Returns:
        ``(B,)``. Where the reference is silent, the log magnitudes alone.
    """
    return torch.stack([_one_resolution(estimate, reference, size) for size in sizes]).mean(0)


def _one_resolution(estimate: Tensor, reference: Tensor, size: int) -> Tensor:
    estimated, wanted = _magnitude(estimate, size), _magnitude(reference, size)
    difference = (estimated - wanted).square().sum((1, 2)).clamp(min=1e-12).sqrt()
    convergence = difference / wanted.square().sum((1, 2)).sqrt()
    # Relative to silence it would rule the batch.
    convergence = torch.where(reference.abs().amax(1) > _SILENCE, convergence, torch.zeros_like(convergence))
    return convergence + (estimated.log() - wanted.log()).abs().mean((1, 2))


def _magnitude(waveform: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=waveform.device, dtype=waveform.dtype)
    spectrum = torch.stft(waveform, size, size // 4, window=window, return_complex=True, pad_mode="constant")
    return (torch.view_as_real(spectrum).square().sum(-1) + _FLOOR).sqrt()
