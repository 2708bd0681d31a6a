"""Power-law compressed spectral loss.

Magnitudes and complex spectra are compared after their magnitude is raised to a power below 1, which weights quiet
bins as hearing does. Usual in speech enhancement since Braun and Tashev, "A consolidated view of loss functions for
supervised deep learning-based speech enhancement" (TSP 2021).
"""

from typing import Tuple

import torch
from torch import Tensor


def compress(spectrum: Tensor, power: float, floor: float) -> Tuple[Tensor, Tensor]:
    """Compressed magnitude ``(...)`` and compressed spectrum ``(..., 2)`` of real/imaginary planes ``(..., 2)``.

    ``floor`` is added to the power spectrum, so that the gradient stays finite in empty bins.
    """
    energy = spectrum.square().sum(-1) + floor
    return energy.pow(power / 2), spectrum * energy.pow((power - 1) / 2).unsqueeze(-1)


def compressed_spectrum_loss(
    estimate: Tensor, reference: Tensor, power: float = 0.3, complex_share: float = 0.3, floor: float = 1e-10
) -> Tensor:
    """Mean squared error of compressed magnitudes and compressed spectra, per item of the batch.

    Args:
        estimate, reference: complex spectra ``(B, T, F)``.
        power: exponent of the magnitude.
        complex_share: weight of the complex term; the magnitude term has the rest.
        floor: added to the power spectrum. Bins of the estimate near it have the steepest gradient: a higher floor
            makes the gradient less sensitive to them.

    Returns:
        ``(B,)``.
    """
    estimate_magnitude, estimate_planes = compress(torch.view_as_real(estimate), power, floor)
    reference_magnitude, reference_planes = compress(torch.view_as_real(reference), power, floor)
    magnitude = (estimate_magnitude - reference_magnitude).square().flatten(1).mean(1)
    planes = (estimate_planes - reference_planes).square().sum(-1).flatten(1).mean(1)
    return (1 - complex_share) * magnitude + complex_share * planes
