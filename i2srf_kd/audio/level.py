"""Levels of signals in decibels relative to full scale (dBFS, where a square wave of amplitude 1 has 0 dB)."""

from typing import Optional

import numpy as np

from i2srf_kd.system.errors import UserError

FRAME_SECONDS = 0.02
ACTIVE_RANGE_DB = 40.0
INAUDIBLE = 1e-8  # mean power: 80 dB below full scale
_TINY = 1e-12


def to_db(power: float) -> float:
    """Power to decibels, at least -120."""
    return float(10.0 * np.log10(max(float(power), _TINY)))


def frame_power(wave: np.ndarray, fs: int) -> np.ndarray:
    """Mean power of consecutive frames of 20 ms, over all channels; the last frame may be shorter.

    Args:
        wave: ``(samples,)`` or ``(samples, channels)``.
        fs: sampling rate in Hz.

    Returns:
        ``(frames,)``, float64.
    """
    power = np.square(np.asarray(wave, dtype=np.float64))
    if power.ndim > 1:
        power = power.mean(axis=1)
    if len(power) == 0:
        return np.zeros(0)
    starts = np.arange(0, len(power), max(1, round(FRAME_SECONDS * fs)))
    return np.add.reduceat(power, starts) / np.diff(np.append(starts, len(power)))


def active_frames(wave: np.ndarray, fs: int) -> np.ndarray:
    """Which frames hold speech: those less than 40 dB below the loudest one. Silence has none.

    Returns:
        ``(frames,)``, bool.
    """
    power = frame_power(wave, fs)
    loudest = power.max(initial=0.0)
    return (power > loudest * 10 ** (-ACTIVE_RANGE_DB / 10)) & (power > _TINY)


def active_power(wave: np.ndarray, fs: int) -> float:
    """Mean power of the frames with speech, 0 for silence: the level that pauses do not change."""
    active = active_frames(wave, fs)
    return float(frame_power(wave, fs)[active].mean()) if active.any() else 0.0


def noise_gain(speech: np.ndarray, noise: np.ndarray, snr_db: float, fs: int) -> Optional[float]:
    """Factor that brings noise to ``snr_db`` below the active level of speech; None where one cannot be heard.

    Args:
        speech, noise: ``(samples,)``.
        snr_db: ratio in dB; the noise counts with its level over the whole signal.
        fs: sampling rate in Hz.
    """
    speech_power, noise_power = active_power(speech, fs), float(np.mean(np.square(noise, dtype=np.float64)))
    if min(speech_power, noise_power) <= INAUDIBLE:
        return None
    return float(np.sqrt(speech_power / noise_power) * 10 ** (-snr_db / 20))


def kept_share(strength: float, max_attenuation_db: Optional[float] = None) -> float:
    """Which share of the mixture stays in what is enhanced.

    Args:
        strength: 1 for the model's output, 0 for the mixture.
        max_attenuation_db: where the model leaves nothing, so many decibels are left out at most; None: no limit.

    Raises:
        UserError: one is out of range.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength:g}: must be from 0, the mixture, to 1, the model's output")
    if max_attenuation_db is None:
        return 1 - strength
    if not max_attenuation_db >= 0:
        raise UserError(f"max_attenuation_db {max_attenuation_db:g}: must be 0 or more")
    return max(1 - strength, 10 ** (-max_attenuation_db / 20))


def with_mixture(enhanced: np.ndarray, wave: np.ndarray, kept: float, ref_channel: int) -> np.ndarray:
    """What was enhanced with a share of the mixture.

    Args:
        enhanced: ``(samples,)``.
        wave: what it was made of, ``(samples,)`` or ``(samples, channels)``.
        kept: as from :func:`kept_share`.
        ref_channel: the channel that was enhanced.
    """
    if not kept:
        return enhanced
    mixture = (wave if wave.ndim == 1 else wave[:, ref_channel]).astype(np.float32, copy=False)
    return enhanced + kept * (mixture - enhanced)
