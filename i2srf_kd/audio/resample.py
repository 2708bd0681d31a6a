"""Change of the sampling rate."""

import numpy as np
import soxr

from i2srf_kd.system.errors import UserError


def resampled_length(n_samples: int, fs_in: int, fs_out: int) -> int:
    """Samples after resampling: ``ceil(n_samples * fs_out / fs_in)``, computed without rounding errors."""
    return -(-n_samples * fs_out // fs_in)


def resample(wave: np.ndarray, fs_in: int, fs_out: int) -> np.ndarray:
    """Resample with a linear-phase filter, so that signals resampled alike stay aligned.

    The stop band is below -100 dB.

    Args:
        wave: ``(samples,)`` or ``(samples, channels)``.
        fs_in: rate of ``wave`` in Hz.
        fs_out: wanted rate in Hz.

    Returns:
        float32, ``(resampled_length(samples),)`` or ``(resampled_length(samples), channels)``. ``wave`` itself (as
        float32) when the rates agree.

    Raises:
        UserError: a rate is not positive.
    """
    if fs_in < 1 or fs_out < 1:
        raise UserError(f"cannot resample from {fs_in} Hz to {fs_out} Hz: sampling rates must be positive")
    wave = np.asarray(wave, dtype=np.float32)
    if fs_in == fs_out:
        return wave
    length = resampled_length(len(wave), fs_in, fs_out)
    if length == 0:
        return np.zeros((0, *wave.shape[1:]), dtype=np.float32)
    return _fit_length(soxr.resample(wave, fs_in, fs_out, quality="HQ"), length)


def _fit_length(wave: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-pad the end; resamplers differ by a sample in how they round the length."""
    wave = np.asarray(wave[:length], dtype=np.float32)
    missing = length - len(wave)
    return np.pad(wave, [(0, missing)] + [(0, 0)] * (wave.ndim - 1)) if missing else wave
