"""Differentiable PESQ against the standard's own program, its gradient, and signals that have no speech."""

import numpy as np
import pytest
import torch
from pesq import pesq

from i2srf_kd.corpora.noises import coloured, make_noise
from i2srf_kd.losses.perceptual_quality import pesq_loss, pesq_score

RATE = 16000


def syllables(seed: int, samples: int = 3 * RATE) -> np.ndarray:
    """Voiced sounds of changing pitch and colour with pauses: speech as far as PESQ is concerned."""
    random = np.random.default_rng(seed)
    wave = np.zeros(samples)
    start = 3000
    while start < samples - 6000:
        length = int(random.integers(2000, 5000))
        time = np.arange(length) / RATE
        pitch = random.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time))
        voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / RATE) / k for k in range(1, 30))
        formant = random.uniform(400, 2500)
        colour = coloured(length, RATE, random, lambda f, c=formant: 1 / (1 + ((f - c) / 300) ** 2))
        wave[start : start + length] += np.hanning(length) * (voice + 0.5 * colour / colour.std())
        start += length + int(random.integers(500, 4000))
    return 0.3 * wave / np.abs(wave).max()


def pairs():
    for seed in range(2):
        clean = syllables(seed)
        random = np.random.default_rng([seed, 1])
        for kind in ("white", "pink", "machine"):
            noise = make_noise(kind, len(clean), RATE, random)
            for snr in (-5, 5, 15, 25):
                yield clean, clean + noise * clean.std() * 10 ** (-snr / 20)
        spectrum = np.fft.rfft(clean)
        spectrum[len(spectrum) // 2 :] = 0
        yield clean, np.fft.irfft(spectrum, len(clean))
        yield clean, np.clip(clean, -0.1, 0.1)
        yield clean, 0.05 * clean  # another level is no disturbance


def score(estimate: np.ndarray, reference: np.ndarray) -> float:
    return float(pesq_score(torch.tensor(estimate)[None].float(), torch.tensor(reference)[None].float()))


def test_scores_equal_those_of_the_standards_program():
    ours, theirs = zip(
        *((score(noisy, clean), pesq(RATE, clean, noisy, "wb")) for clean, noisy in pairs()), strict=True
    )
    assert np.ptp(theirs) > 2.5
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    assert np.abs(np.subtract(ours, theirs)).mean() < 0.1


def test_a_perfect_estimate_has_the_highest_score_and_no_loss():
    clean = torch.tensor(syllables(0))[None].float()
    assert pesq_score(clean, clean).item() == pytest.approx(4.644, abs=1e-3)
    assert pesq_loss(clean, clean).item() == pytest.approx(0.0, abs=1e-3)


def test_the_gradient_points_towards_a_better_score():
    clean = torch.tensor(syllables(1))[None].float()
    noise = 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    estimate = (clean + noise).requires_grad_()
    loss = pesq_loss(estimate, clean)
    (gradient,) = torch.autograd.grad(loss.sum(), estimate)
    for step in (1e-4, 1e-3):
        move = step * gradient / gradient.norm()
        change = (pesq_loss(estimate + move, clean) - pesq_loss(estimate - move, clean)).item() / (2 * step)
        assert change == pytest.approx(gradient.norm().item(), rel=0.05)
    better = estimate - 0.3 * gradient / gradient.norm()
    assert pesq(RATE, clean[0].numpy(), better[0].detach().numpy(), "wb") > pesq(
        RATE, clean[0].numpy(), estimate[0].detach().numpy(), "wb"
    )


def test_items_of_a_batch_do_not_depend_on_each_other():
    clean = torch.tensor(np.stack([syllables(0), syllables(1), np.zeros(3 * RATE)])).float()
    noisy = clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    together = pesq_loss(noisy, clean)
    torch.testing.assert_close(together[:2], torch.cat([pesq_loss(noisy[i : i + 1], clean[i : i + 1]) for i in (0, 1)]))
    assert together[2] == 0
    half = clean.clone()
    half[:, 20000:] = 0  # a padded chunk
    assert pesq_loss(half, half).abs().max() < 1e-3


@pytest.mark.parametrize("level", [0.0, 1e-6, 1.0])
def test_gradients_are_finite_for_silence_and_in_half_silence(level):
    clean = torch.tensor(syllables(2))[None].float()
    silence = torch.zeros_like(clean)
    for estimate, reference in ((level * clean, clean), (clean, level * clean), (level * clean, silence)):
        estimate = estimate.clone().requires_grad_()
        loss = pesq_loss(estimate, reference)
        loss.sum().backward()
        assert loss.isfinite().all() and estimate.grad.isfinite().all()


def test_low_precision_outside_does_not_reach_it():
    clean = torch.tensor(syllables(0))[None].float()
    noisy = clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = pesq_loss(noisy, clean)
    torch.testing.assert_close(inside, pesq_loss(noisy, clean))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 512 samples"):
        pesq_loss(torch.zeros(1, 100), torch.zeros(1, 100))
    with pytest.raises(ValueError, match="compares waveforms"):
        pesq_loss(torch.zeros(1, 1000), torch.zeros(1, 1001))
