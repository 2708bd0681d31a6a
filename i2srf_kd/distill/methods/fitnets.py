"""FitNets: regress the teacher's features (arXiv 1412.6550)."""

from typing import Sequence

from torch import Tensor, nn

from i2srf_kd.distill.matching import DEFAULT_SETS, Conv, PairedMethod, match_width
from i2srf_kd.distill.method import Layout, register_method


@register_method("fitnets")
class FitNets(PairedMethod):
    """FitNets hints: squared error to the teacher's features after a learned regressor.

    Definition: a student layer ``(B, C, T, F)`` is brought to the teacher's ``(B, C', T, F')`` by a learned 1x1
    convolution and area averages along frequency; the loss is the mean of the squared difference, averaged over the
    layers of a set.

    Source: Romero et al., arXiv 1412.6550. Our reading: hints at every layer of the chosen sets, not at one, and a
    mean in place of half the sum; the hint-only first stage of the paper is ``kd_only_steps``.

        method: fitnets
        method_conf: {sets: [encoder, dual_path, decoder]}
        weight: 0.1

    Args:
        sets: layer sets to distil.

    Raises:
        ValueError: for sets that a network does not have.
    """

    source = "arXiv 1412.6550"

    def __init__(self, student: Layout, teacher: Layout, sets: Sequence[str] = DEFAULT_SETS):
        super().__init__(student, teacher, sets)
        self.adapt = nn.ModuleDict(
            {
                name: nn.ModuleList(Conv(ours.channels, theirs.channels) for ours, theirs in pairs)
                for name, pairs in self.shape_pairs(student, teacher).items()
            }
        )

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        regressors = self.adapt[name]
        assert isinstance(regressors, nn.ModuleList)
        adapted = match_width(regressors[layer](student), teacher.shape[3])
        return (adapted - teacher).square().mean()
