"""SI-SDR and segmental SNR, in numpy and float64."""

from typing import Tuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

INT16_SCALE = 32768.0
_EPS = float(np.finfo(np.float64).eps)
_FRAME_SECONDS = 0.03
_SSNR_RANGE = (-10.0, 35.0)


def as_pair(reference: ArrayLike, estimate: ArrayLike) -> Tuple[Array, Array]:
    """Check a pair of waveforms and return both as float64 in the scale of [-1, 1].

    int16 arrays are divided by 32768; floating-point arrays are taken as they are.

    Args:
        reference: clean waveform, ``(samples,)``.
        estimate: waveform to be judged, ``(samples,)``.

    Raises:
        ValueError: not one-dimensional, different lengths, empty, NaN or infinity, or a floating-point reference that
            is plainly on the int16 scale.
    """
    pair = []
    for name, given in (("reference", reference), ("estimate", estimate)):
        wave = np.asarray(given)
        if wave.ndim != 1:
            raise ValueError(f"{name} has shape {wave.shape}, expected one channel of shape (samples,)")
        if wave.size == 0:
            raise ValueError(f"{name} has no samples")
        if np.issubdtype(wave.dtype, np.integer) and wave.dtype != np.int16:
            raise ValueError(f"{name} has type {wave.dtype}; give int16 or floating point in [-1, 1]")
        scale = INT16_SCALE if wave.dtype == np.int16 else 1.0
        wave = wave.astype(np.float64) / scale
        if not np.isfinite(wave).all():
            raise ValueError(f"{name} has {int((~np.isfinite(wave)).sum())} samples that are NaN or infinite")
        pair.append(wave)
    if len(pair[0]) != len(pair[1]):
        raise ValueError(f"reference has {len(pair[0])} samples but estimate has {len(pair[1])}")
    if np.abs(pair[0]).max() > 32.0:
        raise ValueError(f"reference reaches {np.abs(pair[0]).max():g}: floating-point waveforms must lie in [-1, 1]")
    return pair[0], pair[1]


def frame_pair(reference: Array, estimate: Array, fs: int) -> Tuple[Array, Array]:
    """Cut two waveforms into Hann-windowed frames of 30 ms with 75 % overlap, the frames of Loizou's measures.

    As there, the window has no zero end points, and the last complete frame is left out.

    Returns:
        Two arrays ``(frames, window)``; no frames if the waveform is shorter than one window and one hop.
    """
    window_length = round(_FRAME_SECONDS * fs)
    hop = window_length // 4
    count = max(0, (len(reference) - window_length) // hop)
    if count == 0:
        return np.zeros((0, window_length)), np.zeros((0, window_length))
    window = np.hanning(window_length + 2)[1:-1]
    views = np.lib.stride_tricks.sliding_window_view(np.stack([reference, estimate]), window_length, axis=1)
    frames = views[:, : count * hop : hop] * window
    return frames[0], frames[1]


def si_sdr(reference: ArrayLike, estimate: ArrayLike, zero_mean: bool = False) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., ICASSP 2019, arXiv 1811.02508).

    Args:
        reference: clean waveform, ``(samples,)``.
        estimate: enhanced waveform, ``(samples,)``.
        zero_mean: remove the mean of both first. The paper's definition does not; torchmetrics' SI-SNR does. The two
            differ where a recording has an offset, so a table must say which one it holds.

    Returns:
        dB. NaN if the reference or the estimate is silent, where the ratio is undefined. Kept within about
        +-156.5 dB, the resolution of float64, so that a perfect estimate does not turn a mean into infinity.
    """
    ref, est = as_pair(reference, estimate)
    if zero_mean:
        ref, est = ref - ref.mean(), est - est.mean()
    energy = float(ref @ ref)
    if energy == 0.0 or not est.any():
        return float("nan")
    target = (float(est @ ref) / energy) * ref
    error = est - target
    target_energy, error_energy = float(target @ target), float(error @ error)
    if target_energy + error_energy == 0.0:
        return float("nan")
    ratio = max(target_energy, _EPS * error_energy) / max(error_energy, _EPS * target_energy)
    return float(10.0 * np.log10(ratio))


def segmental_snr(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Segmental SNR: mean over frames of the SNR in dB, each clamped to [-10, 35].

    After Loizou, Speech Enhancement, 2nd edition. Computed at int16 scale as in the MATLAB original, whose small
    constants then stay far below one quantisation step. A frame that is silent in both waveforms counts -10 dB there,
    and so it does here.

    Args:
        reference: clean waveform, ``(samples,)``.
        estimate: enhanced waveform, ``(samples,)``.
        fs: sampling rate in Hz.

    Returns:
        dB; NaN for a waveform too short for one frame.
    """
    ref, est = as_pair(reference, estimate)
    clean, enhanced = frame_pair(ref * INT16_SCALE + _EPS, est * INT16_SCALE + _EPS, fs)
    if not len(clean):
        return float("nan")
    signal = np.square(clean).sum(axis=1)
    noise = np.square(clean - enhanced).sum(axis=1)
    ratio = 10.0 * np.log10(signal / (noise + _EPS) + _EPS)
    return float(np.clip(ratio, *_SSNR_RANGE).mean())
