"""Differentiable wide-band PESQ: the perceptual model of ITU-T P.862 with the input filter and mapping of P.862.2.

It follows the Recommendation's description from level alignment to score, in the order of the functions below, for
16 kHz. What is left out: time alignment, since an enhanced recording is aligned with its reference; the repeated
treatment of badly aligned stretches; and the lower weight of the beginning of recordings longer than 16 s. Bark bands
and their widths come from Zwicker's critical bands instead of the Recommendation's tables.
"""

import math
from functools import cache
from typing import NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

RATE = 16000
_WINDOW, _HOP = 512, 256
_FULL_SCALE = 32768.0
_LISTENING_POWER = 1e7  # of the band below, at the scale of 16-bit samples
_LEVEL_BAND = (350.0, 3250.0)  # Hz
_PADDING = 5120  # samples that the level alignment counts beyond the recording
# High-pass of P.862.2: flat above 100 Hz.
_HIGH_PASS = ((2.740826, -5.4816519, 2.740826), (1.0, -1.9444777, 0.94597794))
_POWER_SCALE = 6.910853e-6
_LOUDNESS_SCALE = 0.1866055
_ZWICKER_POWER = 0.23
# Edges of the critical bands in Hz: edge number z lies at z Bark (Zwicker, JASA 33, 1961).
_CRITICAL_BANDS = (
    0, 100, 200, 300, 400, 510, 630, 770, 920, 1080, 1270, 1480, 1720, 2000, 2320, 2700, 3150, 3700, 4400, 5300, 6400,
    7700, 9500,
)  # fmt: skip
# Hearing threshold of each band in dB of the model's power density, from low to high bands (P.862). The band below them
# holds the offset alone, which does not count.
_THRESHOLD_DB = (
    63.9, 48.5, 36.9, 30.7, 25.9, 20.2, 16.6, 12.5, 9.9, 6.9, 4.9, 2.8, 1.0, -0.1, -1.4, -2.5, -3.4, -4.1, -4.8,
    -5.3, -5.7, -5.9, -6.0, -6.0, -6.0, -6.0, -5.8, -5.4, -5.1, -4.7, -4.3, -4.0, -3.6, -3.3, -3.1, -3.0, -3.0, -2.9,
    -2.8, -2.8, -2.8, -2.9, -3.2, -3.7, -4.3, -4.4, -3.8, -2.7,
)  # fmt: skip
_ROOT_FLOOR = 1e-12  # under roots: the gradient of a perfect estimate stays finite


class _Bands(NamedTuple):
    """What the model knows of its bands, each ``(bands,)`` but for the matrix ``(bins, bands)``."""

    matrix: Tensor
    threshold: Tensor
    exponent: Tensor
    width: Tensor  # Bark


def pesq_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    """Perceptual disturbance: 4.5 minus the raw PESQ score, 0 for a perfect estimate.

    Args:
        estimate, reference: waveforms ``(B, samples)`` at 16 kHz, full scale 1, at least 512 samples.

    Returns:
        ``(B,)``. A silent reference gives 0 and no gradient: the model is of heard speech.
    """
    disturbance = _disturbance(estimate, reference)
    return torch.where(reference.abs().amax(1) > 0, disturbance, torch.zeros_like(disturbance))


def pesq_score(estimate: Tensor, reference: Tensor) -> Tensor:
    """MOS-LQO by P.862.2, about 1.04 to 4.64; arguments as for :func:`pesq_loss`, ``(B,)``."""
    raw = 4.5 - _disturbance(estimate, reference)
    return 0.999 + 4.0 / (1.0 + torch.exp(-1.3669 * raw + 3.8224))


