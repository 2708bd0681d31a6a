"""Similarity of frames, of bins and of clips (arXiv 2506.13127, section on TFCKD; that of bins is ours).

A feature ``(B, C, T, F)`` is read as one vector of ``C * F`` numbers per clip and frame. Two Gram matrices compare
these vectors:

- the **time** stream compares the frames of a clip, ``(B, T, T)``;
- the **clips'** stream compares the clips of a batch at the same frame, ``(B, T, N)`` with N = B, or N the clips of all
  processes of a training. The paper calls it the frequency stream: it compares spectral content, though no axis of it
  is a frequency axis.

The **frequency** stream reads a vector of ``C * T`` numbers per clip and bin, and compares the bins of a clip,
``(B, F, F)``.

Each matrix is computed once per layer, whatever the number of pairs it enters.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from i2srf_kd.distill.distributed_clips import gather_clips
from i2srf_kd.distill.gram import frame_grams, self_gram

NORM_EPS = 1e-6
# Vectors shorter than this count as silent: they are similar to nothing and receive no gradient.
_SILENT_NORM = 1e-12
# Smallest similarity, so that an exactly antiparallel pair has a finite logarithm.
_SIMILARITY_FLOOR = 1e-12


class Similarity(NamedTuple):
    """One layer's comparison along one axis.

    Attributes:
        gram: inner products ``(B, T, N)``; N is T in the time stream and the number of compared clips in the clips'
            stream. In the frequency stream both axes are bins.
        cosine: the same divided by both norms, 0 for silent vectors.
    """

    gram: Tensor
    cosine: Tensor

    def detach(self) -> "Similarity":
        """The same values, cut from the graph."""
        return Similarity(self.gram.detach(), self.cosine.detach())

    def rows(self) -> Tensor:
        """Row distributions ``(B, T, N)``: ``(1 + cosine) / 2``, normalised to sum 1 over the last axis."""
        similarity = (0.5 * (1.0 + self.cosine)).clamp_min(_SIMILARITY_FLOOR)
        return similarity / similarity.sum(-1, keepdim=True)


def resampling_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """Matrix ``(length, bins)`` of area averages: bin k is the mean of the row over ``[k, k+1) * length / bins``."""
    edges = torch.arange(bins + 1, device=like.device, dtype=like.dtype) * (length / bins)
    cells = torch.arange(length, device=like.device, dtype=like.dtype).unsqueeze(1)
    overlap = torch.minimum(cells + 1, edges[1:]) - torch.maximum(cells, edges[:-1])
    return overlap.clamp_min(0) * (bins / length)


def frame_vectors(feature: Tensor) -> Tensor:
    """``(B, C, T, F)`` to one vector per clip and frame ``(B, T, C * F)``, channel major, in at least float32.

    Raises:
        ValueError: when the feature has not four axes.
    """
    return _as_float(feature).transpose(1, 2).flatten(2)


def _as_float(feature: Tensor) -> Tensor:
    if feature.dim() != 4:
        raise ValueError(f"expected a feature (B, C, T, F), got shape {tuple(feature.shape)}")
    return feature.to(torch.promote_types(feature.dtype, torch.float32))


def _similarity(gram: Tensor) -> Similarity:
    """Cosines of the vectors whose Gram matrices ``(N0, N, N)`` are given."""
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp_min(_SILENT_NORM**2).sqrt()
    silent = norm <= _SILENT_NORM
    scale = (norm + NORM_EPS).reciprocal()
    cosine = gram * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    cosine = cosine.masked_fill(silent.unsqueeze(-1) | silent.unsqueeze(-2), 0.0)
    return Similarity(gram, cosine)


def _cross_similarity(vectors: Tensor, others: Tensor) -> Similarity:
    """Gram and cosines of two groups of vectors, ``(N0, M, D)`` and ``(N0, N, D)``: to ``(N0, M, N)``."""
    gram = vectors @ others.mT
    norm, other_norm = (x.square().sum(-1).clamp_min(_SILENT_NORM**2).sqrt() for x in (vectors, others))
    scale, other_scale = (norm + NORM_EPS).reciprocal(), (other_norm + NORM_EPS).reciprocal()
    cosine = gram * scale.unsqueeze(-1) * other_scale.unsqueeze(-2)
    silent = (norm <= _SILENT_NORM).unsqueeze(-1) | (other_norm <= _SILENT_NORM).unsqueeze(-2)
    return Similarity(gram, cosine.masked_fill(silent, 0.0))


def time_similarity(vectors: Tensor) -> Similarity:
    """Compare the frames of each clip: ``(B, T, D)`` to Gram and cosines ``(B, T, T)``."""
    return _similarity(self_gram(vectors))


def batch_similarity(vectors: Tensor, gather: bool = False) -> Similarity:
    """Compare the clips at each frame: ``(B, T, D)`` to Gram and cosines ``(B, T, N)``.

    Args:
        vectors: clips of this process.
        gather: compare them with the clips of all processes; otherwise N = B.
    """
    others = gather_clips(vectors) if gather else vectors
    if others is vectors:
        found = _similarity(self_gram(vectors.transpose(0, 1)))
    else:
        found = _cross_similarity(vectors.transpose(0, 1), others.transpose(0, 1))
    return _clips_first(found)


def _clips_first(similarity: Similarity) -> Similarity:
    """``(T, B, N)`` to ``(B, T, N)``."""
    return Similarity(similarity.gram.transpose(0, 1), similarity.cosine.transpose(0, 1))


def layer_similarities(feature: Tensor, gather: bool = False) -> Tuple[Similarity, Similarity]:
    """Both streams of one feature ``(B, C, T, F)``: (time, batch); ``gather`` as in :func:`batch_similarity`."""
    with torch.autocast(feature.device.type, enabled=False):
        if gather:
            vectors = frame_vectors(feature)
            return time_similarity(vectors), batch_similarity(vectors, gather)
        by_time, by_frame = frame_grams(_as_float(feature))
        return _similarity(by_time), _clips_first(_similarity(by_frame))


def bin_similarity(feature: Tensor, bins: int) -> Similarity:
    """Compare the bins of each clip: ``(B, C, T, F)`` to Gram and cosines ``(B, bins, bins)``.

    Args:
        bins: number of bins that the feature is brought to by area averages, so that layers of any width compare.
    """
    with torch.autocast(feature.device.type, enabled=False):
        feature = _as_float(feature)
        if feature.shape[-1] != bins:
            feature = feature @ resampling_matrix(feature.shape[-1], bins, feature)
        return _similarity(self_gram(feature.permute(0, 3, 1, 2).flatten(2)))


def symmetric_kl(p: Tensor, q: Tensor, log_p: Optional[Tensor] = None, log_q: Optional[Tensor] = None) -> Tensor:
    """Symmetric Kullback-Leibler divergence (natural log) over the last axis: ``(..., N)`` to ``(...)``.

    Not expanded into self and cross terms: those cancel in float32 as the student nears the teacher.

    Args:
        log_p, log_q: logarithms, where they are known already.
    """
    log_p = p.log() if log_p is None else log_p
    log_q = q.log() if log_q is None else log_q
    return ((p - q) * (log_p - log_q)).sum(-1)
