"""Time-frequency calibration of one layer set (arXiv 2506.13127, section on TFCKD).

Every student layer is compared with every teacher layer. Learned weights, one per clip, frame and pair, say how much
each teacher layer teaches each student layer; they come from the match of a query (student) and a key (teacher),
both embeddings of the layer's own similarity rows.

The published embeddings are linear in the row and therefore tied to one batch size and one number of frames. They are
kept as ``embedding="fixed"``; in evaluation mode, batches of another size are weighted uniformly.
``embedding="pooled"`` (ours) reads cosines instead of raw products, which makes it independent of gain, and resamples
a row to a fixed number of bins: along time in order, along the batch sorted by similarity, since clips of a batch have
no order. It works for any batch size and length.
"""

import math
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.distill.similarity import Similarity, layer_similarities, symmetric_kl

_EMBEDDING_FLOOR = 1e-12


@dataclass(frozen=True)
class CalibrationOptions:
    """How a layer set is calibrated.

    Attributes:
        embedding: ``pooled`` (any size), ``fixed`` (published, needs ``frames`` and ``batch_size``) or ``none``
            (uniform weights: distillation without calibration).
        frames, batch_size: sizes of the published form.
        time_bins, batch_bins: length to which the pooled form resamples a row.
        time_expansion, batch_expansion: hidden width of the embedding relative to its input.
        normalize_over: axis over which an embedding has unit length: ``frame`` (published; weights flatten as the clip
            grows) or ``embedding`` (ours).
        temperature: divides the match before the softmax (published: 1).
        batch_reduction: divides the batch stream by ``clips`` = B * B (published; grows as T / B) or by ``frames`` =
            B * T, as in the time stream (ours).
        weighting: ``own``: each stream is weighted by its own weights (published code). ``other`` and ``product`` are
            our literal readings of "cross-calibration": by the other stream's weights, or by the product of both,
            renormalised.
        time_stream, frequency_stream: switch a stream off. The frequency stream is the batch stream of the code.
        gather: in training with several processes, compare each clip with those of the whole batch, as one process
            would; the processes then exchange the layers' features. Otherwise, and in validation, each process
            compares the clips of its own part of the batch.
    """

    embedding: str = "pooled"
    frames: Optional[int] = None
    batch_size: Optional[int] = None
    time_bins: int = 64
    batch_bins: int = 8
    time_expansion: int = 2
    batch_expansion: int = 2
    normalize_over: str = "frame"
    temperature: float = 1.0
    batch_reduction: str = "clips"
    weighting: str = "own"
    time_stream: bool = True
    frequency_stream: bool = True
    gather: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "embedding": ("pooled", "fixed", "none"),
            "normalize_over": ("frame", "embedding"),
            "batch_reduction": ("clips", "frames"),
            "weighting": ("own", "other", "product"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"calibration {name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.embedding == "fixed" and not (self.frames and self.batch_size):
            raise ValueError("calibration embedding='fixed' needs frames and batch_size, the only sizes it accepts")
        if not (isinstance(self.temperature, (int, float)) and self.temperature > 0):
            raise ValueError(f"calibration temperature must be a positive number, not {self.temperature!r}")
        for name in ("time_bins", "batch_bins", "time_expansion", "batch_expansion"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"calibration {name} must be a whole number of at least 1, not {value!r}")
        if not (self.time_stream or self.frequency_stream):
            raise ValueError("calibration with neither time_stream nor frequency_stream has nothing to compare")


class SetLoss(NamedTuple):
    """Loss of one layer set with Ns student and Nt teacher layers.

    Attributes:
        loss: scalar, ``time_loss + batch_loss``.
        time_loss, batch_loss: scalars, 0 for a stream that is off.
        time_pair_loss, batch_pair_loss: ``(Ns, Nt)``, before the division by Ns; None for a stream that is off.
        time_weights, batch_weights: ``(B, T, Ns, Nt)``, softmax over the teacher layers; None where not computed.
    """

    loss: Tensor
    time_loss: Tensor
    batch_loss: Tensor
    time_pair_loss: Optional[Tensor]
    batch_pair_loss: Optional[Tensor]
    time_weights: Optional[Tensor]
    batch_weights: Optional[Tensor]

    def detach(self) -> "SetLoss":
        """The same values, cut from the graph."""
        return SetLoss(*(value if value is None else value.detach() for value in self))  # type: ignore[arg-type]


def resampling_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """Matrix ``(length, bins)`` of area averages: bin k is the mean of the row over ``[k, k+1) * length / bins``."""
    edges = torch.arange(bins + 1, device=like.device, dtype=like.dtype) * (length / bins)
    cells = torch.arange(length, device=like.device, dtype=like.dtype).unsqueeze(1)
    overlap = torch.minimum(cells + 1, edges[1:]) - torch.maximum(cells, edges[:-1])
    return overlap.clamp_min(0) * (bins / length)


class RowEmbedding(nn.Sequential):
    """Two-layer embedding of a similarity row: ``(B, T, N)`` to ``(B, T, output)``."""

    def __init__(self, size: int, hidden: int, output: int):
        super().__init__(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, output))


