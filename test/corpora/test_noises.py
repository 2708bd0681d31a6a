"""Synthetic noises: their power, spectra and shapes in time."""

import numpy as np
import pytest
from scipy.signal import welch
from scipy.stats import kurtosis

from i2srf_kd.corpora.noises import NOISES, babble, make_noise
from i2srf_kd.system.errors import UserError

FS = 16000


def noise(kind, n_samples=4 * FS, seed=0, **options):
    return make_noise(kind, n_samples, FS, np.random.default_rng(seed), options)


def slope_per_octave(wave, low=100, high=6400):
    """Change of the level in dB between two octaves apart by log2(high / low)."""
    frequency, power = welch(wave, FS, nperseg=2048)
    levels = [10 * np.log10(power[(frequency > f) & (frequency < 1.2 * f)].mean()) for f in (low, high)]
    return (levels[1] - levels[0]) / np.log2(high / low)


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("n_samples", [1, 100, 48001])
def test_unit_power_and_reproducible(kind, n_samples):
    wave = noise(kind, n_samples)
    assert wave.shape == (n_samples,) and np.mean(wave**2) == pytest.approx(1.0)
    assert np.array_equal(wave, noise(kind, n_samples))
    assert n_samples == 1 or not np.array_equal(wave, noise(kind, n_samples, seed=1))


@pytest.mark.parametrize("kind, slope", [("white", 0.0), ("pink", -3.0), ("brown", -6.0)])
def test_colours(kind, slope):
    assert slope_per_octave(noise(kind, 16 * FS)) == pytest.approx(slope, abs=0.4)


@pytest.mark.parametrize("mains", [50.0, 60.0])
def test_hum_has_its_lines(mains):
    frequency, power = welch(noise("hum", 8 * FS, mains=mains), FS, nperseg=2 * FS)
    assert frequency[power.argmax()] == mains
    on, off = power[int(6 * mains)], power[int(7 * mains)]  # bins of 0.5 Hz: third harmonic and between two
    assert on > 100 * off


def test_kinds_differ_in_time():
    assert kurtosis(noise("clicks")) > 20 > 1 > abs(kurtosis(noise("white")))
    envelope = np.square(noise("machine", 8 * FS)).reshape(-1, 80).mean(axis=1)  # at 200 Hz
    frequency, power = welch(envelope - envelope.mean(), 200, nperseg=400)
    assert 8 <= frequency[power.argmax()] <= 20
    frequency, power = welch(noise("wind", band=(40.0, 500.0)), FS, nperseg=4096)
    assert power[frequency < 1000].sum() > 0.95 * power.sum()


def test_babble_adds_voices_of_equal_power():
    random = np.random.default_rng(0)
    voices = [0.01 * random.standard_normal(5000), 3.0 * random.standard_normal(7000)]
    mixed = babble(6000, np.random.default_rng(1), voices)
    assert mixed.shape == (6000,) and np.mean(mixed**2) == pytest.approx(1.0)
    louder = babble(6000, np.random.default_rng(1), [7 * voices[0], voices[1]])
    assert np.allclose(mixed, louder), "the level of a voice does not matter"
    assert not np.allclose(mixed, babble(6000, np.random.default_rng(1), voices[:1]))


def test_unknown_kind():
    with pytest.raises(UserError, match="no noise of kind 'rain'; there are: white"):
        noise("rain")
