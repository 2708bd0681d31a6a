"""LLR, WSS and the composite measures CSIG, CBAK and COVL (Hu and Loizou, IEEE TASLP 16(1), 2008).

**Scale.** The MATLAB original works on int16 sample values, and its WSS divides the frames by 32768 before band
energies are floored at 1e-10. A widely copied script keeps that division although its input is already in [-1, 1]:
energies then sink by 90 dB, weak bands fall to the floor in both signals, their spectral slopes agree, WSS comes out
too small and CSIG, CBAK and COVL too high. Here waveforms in [-1, 1] are brought to the int16 scale first, so the
division gives back [-1, 1] once. Published values from the copied script are therefore not comparable with these.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.metrics.signal import INT16_SCALE, Array, as_pair, frame_pair, segmental_snr

_EPS = float(np.finfo(np.float64).eps)
_KEPT_SHARE = 0.95
_ENERGY_FLOOR = 1e-10
_GLOBAL_PEAK_WEIGHT = 20.0
_LOCAL_PEAK_WEIGHT = 1.0

# Critical bands of Klatt's weighted spectral slope distance: centres and bandwidths in Hz.
_CENTRES = np.array(
    [50.0, 120.0, 190.0, 260.0, 330.0, 400.0, 470.0, 540.0, 617.372, 703.378, 798.717, 904.128, 1020.38, 1148.30]
    + [1288.72, 1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63]
)
_BANDWIDTHS = np.array(
    [70.0] * 7
    + [77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154, 183.457, 199.776, 217.153]
    + [235.631, 255.255, 276.072, 298.126, 321.465, 346.136]
)


class Composite(NamedTuple):
    """Predicted mean opinion scores in [1, 5]."""

    csig: float
    """Signal distortion."""
    cbak: float
    """Background intrusiveness."""
    covl: float
    """Overall quality."""


def _trimmed_mean(distances: Array) -> float:
    """Mean of the 95 % smallest frame distances; NaN without frames."""
    kept = int(np.floor(len(distances) * _KEPT_SHARE + 0.5))  # MATLAB rounds halves up
    return float(np.sort(distances)[:kept].mean()) if kept else float("nan")


def _autocorrelation(frames: Array, order: int) -> Array:
    """Lags 0..order of every frame: ``(frames, window)`` to ``(frames, order + 1)``."""
    window = frames.shape[1]
    lags = [np.einsum("nw,nw->n", frames[:, : window - lag], frames[:, lag:]) for lag in range(order + 1)]
    return np.stack(lags, axis=1)


def _prediction_filter(correlation: Array) -> Array:
    """Levinson-Durbin recursion over all frames at once: lags ``(frames, P + 1)`` to filters of the same shape."""
    order = correlation.shape[1] - 1
    filters = np.zeros_like(correlation)
    filters[:, 0] = 1.0
    error = correlation[:, 0].copy()
    for step in range(1, order + 1):
        mismatch = np.einsum("nk,nk->n", filters[:, :step], correlation[:, step:0:-1])
        reflection = -mismatch / error
        filters[:, 1 : step + 1] += reflection[:, None] * filters[:, step - 1 :: -1][:, :step]
        error *= 1.0 - reflection**2
    return filters


def frame_llr(reference: ArrayLike, estimate: ArrayLike, fs: int) -> Array:
    """Log-likelihood ratio of every frame, ``(frames,)``; see :func:`llr`."""
    ref, est = as_pair(reference, estimate)
    # The constant keeps digital silence solvable, as in the original.
    clean, enhanced = frame_pair(ref * INT16_SCALE + _EPS, est * INT16_SCALE + _EPS, fs)
    order = 16 if fs >= 10000 else 10
    clean_lags = _autocorrelation(clean, order)
    lag = np.abs(np.subtract.outer(np.arange(order + 1), np.arange(order + 1)))
    toeplitz = clean_lags[:, lag]

    def residual(filters: Array) -> Array:
        return np.einsum("ni,nij,nj->n", filters, toeplitz, filters)

    with np.errstate(divide="ignore", invalid="ignore"):
        enhanced_filters = _prediction_filter(_autocorrelation(enhanced, order))
        ratio = residual(enhanced_filters) / residual(_prediction_filter(clean_lags))
        # A perfectly predictable frame leaves rounding noise: count it among the worst frames.
        return np.log(np.where(ratio > 0.0, ratio, 1000.0))


def llr(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Log-likelihood ratio of the linear predictors of clean and enhanced speech, mean of the 95 % smallest frames.

    Order 16 from 10 kHz on, 10 below. Frames are not capped at 2, as in the composite measure (Loizou's separate
    LLR routine caps them).

    Args:
        reference: clean waveform, ``(samples,)``, in [-1, 1] or int16.
        estimate: enhanced waveform of the same length.
        fs: sampling rate in Hz.

    Returns:
        0 for equal spectra, growing with distortion; NaN for a waveform too short for one frame.
    """
    return _trimmed_mean(frame_llr(reference, estimate, fs))