class CalibrationWeights(nn.Module):
    """Weights of all student-teacher pairs for one stream.

    Args:
        student_layers, teacher_layers: Ns and Nt.
        stream: ``time`` or ``batch``.
        options: see :class:`CalibrationOptions`.
    """

    def __init__(self, student_layers: int, teacher_layers: int, stream: str, options: CalibrationOptions):
        super().__init__()
        self.stream = stream
        self.options = options
        if stream == "time":
            size = int(options.frames or 0) if options.embedding == "fixed" else options.time_bins
            hidden, output = options.time_expansion * size, size
        else:
            size = int(options.batch_size or 0) if options.embedding == "fixed" else options.batch_bins
            hidden = output = options.batch_expansion * size
        self.size = size
        self.queries = nn.ModuleList(RowEmbedding(size, hidden, output) for _ in range(student_layers))
        self.keys = nn.ModuleList(RowEmbedding(size, hidden, output) for _ in range(teacher_layers))

    def accepts(self, similarity: Similarity) -> bool:
        """Whether the embeddings take a similarity of this size."""
        return self.options.embedding != "fixed" or similarity.gram.shape[-1] == self.size

    def _row(self, similarity: Similarity) -> Tensor:
        """What the embedding reads, ``(B, T, size)``."""
        if self.options.embedding == "fixed":
            if not self.accepts(similarity):
                name = "frames" if self.stream == "time" else "clips"
                raise ValueError(
                    f"fixed {self.stream} calibration was built for {self.size} {name}, got "
                    f"{similarity.gram.shape[-1]}: use embedding='pooled' for varying sizes"
                )
            return similarity.gram
        row = similarity.cosine
        if self.stream == "batch":
            row = row.sort(-1, descending=True).values
        return row @ resampling_matrix(row.shape[-1], self.size, row)

    def _embed(self, embedding: nn.Module, similarity: Similarity) -> Tensor:
        # Embeddings may live in another dtype (a model cast to float64 or bfloat16) than the similarities.
        row = self._row(similarity)
        embedded = embedding(row.to(next(embedding.parameters()).dtype)).to(row.dtype)
        axis = 1 if self.options.normalize_over == "frame" else -1
        return F.normalize(embedded, dim=axis, eps=_EMBEDDING_FLOOR)

    def forward(self, student: Sequence[Similarity], teacher: Sequence[Similarity]) -> Tensor:
        """Softmax over the teacher layers of the match of queries and keys: ``(B, T, Ns, Nt)``."""
        queries = torch.stack([self._embed(e, s) for e, s in zip(self.queries, student, strict=True)], dim=2)
        keys = torch.stack([self._embed(e, s) for e, s in zip(self.keys, teacher, strict=True)], dim=2)
        return torch.softmax(queries @ keys.mT / self.options.temperature, dim=-1)


def pair_losses(student: Sequence[Similarity], teacher: Sequence[Similarity]) -> Tensor:
    """Symmetric KL of the row distributions of every pair: ``(B, T, Ns, Nt)``, teacher rows detached."""
    ours = [(rows, rows.log()) for rows in (s.rows() for s in student)]
    theirs = [(rows, rows.log()) for rows in (t.detach().rows() for t in teacher)]
    return torch.stack(
        [torch.stack([symmetric_kl(p, q, log_p, log_q) for q, log_q in theirs], -1) for p, log_p in ours], -2
    )


def relative_entropy(weights: Tensor) -> Tensor:
    """Entropy over the last axis relative to the largest one: 1 for equal weights, 0 where one layer has them all.

    Args:
        weights: ``(..., Nt)`` with sum 1 and Nt of 2 or more.
    """
    return torch.special.entr(weights).sum(-1) / math.log(weights.shape[-1])


