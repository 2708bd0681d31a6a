"""Characteristics of frames on signals that are known, and the correlation against scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from i2srf_kd.distill.speech_characteristics import correlation, frame_characteristics

FS = 16000


def test_a_tone_in_silence_and_noise() -> None:
    time = torch.arange(FS) / FS
    tone = 0.1 * torch.sin(2 * math.pi * 120 * time)
    noise = torch.randn(FS, generator=torch.Generator().manual_seed(0))
    reference = torch.where(time < 0.5, tone, 0.01 * noise)
    disturbance = 0.01 * torch.randn(FS, generator=torch.Generator().manual_seed(1))
    found = frame_characteristics((reference + disturbance)[None], reference[None], frames=63, fs=FS)
    assert all(value.shape == (1, 63) for value in found.values())
    voiced, unvoiced = (slice(3, 28), slice(35, 60))
    # The mean square of a sine of amplitude 0.1 is 0.005, that of the noise 0.0001.
    assert found["level"][0, voiced].mean() == pytest.approx(10 * math.log10(0.005), abs=0.5)
    assert found["snr"][0, voiced].mean() == pytest.approx(10 * math.log10(50), abs=0.5)
    assert found["snr"][0, unvoiced].mean() == pytest.approx(0, abs=0.7)
    assert found["voicing"][0, voiced].min() > 0.9 and found["voicing"][0, unvoiced].max() < 0.6


def test_silence_is_finite() -> None:
    found = frame_characteristics(torch.zeros(2, 4000), torch.zeros(2, 4000), frames=16, fs=FS)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert float(found["voicing"].max()) == 0


def test_correlation_is_pearsons() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.softmax(torch.randn(3, 7, 2, 4, generator=generator), -1)
    level = torch.randn(3, 7, generator=generator)
    expected = [[pearsonr(weights[..., i, j].flatten(), level.flatten())[0] for j in range(4)] for i in range(2)]
    np.testing.assert_allclose(correlation(weights, level), expected, rtol=1e-6)
    assert float(correlation(torch.full((3, 7, 1, 2), 0.5), level).abs().max()) == 0
