"""Similarity preserving distillation: between the clips of a batch, and inside one activation."""

from typing import Sequence

from torch import Tensor

from i2srf_kd.distill.gram import self_gram
from i2srf_kd.distill.matching import DEFAULT_SETS, PairedMethod, check_choice, match_width, unit_rows
from i2srf_kd.distill.method import Layout, register_method

_AXES = ("time", "frequency")


def _gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the unit-length rows of both Gram matrices ``(..., N)`` of ``(..., N, D)``, ``(..., N, D')``.

    Vectors are averaged over D, not summed, so that both sides stay in a range where the floor of ``unit_rows`` only
    matters for silence.
    """
    grams = [unit_rows(self_gram(x) / x.shape[-1]) for x in (student, teacher)]
    return (grams[0] - grams[1]).square().sum(-1)


@register_method("spkd")
class SimilarityPreserving(PairedMethod):
    """Similarity preserving: which clips of the batch look alike to the network.

    Definition: a layer ``(B, C, T, F)`` is one vector per clip, X ``(B, C * T * F)``; ``G = X X^T`` with rows scaled
    to length 1; the loss is ``|G_s - G_t|_F^2 / B^2``.

    Source: ICCV 2019, arXiv 1907.09682. Neither channels nor bins need to agree. With one clip per
    batch there is nothing to compare: the loss is then 0.

        method: spkd
        method_conf: {sets: [encoder, dual_path, decoder]}
        weight: 1.0

    Args:
        sets: layer sets to distil.

    Raises:
        ValueError: for sets that a network does not have.
    """

    source = "ICCV 2019, arXiv 1907.09682"

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        return _gram_distance(student.flatten(1), teacher.flatten(1)).mean() / len(student)


@register_method("fskd")
class FineGrainedSimilarity(PairedMethod):
    """Fine-grained similarity: Gram matrices of frames and of bins inside each activation.

    Definition: of a clip's activation ``(C, T, F)``, the time Gram ``(T, T)`` compares the frames as vectors of
    ``C * F`` numbers, the frequency Gram ``(F, F)`` the bins as vectors of ``C * T``. Rows are scaled to length 1;
    the loss of an axis is the squared distance of the rows of student and teacher, averaged over clips and rows. The
    loss of a layer is the mean over the axes.

    Source: two-step distillation, Nathoo et al., arXiv 2309.08144. Its two steps are the schedule: first
    ``kd_only_steps`` on this loss alone, then the task. Our reading of what is public: both axes, a mean over rows (a
    division by T^2 would make the loss shrink with the clip), and for the frequency Gram the teacher brought to the
    student's bins by area averages.

        method: fskd
        method_conf: {axes: [time, frequency]}
        kd_only_steps: 10000
        weight: 1.0

    Args:
        sets: layer sets to distil.
        axes: ``time``, ``frequency`` or both.

    Raises:
        ValueError: for sets that a network does not have, or other axes.
    """

    source = "arXiv 2309.08144, our reading"

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        sets: Sequence[str] = DEFAULT_SETS,
        axes: Sequence[str] = _AXES,
    ):
        super().__init__(student, teacher, sets)
        if isinstance(axes, str) or not axes:
            raise ValueError(f"axes must be a list such as [time, frequency], not {axes!r}")
        for axis in axes:
            check_choice("axes", axis, _AXES)
        self.axes = list(dict.fromkeys(axes))

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        loss = student.new_zeros(())
        if "time" in self.axes:
            ours, theirs = (x.transpose(1, 2).flatten(2) for x in (student, teacher))
            loss = loss + _gram_distance(ours, theirs).mean()
        if "frequency" in self.axes:
            matched = match_width(teacher, student.shape[3])
            ours, theirs = (x.flatten(1, 2).mT for x in (student, matched))
            loss = loss + _gram_distance(ours, theirs).mean()
        return loss / len(self.axes)
