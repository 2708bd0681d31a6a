"""First-order Ambisonics: transformations of the recorded sound field that equal a move of everything around.

Waveforms are ``(samples, 4 * microphones)``, one microphone after the other, each in AmbiX order (ACN): W, Y, Z, X.
Seen from a microphone x points to the front, y to the left, z up, and azimuth grows from the front to the left. W is
the pressure; Y, Z and X are figures of eight along their axes, so that a plane wave from azimuth ``a`` and elevation
``e`` is recorded as

    W, Y, Z, X = s, s sin(a) cos(e), s sin(e), s cos(a) cos(e)        (SN3D)

Everything here is linear and holds sample by sample: for plane waves, for near sources and for rooms, which are moved
with their sources. A second microphone stands beside the first one on the x axis, as in L3DAS, and is oriented like
it; the array stays where it is. What maps such a pair onto itself is exact for it: :func:`mirror_left_right`,
:func:`mirror_up_down`, and :func:`mirror_front_back` with :func:`exchange_microphones`. :func:`rotate` is exact for one
microphone only: the pair would have to turn with the field.
"""

import math

import numpy as np

CHANNELS = 4
"""Channels of one first-order microphone."""
W, Y, Z, X = range(CHANNELS)


def count_microphones(channels: int) -> int:
    """Microphones that ``channels`` belong to.

    Raises:
        ValueError: not a multiple of 4.
    """
    if channels < CHANNELS or channels % CHANNELS:
        raise ValueError(f"{channels} channel(s), first-order Ambisonics has {CHANNELS} for each microphone")
    return channels // CHANNELS


def encode(signal: np.ndarray, azimuth: float, elevation: float = 0.0) -> np.ndarray:
    """A plane wave as one microphone records it.

    Args:
        signal: pressure ``(samples,)``.
        azimuth, elevation: direction the wave comes from, in radians.

    Returns:
        ``(samples, 4)``.
    """
    direction = np.array(
        [
            1.0,
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
            math.cos(azimuth) * math.cos(elevation),
        ]
    )
    return np.asarray(signal)[:, None] * direction


def rotate(wave: np.ndarray, angle: float) -> np.ndarray:
    """Turn the field about the vertical axis: a source at azimuth ``a`` moves to ``a + angle`` (radians).

    Applied to every microphone alike, which for more than one is no field that could be recorded: the delays between
    microphones still tell the old direction.
    """
    fields = _fields(wave)
    result = fields.copy()
    result[..., X] = math.cos(angle) * fields[..., X] - math.sin(angle) * fields[..., Y]
    result[..., Y] = math.sin(angle) * fields[..., X] + math.cos(angle) * fields[..., Y]
    return result.reshape(wave.shape)


def mirror_left_right(wave: np.ndarray) -> np.ndarray:
    """Mirror at the plane through the x axis and the vertical: azimuth ``a`` becomes ``-a``."""
    return _flip(wave, Y)


def mirror_up_down(wave: np.ndarray) -> np.ndarray:
    """Mirror at the horizontal plane: elevation ``e`` becomes ``-e``, and a room's floor its ceiling."""
    return _flip(wave, Z)


def mirror_front_back(wave: np.ndarray) -> np.ndarray:
    """Mirror at the plane across the x axis: azimuth ``a`` becomes ``pi - a``."""
    return _flip(wave, X)


def exchange_microphones(wave: np.ndarray) -> np.ndarray:
    """Put the microphones into reverse order.

    By itself this is no move of the field. After :func:`mirror_front_back`, or after :func:`rotate` by half a turn, it
    is the move of everything around the point halfway between two microphones on the x axis.
    """
    return np.ascontiguousarray(_fields(wave)[:, ::-1]).reshape(wave.shape)


def _fields(wave: np.ndarray) -> np.ndarray:
    """``(samples, microphones, 4)``."""
    if wave.ndim != 2:
        raise ValueError(f"expected (samples, channels), got {wave.shape}")
    return wave.reshape(len(wave), count_microphones(wave.shape[1]), CHANNELS)


def _flip(wave: np.ndarray, channel: int) -> np.ndarray:
    fields = _fields(wave).copy()
    fields[..., channel] = -fields[..., channel]
    return fields.reshape(wave.shape)
