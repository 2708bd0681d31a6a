"""SemCKD: each student layer learns from all teacher layers, by attention (arXiv 2012.03236)."""

from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from i2srf_kd.distill.matching import (
    DEFAULT_SETS,
    Conv,
    check_count,
    check_sets,
    full_precision,
    match_width,
)
from i2srf_kd.distill.method import DistillMethod, LayerShape, Layout, Side, register_method


class _Pairs(nn.Module):
    """Regressors and attention of one layer set with Ns student and Nt teacher layers."""

    def __init__(self, student: Sequence[LayerShape], teacher: Sequence[LayerShape], size: int):
        super().__init__()
        self.regress = nn.ModuleList(
            nn.ModuleList(Conv(ours.channels, theirs.channels) for theirs in teacher) for ours in student
        )
        self.queries = nn.ModuleList(Conv(layer.channels, size) for layer in student)
        self.keys = nn.ModuleList(Conv(layer.channels, size) for layer in teacher)

    @staticmethod
    def _embed(embeddings: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
        """One vector per clip and layer: ``(B, N, size)``."""
        levels = [feature.abs().mean((2, 3), keepdim=True) for feature in features]
        return torch.stack([e(x).flatten(1) for e, x in zip(embeddings, levels, strict=True)], 1)

    def weights(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Softmax over the teacher layers: ``(B, Ns, Nt)``."""
        queries, keys = self._embed(self.queries, student), self._embed(self.keys, teacher)
        return torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, dim=-1)

    def errors(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean squared error of every pair, per clip: ``(B, Ns, Nt)``."""
        rows: List[Tensor] = []
        for ours, regressors in zip(student, self.regress, strict=True):
            assert isinstance(regressors, nn.ModuleList)
            pairs = zip(regressors, teacher, strict=True)
            differences = [match_width(regress(ours), theirs.shape[3]) - theirs for regress, theirs in pairs]
            rows.append(torch.stack([d.square().flatten(1).mean(1) for d in differences], -1))
        return torch.stack(rows, 1)


@register_method("semckd")
class SemCKD(DistillMethod):
    """SemCKD: attention of each student layer over all teacher layers of its set decides which of them it imitates.

    Definition: every student layer ``(B, C, T, F)`` is regressed onto every teacher layer ``(B, C', T, F')`` (1x1
    convolution, area averages along frequency), which gives squared errors e ``(B, Ns, Nt)``. Weights a are the
    softmax over the teacher layers of the match of a query (student layer) and a key (teacher layer). The loss of a
    set is the mean over clips and student layers of ``sum_t a e``.

    Source: Chen et al., AAAI 2021, arXiv 2012.03236. Our reading: queries and keys are linear in the mean magnitude of
    each channel, which takes any number of clips (the published ones read a row of the batch's similarity matrix and
    are tied to one batch size), the match is divided by the root of its size, and attention stays within a set.

        method: semckd
        method_conf: {sets: [encoder, dual_path, decoder], embedding_size: 32}
        weight: 0.1

    Args:
        sets: layer sets to distil.
        embedding_size: length of queries and keys.

    Raises:
        ValueError: for sets that a network does not have, or a size below 1.
    """

    source = "AAAI 2021, arXiv 2012.03236"

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        sets: Sequence[str] = DEFAULT_SETS,
        embedding_size: int = 32,
    ):
        super().__init__(student, teacher)
        check_sets(sets, student, teacher)
        check_count("embedding_size", embedding_size)
        self.pairs = nn.ModuleDict({name: _Pairs(student[name], teacher[name], embedding_size) for name in sets})
        self.last: Dict[str, Tensor] = {}

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        terms: Dict[str, Tensor] = {}
        for name, pairs in self.pairs.items():
            assert isinstance(pairs, _Pairs)
            theirs = [full_precision(f.detach()) for f in teacher.features[name]]
            with torch.autocast(theirs[0].device.type, enabled=False):
                ours = [full_precision(f) for f in student.features[name]]
                weights = pairs.weights(ours, theirs)
                terms[name] = (weights * pairs.errors(ours, theirs)).sum(-1).mean()
            self.last[f"{name}_weights"] = weights.detach().mean(0)
        return terms

    def diagnostics(self) -> Dict[str, Tensor]:
        """Mean attention ``(Ns, Nt)`` of each set."""
        return dict(self.last)