def _disturbance(estimate: Tensor, reference: Tensor) -> Tensor:
    if estimate.shape != reference.shape or estimate.dim() != 2 or estimate.shape[1] < _WINDOW:
        raise ValueError(
            f"differentiable PESQ compares waveforms (B, samples) of at least {_WINDOW} samples, not "
            f"{tuple(estimate.shape)} and {tuple(reference.shape)}"
        )
    with torch.autocast(estimate.device.type, enabled=False):
        bands = _bands(estimate.device)
        levelled = [_at_listening_level(waveform.float()) for waveform in (estimate, reference)]
        degraded, clean = (_power_density(waveform, bands) for waveform in levelled)
        clean = _equalised(clean, degraded, bands)
        degraded, audible = _gain_compensated(clean, degraded, bands)
        symmetric, asymmetric = _frame_disturbances(clean, degraded, bands)
        weight = ((audible + 1e5) / 1e7) ** 0.04
        symmetric, asymmetric = ((d / weight).clamp(max=45.0) for d in (symmetric, asymmetric))
        first, count = _heard_frames(levelled[1], symmetric.shape[1])
        return 0.1 * _over_time(symmetric, first, count) + 0.0309 * _over_time(asymmetric, first, count)


def _at_listening_level(waveform: Tensor) -> Tensor:
    """The waveform at the level of the model, through the high-pass of P.862.2."""
    samples = waveform.shape[1]
    size = -(-(samples + _WINDOW) // 1024) * 1024  # room for the filter's response, and a fast transform
    spectrum = torch.fft.rfft(waveform * _FULL_SCALE, n=size)
    low, high = math.ceil(_LEVEL_BAND[0] * size / RATE), math.floor(_LEVEL_BAND[1] * size / RATE) + 1
    energy = 2 * torch.view_as_real(spectrum[:, low:high]).square().sum((1, 2)) / size
    power = energy / (samples + _PADDING)
    # What is below one step of 16 bits is silence and stays so.
    gain = torch.sqrt(_LISTENING_POWER / power.clamp(min=1.0))
    delay = torch.exp(-2j * math.pi * torch.arange(size // 2 + 1, device=waveform.device) / size)
    numerator, denominator = (sum(c * delay**k for k, c in enumerate(part)) for part in _HIGH_PASS)
    filtered = spectrum * (gain[:, None] * (numerator / denominator))
    return torch.fft.irfft(filtered, n=size)[:, :samples]


def _power_density(waveform: Tensor, bands: _Bands) -> Tensor:
    """Power density on the Bark scale, ``(B, T, bands)``."""
    window = torch.hann_window(_WINDOW, device=waveform.device)
    frames = torch.fft.rfft(waveform.unfold(1, _WINDOW, _HOP) * window)
    return _POWER_SCALE * torch.view_as_real(frames).square().sum(-1) @ bands.matrix


def _equalised(clean: Tensor, degraded: Tensor, bands: _Bands) -> Tensor:
    """The reference with the frequency response of the estimate, as far as a listener forgives it."""
    active = _audible(clean, bands, 100.0) >= 1e7
    means = []
    for density in (clean, degraded):
        heard = active.unsqueeze(-1) & (density > 100.0 * bands.threshold)
        means.append((density * heard).mean(1, keepdim=True))
    response = (means[1] + 1000.0) / (means[0] + 1000.0)
    return clean * response.clamp(0.01, 100.0)


def _gain_compensated(clean: Tensor, degraded: Tensor, bands: _Bands) -> Tuple[Tensor, Tensor]:
    """The estimate without short-time changes of gain, and the audible power of the reference ``(B, T)``."""
    audible = _audible(clean, bands)
    gain = (audible + 5e3) / (_audible(degraded, bands) + 5e3)
    # First-order smoothing, 0.8 of the present frame; the rest of its response is below 1e-5.
    kernel = 0.8 * 0.2 ** torch.arange(7, -1, -1, device=gain.device, dtype=gain.dtype)
    padded = functional.pad(gain[:, None], (7, 0), mode="replicate")
    gain = functional.conv1d(padded, kernel[None, None])[:, 0]
    return degraded * gain.clamp(3e-4, 5.0).unsqueeze(-1), audible


def _frame_disturbances(clean: Tensor, degraded: Tensor, bands: _Bands) -> Tuple[Tensor, Tensor]:
    """Symmetric and asymmetric disturbance of each frame, ``(B, T)`` each."""
    heard, wanted = _loudness(degraded, bands), _loudness(clean, bands)
    difference = heard - wanted
    masked = 0.25 * torch.minimum(heard, wanted)
    difference = functional.relu(difference - masked) - functional.relu(-difference - masked)
    # What is added disturbs more than what is missing.
    factor = ((degraded + 50.0) / (clean + 50.0)) ** 1.2
    factor = torch.where(factor < 3.0, torch.zeros_like(factor), factor.clamp(max=12.0))
    weighted, total = difference.abs() * bands.width, bands.width.sum()
    symmetric = (weighted.square().sum(-1) / total + _ROOT_FLOOR).sqrt() * total
    asymmetric = (weighted * factor).sum(-1)
    return symmetric, asymmetric


def _loudness(density: Tensor, bands: _Bands) -> Tensor:
    """Zwicker's specific loudness, 0 below the hearing threshold."""
    level = (density / bands.threshold).clamp(min=1.0)
    return _LOUDNESS_SCALE * (2 * bands.threshold) ** bands.exponent * ((0.5 + 0.5 * level) ** bands.exponent - 1.0)


def _audible(density: Tensor, bands: _Bands, factor: float = 1.0) -> Tensor:
    """Power above ``factor`` times the hearing threshold, ``(B, T)``."""
    return (density * (density > factor * bands.threshold)).sum(-1)


def _heard_frames(waveform: Tensor, frames: int) -> Tuple[Tensor, Tensor]:
    """First frame and number of frames between the silences at both ends of a reference, ``(B,)`` each."""
    loud = waveform.abs().unfold(1, 5, 1).sum(-1) >= 500.0
    skipped_first, skipped_last = (side.to(torch.uint8).argmax(1) for side in (loud, loud.flip(1)))
    first = (skipped_first // _HOP).clamp(max=frames - 1)
    last = ((waveform.shape[1] - skipped_last) // _HOP - 1).clamp(max=frames - 1)
    return first, (last - first + 1).clamp(min=1)


def _over_time(disturbance: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """Sixth-power mean in stretches of 20 frames (0.32 s), every 10 frames, and quadratic mean over these; ``(B,)``."""
    frames = disturbance.shape[1]
    place = torch.arange(-(-frames // 10) * 10 + 10, device=disturbance.device)
    shifted = disturbance.gather(1, (first[:, None] + place).clamp(max=frames - 1))
    stretches = (shifted / 45.0 * (place < count[:, None])).unfold(1, 20, 10)
    peaks = ((stretches**6).mean(-1) + _ROOT_FLOOR**2.5) ** (1 / 3)
    inside = place[: stretches.shape[1]] * 10 < count[:, None]
    return 45.0 * ((peaks * inside).sum(1) / inside.sum(1)).sqrt()


@cache
def _bands(device: torch.device) -> _Bands:
    number = np.arange(len(_THRESHOLD_DB))
    # Bark: bands grow with their number, and the offset's half band lies below them.
    width = 0.3180 + 0.00448 * number + 2.5e-5 * number**2
    edges_bark = 0.1573 + np.concatenate([[0.0], np.cumsum(width)])
    centre = (edges_bark[:-1] + edges_bark[1:]) / 2
    scale = np.arange(len(_CRITICAL_BANDS))
    edges = np.round(np.interp(edges_bark, scale, _CRITICAL_BANDS) * _WINDOW / RATE).astype(int)
    edges[0], edges[-1] = 1, _WINDOW // 2
    hz_per_bark = np.interp(centre, scale[:-1] + 0.5, np.diff(_CRITICAL_BANDS))
    matrix = np.zeros((_WINDOW // 2 + 1, len(number)))
    for band, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        matrix[low:high, band] = hz_per_bark[band] / (high - low)
    exponent = _ZWICKER_POWER * np.where(centre < 4, np.minimum(6 / (centre + 2), 2.0), 1.0) ** 0.15
    threshold = 10 ** (np.array(_THRESHOLD_DB) / 10)
    values = (matrix, threshold, exponent, width)
    with torch.inference_mode(False):  # autograd keeps them
        return _Bands(*(torch.tensor(value, dtype=torch.float32, device=device) for value in values))
