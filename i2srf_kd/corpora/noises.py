"""Synthetic noises of several kinds. Each has unit power and depends only on its arguments and its random generator.

noise = make_noise("hum", n_samples=48000, fs=16000, random=np.random.default_rng(0))
"""

from typing import Callable, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.system.errors import UserError

Noise = Callable[[int, int, np.random.Generator], np.ndarray]


def white(n_samples: int, fs: int, random: np.random.Generator) -> np.ndarray:
    """The same power at all frequencies."""
    return random.standard_normal(n_samples)


def pink(n_samples: int, fs: int, random: np.random.Generator) -> np.ndarray:
    """Power falling with 3 dB per octave above 20 Hz."""
    return coloured(n_samples, fs, random, lambda f: np.maximum(f, 20.0) ** -0.5)


def brown(n_samples: int, fs: int, random: np.random.Generator) -> np.ndarray:
    """Power falling with 6 dB per octave above 60 Hz."""
    return coloured(n_samples, fs, random, lambda f: np.maximum(f, 60.0) ** -1.0)


def hum(n_samples: int, fs: int, random: np.random.Generator, mains: float = 50.0) -> np.ndarray:
    """Mains hum with harmonics up to 2 kHz and a little hiss."""
    time = np.arange(n_samples) / fs
    wave = 0.05 * random.standard_normal(n_samples)
    for harmonic in range(1, int(min(2000.0, fs / 2.2) / mains) + 1):
        level = random.uniform(0.3, 1.0) / harmonic
        wave += level * np.sin(2 * np.pi * mains * harmonic * time + random.uniform(0, 2 * np.pi))
    return wave


def machine(
    n_samples: int, fs: int, random: np.random.Generator, turns: Tuple[float, float] = (8.0, 20.0)
) -> np.ndarray:
    """Broadband noise and tones that swell with the turns of a motor (a range, in Hz)."""
    time = np.arange(n_samples) / fs
    speed = random.uniform(*turns)
    swell = 1.0 + 0.8 * np.sin(2 * np.pi * speed * time + random.uniform(0, 2 * np.pi))
    rumble = _unit_power(coloured(n_samples, fs, random, lambda f: 1.0 / (1.0 + (f / 900.0) ** 2)))
    whine = np.sin(2 * np.pi * random.uniform(400, 1200) * time + 2.0 * np.sin(2 * np.pi * speed * time))
    return swell * (rumble + 0.4 * whine)


def clicks(n_samples: int, fs: int, random: np.random.Generator, per_second: float = 6.0) -> np.ndarray:
    """Short decaying impulses at random times over faint hiss, like keys or dishes."""
    impulses = np.zeros(n_samples)
    n_clicks = max(1, random.poisson(per_second * n_samples / fs))
    impulses[random.integers(0, n_samples, n_clicks)] = random.uniform(0.3, 1.0, n_clicks) * random.choice(
        [-1.0, 1.0], n_clicks
    )
    time = np.arange(int(0.03 * fs)) / fs
    ring = np.exp(-time / 0.005) * np.sin(2 * np.pi * random.uniform(1500, min(4000, 0.4 * fs)) * time)
    return np.convolve(impulses, ring)[:n_samples] + 0.01 * random.standard_normal(n_samples)


def wind(n_samples: int, fs: int, random: np.random.Generator, band: Tuple[float, float] = (40.0, 500.0)) -> np.ndarray:
    """Band-limited rushing (a range, in Hz) in slow gusts."""
    low, high = band
    rushing = coloured(n_samples, fs, random, lambda f: 1.0 / (1.0 + (low / np.maximum(f, 1.0)) ** 4 + (f / high) ** 4))
    gusts = np.cumsum(random.standard_normal(n_samples // (fs // 4) + 3))
    envelope = np.interp(np.arange(n_samples) / fs, np.arange(len(gusts)) / 4.0, gusts)
    return rushing * (0.3 + np.abs(envelope))


def coloured(
    n_samples: int, fs: int, random: np.random.Generator, gain: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """White noise filtered with a zero-phase frequency response; the offset is removed.

    Args:
        n_samples: length of the result.
        fs: sampling rate in Hz.
        random: source of randomness.
        gain: amplitude by frequency in Hz, on arrays.
    """
    n_fft = 2 ** int(np.ceil(np.log2(max(2, n_samples))))
    spectrum = np.fft.rfft(random.standard_normal(n_fft)) * gain(np.fft.rfftfreq(n_fft, 1 / fs))
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, n_fft)[:n_samples]


def babble(n_samples: int, random: np.random.Generator, voices: Sequence[np.ndarray]) -> np.ndarray:
    """Many people talking: voices of equal power, each repeated from a random place on, added up.

    Args:
        n_samples: length of the result.
        random: source of randomness.
        voices: speech ``(samples,)`` of different speakers.

    Returns:
        ``(n_samples,)`` with unit power.
    """
    mixed = np.zeros(n_samples)
    for voice in voices:
        mixed += np.resize(np.roll(_unit_power(voice), -int(random.integers(len(voice)))), n_samples)
    return _unit_power(mixed)


NOISES: Dict[str, Noise] = {
    "white": white,
    "pink": pink,
    "brown": brown,
    "hum": hum,
    "machine": machine,
    "clicks": clicks,
    "wind": wind,
}


def make_noise(
    kind: str,
    n_samples: int,
    fs: int,
    random: np.random.Generator,
    options: Optional[Mapping[str, object]] = None,
) -> np.ndarray:
    """Noise of one of the kinds in ``NOISES``, scaled to unit power.

    Args:
        kind: name in ``NOISES``.
        n_samples: length, at least 1.
        fs: sampling rate in Hz.
        random: source of randomness.
        options: further arguments of the function of that kind.

    Returns:
        ``(n_samples,)``, float64.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in NOISES:
        raise UserError(f"no noise of kind {kind!r}; there are: {', '.join(NOISES)}, and babble from voices")
    return _unit_power(NOISES[kind](n_samples, fs, random, **(options or {})))  # type: ignore[call-arg]


def _unit_power(wave: np.ndarray) -> np.ndarray:
    wave = np.asarray(wave, dtype=np.float64)
    return wave / np.sqrt(max(np.mean(wave**2), 1e-20))
