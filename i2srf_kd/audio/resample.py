"""Change of the sampling rate."""

from typing import Callable

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


def at_another_rate(
    process: Callable[[np.ndarray], np.ndarray], wave: np.ndarray, fs: int, process_fs: int
) -> np.ndarray:
    """Let something work at its own rate.

    Args:
        process: maps ``(samples,)`` or ``(samples, channels)`` at ``process_fs`` to ``(samples,)``.
        wave: its input, at ``fs``.
        fs, process_fs: rates in Hz.

    Returns:
        float32, as many samples as ``wave`` has, at ``fs``.
    """
    # Up and down again gives as many samples or a few more, all of them at the end.
    return resample(process(resample(wave, fs, process_fs)), process_fs, fs)[: len(wave)]


def _fit_length(wave: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-pad the end; resamplers differ by a sample in how they round the length."""
    wave = np.asarray(wave[:length], dtype=np.float32)
    missing = length - len(wave)
    return np.pad(wave, [(0, missing)] + [(0, 0)] * (wave.ndim - 1)) if missing else wave