def _critical_band_filters(fft_length: int, fs: int) -> Array:
    """Gaussian-shaped bands, cut 30 dB below their peak: ``(25, fft_length / 2)``."""
    bins_per_hz = fft_length / fs
    distance = np.arange(fft_length // 2) - np.floor(_CENTRES * bins_per_hz)[:, None]
    gain = np.log(_BANDWIDTHS[0] / _BANDWIDTHS)[:, None]
    filters = np.exp(-11.0 * np.square(distance / (_BANDWIDTHS * bins_per_hz)[:, None]) + gain)
    return filters * (filters > np.exp(-30.0 / (2.0 * 2.303)))


def _slope_weights(levels: Array, slopes: Array) -> Array:
    """Klatt's weights: bands near the highest and near the closest spectral peak count most. ``(frames, 24)``.

    The closest peak lies uphill. On a rising slope the original takes the band just before the top; this is kept.
    """
    bands = slopes.shape[1]
    rising = slopes > 0
    own = levels[:, :bands]
    uphill, downhill = own.copy(), own.copy()
    for band in range(bands - 2, -1, -1):
        uphill[:, band] = np.where(rising[:, band + 1], uphill[:, band + 1], own[:, band])
    for band in range(1, bands):
        downhill[:, band] = np.where(rising[:, band - 1], own[:, band], downhill[:, band - 1])
    local_peak = np.where(rising, uphill, downhill)
    global_peak = levels.max(axis=1, keepdims=True)
    by_global = _GLOBAL_PEAK_WEIGHT / (_GLOBAL_PEAK_WEIGHT + global_peak - own)
    by_local = _LOCAL_PEAK_WEIGHT / (_LOCAL_PEAK_WEIGHT + local_peak - own)
    return by_global * by_local


def frame_wss(reference: ArrayLike, estimate: ArrayLike, fs: int) -> Array:
    """Weighted spectral slope distance of every frame, ``(frames,)``; see :func:`wss`."""
    ref, est = as_pair(reference, estimate)
    frames = frame_pair(ref * INT16_SCALE + _EPS, est * INT16_SCALE + _EPS, fs)
    fft_length = 1 << int(np.ceil(np.log2(2 * frames[0].shape[1])))
    filters = _critical_band_filters(fft_length, fs).T
    slopes, weights = [], []
    for signal in frames:
        power = np.square(np.abs(np.fft.rfft(signal / INT16_SCALE, fft_length, axis=1)[:, :-1]))
        levels = 10.0 * np.log10(np.maximum(power @ filters, _ENERGY_FLOOR))
        slopes.append(np.diff(levels, axis=1))
        weights.append(_slope_weights(levels, slopes[-1]))
    weight = (weights[0] + weights[1]) / 2.0
    return np.sum(weight * np.square(slopes[0] - slopes[1]), axis=1) / np.sum(weight, axis=1)


def wss(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Weighted spectral slope distance (Klatt, ICASSP 1982) over 25 critical bands, mean of the 95 % smallest frames.

    Depends on the absolute level through the floor of the band energies; see the note on scale at the top.

    Args:
        reference: clean waveform, ``(samples,)``, in [-1, 1] or int16.
        estimate: enhanced waveform of the same length.
        fs: sampling rate in Hz, at least 8000.

    Returns:
        0 for equal spectra, growing with distortion; NaN for a waveform too short for one frame.
    """
    return _trimmed_mean(frame_wss(reference, estimate, fs))


def combine(pesq: float, llr_value: float, wss_value: float, ssnr: float) -> Composite:
    """Regressions of Hu and Loizou (2008), each clipped to the opinion scale [1, 5].

    Args:
        pesq: WB-PESQ (the original used narrow band; the VoiceBank-DEMAND literature uses wide band).
        llr_value: :func:`llr`.
        wss_value: :func:`wss`.
        ssnr: :func:`~i2srf_kd.metrics.signal.segmental_snr` in dB.

    Returns:
        NaN in every field that depends on a NaN.
    """
    scores = (
        3.093 - 1.029 * llr_value + 0.603 * pesq - 0.009 * wss_value,
        1.634 + 0.478 * pesq - 0.007 * wss_value + 0.063 * ssnr,
        1.594 + 0.805 * pesq - 0.512 * llr_value - 0.007 * wss_value,
    )
    return Composite(*(float(np.clip(score, 1.0, 5.0)) for score in scores))


def composite(reference: ArrayLike, estimate: ArrayLike, fs: int, pesq: float) -> Composite:
    """CSIG, CBAK and COVL of one utterance, given its WB-PESQ.

    Args:
        reference: clean waveform, ``(samples,)``, in [-1, 1] or int16.
        estimate: enhanced waveform of the same length.
        fs: sampling rate in Hz.
        pesq: WB-PESQ of the same pair.
    """
    return combine(
        pesq, llr(reference, estimate, fs), wss(reference, estimate, fs), segmental_snr(reference, estimate, fs)
    )