class CalibratedSetLoss(nn.Module):
    """Calibrated distillation of one layer set.

    Args:
        student_layers, teacher_layers: number of layers Ns and Nt.
        options: see :class:`CalibrationOptions`.
        attach_keys: let the teacher's keys carry a gradient (to a trained fusion of teacher layers); the teacher's
            row distributions never do.
    """

    def __init__(
        self,
        student_layers: int,
        teacher_layers: int,
        options: Optional[CalibrationOptions] = None,
        attach_keys: bool = False,
    ):
        super().__init__()
        self.options = options or CalibrationOptions()
        self.student_layers = student_layers
        self.teacher_layers = teacher_layers
        self.attach_keys = attach_keys
        used = self._weight_streams()
        self.time = self._weights("time") if "time" in used else None
        self.batch = self._weights("batch") if "batch" in used else None

    def _weight_streams(self) -> List[str]:
        """Streams whose weights enter the loss; the others get no parameters."""
        options = self.options
        if options.embedding == "none":
            return []
        active = [s for s, on in (("time", options.time_stream), ("batch", options.frequency_stream)) if on]
        if options.weighting == "own":
            return active
        if options.weighting == "other":
            return [{"time": "batch", "batch": "time"}[s] for s in active]
        return ["time", "batch"]

    def _weights(self, stream: str) -> CalibrationWeights:
        return CalibrationWeights(self.student_layers, self.teacher_layers, stream, self.options)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> SetLoss:
        """Compare features ``(B, C, T, F)``; channels and widths may differ between layers, B and T may not.

        Raises:
            ValueError: when the number of layers, B or T do not fit.
        """
        _check_layers(student, teacher, self.student_layers, self.teacher_layers)
        with torch.autocast(student[0].device.type, enabled=False):
            # Batches of validation may differ in size between processes.
            gather = self.options.gather and self.training
            student_time, student_batch = zip(*(layer_similarities(layer, gather) for layer in student), strict=True)
            teacher_time, teacher_batch = zip(*(layer_similarities(layer, gather) for layer in teacher), strict=True)
            time_weights = self._stream_weights(self.time, student_time, teacher_time)
            batch_weights = self._stream_weights(self.batch, student_batch, teacher_batch)
            time_loss = batch_loss = student_time[0].gram.new_zeros(())
            time_pairs = batch_pairs = None
            if self.options.time_stream:
                weights = self._combine(time_weights, batch_weights)
                divisor = student_time[0].gram.shape[1]
                time_pairs = self._reduce(pair_losses(student_time, teacher_time), weights, divisor)
                time_loss = time_pairs.sum() / self.student_layers
            if self.options.frequency_stream:
                weights = self._combine(batch_weights, time_weights)
                batch_pairs = self._reduce(
                    pair_losses(student_batch, teacher_batch), weights, self._batch_divisor(student_batch[0])
                )
                batch_loss = batch_pairs.sum() / self.student_layers
        return SetLoss(
            time_loss + batch_loss, time_loss, batch_loss, time_pairs, batch_pairs, time_weights, batch_weights
        )

    def _stream_weights(
        self, weights: Optional[CalibrationWeights], student: Sequence[Similarity], teacher: Sequence[Similarity]
    ) -> Optional[Tensor]:
        if weights is None or not (self.training or weights.accepts(student[0])):
            return None
        return weights(student, teacher if self.attach_keys else [t.detach() for t in teacher])

    def _combine(self, own: Optional[Tensor], other: Optional[Tensor]) -> Optional[Tensor]:
        if self.options.weighting == "own":
            return own
        if self.options.weighting == "other":
            return other
        if own is None or other is None:
            return None
        product = own * other
        return product / product.sum(-1, keepdim=True)

    def _batch_divisor(self, similarity: Similarity) -> int:
        return similarity.gram.shape[2 if self.options.batch_reduction == "clips" else 1]

    def _reduce(self, losses: Tensor, weights: Optional[Tensor], divisor: int) -> Tensor:
        """Weight ``(B, T, Ns, Nt)`` and average over the clips, to ``(Ns, Nt)``; no weights means uniform ones.

        Args:
            divisor: of the sum over the frames.
        """
        weighted = losses / self.teacher_layers if weights is None else losses * weights
        return weighted.sum((0, 1)) / (losses.shape[0] * divisor)


def _check_layers(
    student: Sequence[Tensor], teacher: Sequence[Tensor], student_layers: int, teacher_layers: int
) -> None:
    for who, features, count in (("student", student, student_layers), ("teacher", teacher, teacher_layers)):
        if len(features) != count:
            raise ValueError(f"the set was built for {count} {who} layers, got {len(features)}")
    sizes = {(f.shape[0], f.shape[2]) for f in (*student, *teacher)}
    if len(sizes) > 1:
        raise ValueError(f"all layers of a set need the same batch size and number of frames, got (B, T) = {sizes}")
