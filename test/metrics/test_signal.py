"""SI-SDR and segmental SNR."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2srf_kd.metrics.signal import segmental_snr, si_sdr


def _pair(seed=0, samples=8000, noise=0.1):
    generator = np.random.default_rng(seed)
    clean = 0.1 * generator.standard_normal(samples)
    return clean, clean + 0.1 * noise * generator.standard_normal(samples)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.booleans(), st.integers(0, 99), st.booleans())
def test_si_sdr_ignores_gain_of_the_estimate(gain, negative, seed, zero_mean):
    clean, noisy = _pair(seed, 500)
    gain = -gain if negative else gain
    assert si_sdr(clean, gain * noisy, zero_mean) == pytest.approx(si_sdr(clean, noisy, zero_mean), abs=1e-8)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_si_sdr_agrees_with_torchmetrics(zero_mean):
    functional = pytest.importorskip("torchmetrics.functional.audio")
    import torch

    clean, noisy = _pair()
    noisy = noisy + 0.05  # an offset tells the two conventions apart
    expected = functional.scale_invariant_signal_distortion_ratio(
        torch.from_numpy(noisy), torch.from_numpy(clean), zero_mean
    )
    assert si_sdr(clean, noisy, zero_mean) == pytest.approx(float(expected), abs=1e-9)
    assert abs(si_sdr(clean, noisy, True) - si_sdr(clean, noisy, False)) > 1.0


def test_si_sdr_of_orthogonal_noise_is_the_snr():
    time = np.arange(16000) / 16000
    clean, noise = np.sin(2 * np.pi * 100 * time), 0.1 * np.sin(2 * np.pi * 200 * time)
    assert si_sdr(clean, clean + noise) == pytest.approx(20.0, abs=1e-9)


def test_si_sdr_stays_finite_or_nan():
    clean, _ = _pair()
    assert np.isnan(si_sdr(np.zeros_like(clean), clean))
    assert np.isnan(si_sdr(clean, np.zeros_like(clean)))
    assert si_sdr(clean, 2 * clean) == pytest.approx(156.5, abs=0.1)
    assert si_sdr([1.0, 0.0], [0.0, 1.0]) == pytest.approx(-156.5, abs=0.1)


def _naive_ssnr(clean, noisy, fs):
    window, hop = round(0.03 * fs), int(round(0.03 * fs) // 4)
    taper = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, window + 1) / (window + 1)))
    values = []
    for index in range(int(len(clean) / hop - window / hop)):
        cut = slice(index * hop, index * hop + window)
        a, b = clean[cut] * taper, noisy[cut] * taper
        value = 10 * np.log10(np.sum(a**2) / (np.sum((a - b) ** 2) + 2.2e-16) + 2.2e-16)
        values.append(min(max(value, -10), 35))
    return np.mean(values)


@pytest.mark.parametrize("fs", [8000, 16000])
def test_segmental_snr_agrees_with_a_loop_over_frames(fs):
    clean, noisy = _pair(samples=9001, noise=0.5)
    clean[:3000] *= 0.01
    assert segmental_snr(clean, noisy, fs) == pytest.approx(_naive_ssnr(clean, noisy, fs), abs=1e-9)


def test_segmental_snr_limits():
    clean, _ = _pair()
    assert segmental_snr(clean, clean, 16000) == 35.0
    assert segmental_snr(clean, -100 * clean, 16000) == -10.0
    assert segmental_snr(np.zeros(8000), np.zeros(8000), 16000) == -10.0
    assert np.isnan(segmental_snr(clean[:500], clean[:500], 16000))


def test_int16_and_float_give_the_same():
    clean, noisy = ((32768 * x).astype(np.int16) for x in _pair(noise=0.5))
    assert si_sdr(clean, noisy) == si_sdr(clean / 32768, noisy / 32768)
    assert segmental_snr(clean, noisy, 16000) == segmental_snr(clean / 32768, noisy / 32768, 16000)


@pytest.mark.parametrize(
    "reference, estimate, message",
    [
        (np.zeros((2, 5)), np.zeros(5), r"reference has shape \(2, 5\)"),
        (np.ones(5), np.ones(6), "reference has 5 samples but estimate has 6"),
        (np.ones(2), np.array([1.0, np.nan]), "estimate has 1 samples that are NaN"),
        (np.ones(0), np.ones(0), "reference has no samples"),
        (np.array([-3000.0, 5.0]), np.ones(2), "reference reaches 3000"),
        (np.ones(3, dtype=np.int32), np.ones(3), "int32"),
    ],
)
def test_waveforms_that_form_no_pair_are_refused(reference, estimate, message):
    with pytest.raises(ValueError, match=message):
        si_sdr(reference, estimate)
