"""Whether calibration weights follow the speech: their correlation with what a frame of the signal is like.

Recorded by every training (``diagnostics.jsonl``), to see whether weights that should follow the characteristics of
speech do. Ours.
"""

import math
from typing import Dict

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-10
_SNR_LIMIT = 40.0  # dB, either way
_WINDOW_SECONDS = 0.04
_PITCH_HZ = (60.0, 400.0)


def frame_characteristics(mixture: Tensor, reference: Tensor, frames: int, fs: int) -> Dict[str, Tensor]:
    """What each frame of a clip is like.

    Args:
        mixture, reference: ``(B, samples)``.
        frames: number of frames, evenly spaced from the first sample to the last.
        fs: sampling rate in Hz.

    Returns:
        ``(B, frames)`` each: ``level`` of the reference in dBFS, ``snr`` in dB, at most 40 either way, and ``voicing``,
        the largest normalised autocorrelation of the reference at a lag of 60 to 400 Hz.
    """
    speech, noise = (_cut(signal, frames, fs) for signal in (reference, mixture - reference))
    energy = speech.square().mean(-1)
    level = 10 * torch.log10(energy + _FLOOR)
    snr = level - 10 * torch.log10(noise.square().mean(-1) + _FLOOR)
    return {"level": level, "snr": snr.clamp(-_SNR_LIMIT, _SNR_LIMIT), "voicing": _voicing(speech, fs)}


def _cut(signal: Tensor, frames: int, fs: int) -> Tensor:
    """Windows of 40 ms around the frames: ``(B, samples)`` to ``(B, frames, window)``."""
    window = max(2, round(_WINDOW_SECONDS * fs))
    padded = F.pad(signal, (window // 2, window - window // 2))
    starts = torch.linspace(0, signal.shape[1], frames, device=signal.device).long().clamp_max(padded.shape[1] - window)
    return padded.unfold(1, window, 1)[:, starts]


def _voicing(windows: Tensor, fs: int) -> Tensor:
    """``(B, frames, window)`` to ``(B, frames)``."""
    size = windows.shape[-1]
    centred = windows - windows.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * size)
    correlation = torch.fft.irfft(spectrum.abs().square(), n=2 * size)[..., :size]
    overlap = torch.arange(size, 0, -1, device=windows.device, dtype=windows.dtype) / size
    low, high = (min(size - 1, round(fs / pitch)) for pitch in reversed(_PITCH_HZ))
    # A window of silence has no pitch.
    normalised = correlation / (overlap * correlation[..., :1] + _FLOOR)
    return normalised[..., low : high + 1].amax(-1).clamp(0, 1)


def correlation(weights: Tensor, characteristic: Tensor) -> Tensor:
    """Pearson correlation over clips and frames, 0 where one of both is constant: ``(Ns, Nt)``.

    Args:
        weights: ``(B, T, Ns, Nt)``.
        characteristic: ``(B, T)``.
    """
    values = weights.flatten(0, 1).double()  # (B * T, Ns, Nt)
    values = values - values.mean(0)
    other = characteristic.flatten().double()
    other = (other - other.mean())[:, None, None]
    scale = (values.square().sum(0) * other.square().sum(0)).sqrt()
    r = (values * other).sum(0) / scale.clamp_min(math.sqrt(torch.finfo(torch.float64).tiny))
    # Rounding alone makes constant weights vary by about one part in 1e7.
    constant = values.square().mean(0).sqrt() < 1e-6
    return torch.where(constant, torch.zeros_like(r), r)
