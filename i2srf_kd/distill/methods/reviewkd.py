"""ReviewKD: fused student layers against the teacher's features (arXiv 2104.09044)."""

from torch import Tensor

from i2srf_kd.distill.matching import FusedMethod, match_width
from i2srf_kd.distill.method import LayerShape, register_method

_GRIDS = (4, 2, 1)  # sides of the coarser grids


def hierarchical_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of squared errors of ``(B, C, T, F)`` at full size and averaged to 4 x 4, 2 x 2 and 1 x 1.

    Each has half the weight of the one before. Grids with as many cells along an axis as the feature has frames or
    bins, or more, are left out.
    """
    difference = student - teacher
    loss, weight, total = difference.square().mean(), 1.0, 1.0
    for side in _GRIDS:
        if side >= min(difference.shape[2:]):
            continue
        weight /= 2
        # Averaging is linear: the difference of the averages is the average of the difference.
        pooled = match_width(match_width(difference, side).mT, side)
        loss, total = loss + weight * pooled.square().mean(), total + weight
    return loss / total


@register_method("reviewkd")
class ReviewKD(FusedMethod):
    """ReviewKD: student layers fused from deep to shallow, compared with the teacher's at several resolutions.

    Definition: the layers of a set enter a residual fusion, the deepest first, each reduced to ``middle_channels`` by
    a 1x1 convolution and mixed with the running state by two sigmoid maps
    (:class:`~i2srf_kd.distill.matching.CrossLayerFusion`). A 3x3 convolution brings each mixture to the teacher's
    ``(B, C', T, F')``; the hierarchical context loss is the mean squared error at full size and after averaging to
    4 x 4, 2 x 2 and 1 x 1 cells, with weights 1, 1/2, 1/4, 1/8, divided by their sum.

    Source: Chen et al., CVPR 2021, arXiv 2104.09044. Our reading: one fusion per layer set, instance norms in place of
    batch norms, and area averages along frequency.

        method: reviewkd
        method_conf: {sets: [encoder, dual_path, decoder], middle_channels: 64}
        weight: 0.1

    Args:
        sets: layer sets to distil.
        middle_channels: width of the fusion.

    Raises:
        ValueError: for sets that a network does not have, or a width below 1.
    """

    source = "CVPR 2021, arXiv 2104.09044"

    def fused_channels(self, theirs: LayerShape, middle_channels: int) -> int:
        return theirs.channels

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return hierarchical_loss(match_width(student, teacher.shape[3]), teacher)
