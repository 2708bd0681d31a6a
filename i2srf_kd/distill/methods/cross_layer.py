"""Cross-layer fusion with similarity at each frame: CLSKD and UCLFWPKD."""

from typing import Sequence

import torch
from torch import Tensor

from i2srf_kd.distill.gram import self_gram
from i2srf_kd.distill.matching import DEFAULT_SETS, FusedMethod, check_choice, unit_rows
from i2srf_kd.distill.method import Layout, register_method
from i2srf_kd.distill.similarity import batch_similarity, frame_vectors


@register_method("clskd")
class CrossLayerSimilarity(FusedMethod):
    """CLSKD: fused student layers, compared with the teacher's by which clips look alike at each frame.

    Definition: the student's layers of a set enter a residual fusion, the deepest first
    (:class:`~i2srf_kd.distill.matching.CrossLayerFusion`). Of each fused layer, and of the teacher's
    ``(B, C', T, F')``, the Gram matrix of frame t compares the clips, ``G_t = X_t X_t^T`` ``(B, B)`` with ``X_t``
    ``(B, C' * F')``, rows scaled to length 1. The loss is the mean over frames of ``|G_s - G_t|_F^2 / B^2``.

    Source: cross-layer similarity distillation, Cheng et al., Interspeech 2022. Our reading of what is public
    (cross-layer fusion, similarity at the level of frames): the fusion of ReviewKD, set by set, then SPKD's loss at
    each frame. With one clip per batch the loss is 0.

        method: clskd
        method_conf: {sets: [encoder, dual_path, decoder], middle_channels: 64}
        weight: 1.0

    Args:
        sets: layer sets to distil.
        middle_channels: width of the fusion and of the fused layers.

    Raises:
        ValueError: for sets that a network does not have, or a width below 1.
    """

    source = "Interspeech 2022, our reading"

    @staticmethod
    def _rows(feature: Tensor) -> Tensor:
        """Unit-length rows of the Gram matrices ``(T, B, B)``."""
        vectors = frame_vectors(feature).transpose(0, 1)
        return unit_rows(self_gram(vectors) / vectors.shape[-1])

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return (self._rows(student) - self._rows(teacher)).square().mean()


@register_method("uclfwpkd")
class FrameWeightedProbabilistic(FusedMethod):
    """UCLFWPKD: fused student layers, compared as probabilities over the clips, frames weighted by the teacher.

    Definition: the student's layers of a set enter a residual fusion as in ``clskd``. At each frame,
    ``p = (cos + 1) / 2`` of every pair of clips, rows normalised to sum 1 ``(B, T, B)``. With the weight
    ``w = sigmoid(mean over channels and bins of the teacher's feature)`` ``(B, T)``, the loss is the sum over frames of
    the mean over both clips of ``w (p_t - p_s) (log p_t - log p_s)``.

    Source: UCLFWPKD (residual fusion, frame-weighted probabilistic distillation); only its definition is public. Our
    reading: the fusion of ReviewKD, set by set, and a silent clip counts as similar to none (cosine 0). ``frames:
    mean`` divides by T, which makes the weight of the loss independent of the clip length. With one clip per batch the
    loss is 0.

        method: uclfwpkd
        method_conf: {sets: [encoder, dual_path, decoder], middle_channels: 64, frames: sum}
        weight: 1.0

    Args:
        sets: layer sets to distil.
        middle_channels: width of the fusion and of the fused layers.
        frames: ``sum`` (as defined) or ``mean``.

    Raises:
        ValueError: for sets that a network does not have, a width below 1, or another reduction.
    """

    source = "UCLFWPKD, our reading"

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        sets: Sequence[str] = DEFAULT_SETS,
        middle_channels: int = 64,
        frames: str = "sum",
    ):
        super().__init__(student, teacher, sets, middle_channels)
        check_choice("frames", frames, ("sum", "mean"))
        self.frames = frames

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (batch_similarity(frame_vectors(x)).rows() for x in (student, teacher))
        divergence = ((theirs - ours) * (theirs.log() - ours.log())).mean(-1)  # (B, T)
        weighted = (divergence * torch.sigmoid(teacher.mean((1, 3)))).mean(0)
        return weighted.sum() if self.frames == "sum" else weighted.mean()
