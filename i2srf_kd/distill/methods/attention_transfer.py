"""Attention transfer: where the energy of a feature lies, whatever its channels (arXiv 1612.03928, 2408.04267)."""

from typing import Sequence

import torch
from torch import Tensor

from i2srf_kd.distill.matching import DEFAULT_SETS, PairedMethod, check_number, match_width, unit_rows
from i2srf_kd.distill.method import Layout, register_method


def attention_map(feature: Tensor) -> Tensor:
    """Sum of squares over channels: ``(B, C, T, F)`` to ``(B, T, F)``."""
    return feature.square().sum(1)


@register_method("attention_transfer")
class AttentionTransfer(PairedMethod):
    """Attention transfer: squared distance of unit-length maps of the energy summed over channels.

    Definition: the map of a feature ``(B, C, T, F)`` is ``Q = sum_c A_c^2``, one vector of ``T * F`` numbers per
    clip, scaled to length 1; the loss is the mean over clips of ``|Q_s / |Q_s| - Q_t / |Q_t||^2``, between 0 and 2.

    Source: Zagoruyko and Komodakis, arXiv 1612.03928 (p = 2). Our reading: the squared distance (smooth where both
    agree), and the teacher's map brought to the student's bins by area averages.

        method: attention_transfer
        method_conf: {sets: [encoder, dual_path, decoder]}
        weight: 1.0

    Args:
        sets: layer sets to distil.

    Raises:
        ValueError: for sets that a network does not have.
    """

    source = "arXiv 1612.03928"

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        ours = attention_map(student)
        theirs = match_width(attention_map(teacher), ours.shape[-1])
        return (unit_rows(ours.flatten(1)) - unit_rows(theirs.flatten(1))).square().sum(-1).mean()


@register_method("at_kl")
class AttentionKL(PairedMethod):
    """AT-KL: Kullback-Leibler divergence of each frame's energy distribution over frequency.

    Definition: ``Q = sum_c A_c^2`` ``(B, T, F)``; per clip and frame ``p = (Q / mean_f Q + floor)``, normalised to
    sum 1 over the bins; the loss is the mean over clips and frames of ``sum_f p_t log(p_t / p_s)``.

    Source: Distil-DCCRN, arXiv 2408.04267. Our reading of what is public (attention maps compared by the KL
    divergence): one distribution per frame over its bins, a floor relative to the frame's mean so that empty bins have
    a finite logarithm, and the teacher's map brought to the student's bins by area averages.

        method: at_kl
        method_conf: {sets: [encoder, dual_path, decoder], floor: 0.001}
        weight: 1.0

    Args:
        sets: layer sets to distil.
        floor: added to every bin, relative to the mean of the frame.

    Raises:
        ValueError: for sets that a network does not have, or a floor that is not positive.
    """

    source = "arXiv 2408.04267, our reading"

    def __init__(self, student: Layout, teacher: Layout, sets: Sequence[str] = DEFAULT_SETS, floor: float = 1e-3):
        super().__init__(student, teacher, sets)
        check_number("floor", floor, 0, above=True)
        self.floor = float(floor)

    def _log_distribution(self, energy: Tensor) -> Tensor:
        relative = energy / (energy.mean(-1, keepdim=True) + 1e-8) + self.floor
        return torch.log(relative) - torch.log(relative.sum(-1, keepdim=True))

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        energy = attention_map(student)
        ours = self._log_distribution(energy)
        theirs = self._log_distribution(match_width(attention_map(teacher), energy.shape[-1]))
        return (theirs.exp() * (theirs - ours)).sum(-1).mean()
