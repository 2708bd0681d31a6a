"""Losses on waveforms against numpy, the project's own SI-SDR, and scipy's STFT."""

import numpy as np
import pytest
import scipy.signal
import torch

from i2srf_kd.losses.multi_resolution import multi_resolution_loss
from i2srf_kd.losses.waveform import relative_l1_loss, si_sdr_loss
from i2srf_kd.metrics.signal import si_sdr

LOSSES = {"l1": relative_l1_loss, "si_sdr": si_sdr_loss, "multi_resolution": multi_resolution_loss}


def waveforms(samples: int = 4000):
    random = np.random.default_rng(0)
    reference = random.normal(0, 0.1, (3, samples))
    return reference + random.normal(0, 0.03, (3, samples)), reference


def test_relative_l1_equals_numpy_and_does_not_know_the_level():
    estimate, reference = waveforms()
    loss = relative_l1_loss(torch.tensor(estimate), torch.tensor(reference))
    np.testing.assert_allclose(loss, np.abs(estimate - reference).mean(1) / np.abs(reference).mean(1))
    torch.testing.assert_close(loss, relative_l1_loss(torch.tensor(estimate / 9), torch.tensor(reference / 9)))


def test_si_sdr_equals_the_metric_and_saturates_at_its_limit():
    estimate, reference = waveforms()
    loss = si_sdr_loss(torch.tensor(estimate), torch.tensor(reference), limit_db=120)
    np.testing.assert_allclose(-loss, [si_sdr(r, e) for r, e in zip(reference, estimate, strict=True)], rtol=1e-4)
    perfect = si_sdr_loss(torch.tensor(reference), torch.tensor(reference), limit_db=30)
    np.testing.assert_allclose(perfect, -30, atol=1e-3)


def test_multi_resolution_equals_scipy():
    estimate, reference = waveforms()
    total = 0.0
    for size in (256, 512):
        window = scipy.signal.get_window("hann", size)
        spectra = [
            abs(scipy.signal.stft(w, nperseg=size, noverlap=size * 3 // 4, window=window, padded=False)[2])
            * window.sum()
            for w in (estimate, reference)
        ]
        x, y = (np.sqrt(s**2 + 1e-7) for s in spectra)
        convergence = np.sqrt(((x - y) ** 2).sum((1, 2)) / (y**2).sum((1, 2)))
        total += convergence + abs(np.log(x) - np.log(y)).mean((1, 2))
    loss = multi_resolution_loss(torch.tensor(estimate), torch.tensor(reference), sizes=(256, 512))
    np.testing.assert_allclose(loss, total / 2, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_silence_and_perfect_estimates_have_finite_gradients(loss):
    speech, silence = torch.tensor(waveforms()[1]).float(), torch.zeros(3, 4000)
    for estimate, reference in ((silence, silence), (silence, speech), (speech, silence), (speech, speech)):
        estimate = estimate.clone().requires_grad_()
        value = loss(estimate, reference)
        assert value.shape == (3,) and value.isfinite().all()
        value.sum().backward()
        assert estimate.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_by_finite_differences(loss):
    estimate, reference = (torch.tensor(wave) for wave in waveforms(96))
    options = {"sizes": (64,)} if loss is multi_resolution_loss else {}
    assert torch.autograd.gradcheck(lambda e: loss(e, reference, **options), estimate.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_noise_without_speech_does_not_rule_a_batch(loss):
    estimate, reference = (torch.tensor(wave).float() for wave in waveforms())
    usual, alone = loss(estimate, reference), loss(estimate - reference, torch.zeros_like(reference))
    assert (alone.abs() < 20 * usual.abs()).all()
