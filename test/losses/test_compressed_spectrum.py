"""The task loss against numpy, and its gradient where spectra are empty."""

import numpy as np
import pytest
import torch

from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss


def spectra(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.complex(*(torch.randn(3, 5, 7, dtype=torch.float64, generator=generator) for _ in range(2)))


@pytest.mark.parametrize("power, share", [(0.3, 0.3), (0.5, 0.0), (1.0, 1.0)])
def test_equals_numpy(power: float, share: float) -> None:
    estimate, reference = spectra(0), spectra(1)
    x, y = estimate.numpy(), reference.numpy()
    magnitude = ((abs(x) ** power - abs(y) ** power) ** 2).mean((1, 2))
    compressed = [abs(z) ** power * np.exp(1j * np.angle(z)) for z in (x, y)]
    planes = (abs(compressed[0] - compressed[1]) ** 2).mean((1, 2))
    ours = compressed_spectrum_loss(estimate, reference, power, share, floor=0.0)
    np.testing.assert_allclose(ours.numpy(), (1 - share) * magnitude + share * planes, rtol=1e-10)


def test_zero_for_equal_spectra_and_finite_gradient_for_empty_ones() -> None:
    assert compressed_spectrum_loss(spectra(0), spectra(0)).abs().max() == 0
    estimate = torch.zeros(1, 4, 5, dtype=torch.complex64, requires_grad=True)
    compressed_spectrum_loss(estimate, torch.zeros(1, 4, 5, dtype=torch.complex64)).sum().backward()
    assert torch.isfinite(torch.view_as_real(estimate.grad)).all()


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda e: compressed_spectrum_loss(e, spectra(1)), spectra(0).requires_grad_())
