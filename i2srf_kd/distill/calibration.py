"""Calibrated distillation of one layer set (arXiv 2506.13127, section on TFCKD).

Every student layer is compared with every teacher layer, in up to three streams:

- ``time``: the frames of a clip with each other, a distance for each frame;
- ``frequency`` (ours): the bins of a clip with each other, a distance for each bin;
- ``clips``: the clips of the batch with each other at a frame, a distance for each frame. The paper and its code call
  this one the frequency stream.

Calibration weights, one per clip, frame (or bin) and pair of layers, say how much each teacher layer teaches each
student layer; they sum to 1 over the teacher layers. The published ones are the softmax of the match of a query
(student) and a key (teacher), both embeddings of the layer's own similarity rows, and are trained by the loss that they
scale. Such weights learn to choose the easiest pair and thereby hide the loss; ``weights`` and ``learn_from`` offer
others, which cannot.

The published embeddings are linear in the row and therefore tied to one batch size and one number of frames. They are
kept as ``embedding="fixed"``; in evaluation mode, batches of another size are weighted uniformly.
``embedding="pooled"`` (ours) reads cosines instead of raw products, which makes it independent of gain, and resamples
a row to a fixed number of bins: along time and frequency in order, along the clips sorted by similarity, since clips of
a batch have no order. It works for any batch size and length.
"""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.distill.matching import check_choice, check_count, check_number
from i2srf_kd.distill.similarity import Similarity, bin_similarity, layer_similarities, resampling_matrix, symmetric_kl
from i2srf_kd.system.config import refuse_unknown

STREAMS = ("time", "frequency", "clips")
# Names of earlier configurations: the clips' stream under the paper's name, and uniform weights.
_SWITCHES = {"time_stream": "time", "frequency_stream": "clips"}
_EMBEDDING_FLOOR = 1e-12


@dataclass(frozen=True)
class CalibrationOptions:
    """How a layer set is calibrated.

    Attributes:
        streams: which of :data:`STREAMS` are compared (published: time and clips).
        weights: where the weights come from. ``learned``: queries and keys (published). ``agreement``: a softmax over
            the teacher layers of how well their rows agree with the student's, at each frame or bin; no parameters and
            no gradient. ``difference``: the opposite, more weight where student and teacher differ; for use with
            ``benefit``, which says where the teacher is right. ``uniform``: all teacher layers alike.
        learn_from: what trains learned weights: the ``loss`` that they scale (published), or the ``agreement``, as the
            target of a cross entropy; then the loss does not reach them.
        uniform_share: share of the weights, 0 to 1, that stays uniform whatever is learned.
        benefit: scale each distance by how far the teacher's estimate is ahead of the student's at its frame or bin,
            0 to 1 (see :mod:`i2srf_kd.distill.benefit`): a teacher teaches nothing where it is wrong.
        embedding: ``pooled`` (any size) or ``fixed`` (published, needs ``frames`` and ``batch_size``).
        frames, batch_size: sizes of the published form.
        time_bins, batch_bins: length to which the pooled form resamples a row of the time and the clips' stream.
        frequency_bins: bins to which the frequency stream brings the layers, which differ in width.
        time_expansion, batch_expansion: hidden width of the embedding relative to its input; the frequency stream's is
            that of time.
        normalize_over: axis over which an embedding has unit length: ``frame`` (published; weights flatten as the clip
            grows) or ``embedding`` (ours).
        temperature: divides the match, or the relative distance of ``agreement`` and ``difference``, before the softmax
            (published: 1).
        batch_reduction: divides the clips' stream by ``clips`` = B * B (published; grows as T / B) or by ``frames`` =
            B * T, as in the time stream (ours).
        weighting: ``own``: each stream is weighted by its own weights (published code). ``other`` and ``product`` are
            our literal readings of "cross-calibration": by the weights of the other streams, or by the product of all,
            renormalised. Weights of another axis count with their mean over it.
        gather: in training with several processes, compare each clip with those of the whole batch, as one process
            would; the processes then exchange the layers' features. Otherwise, and in validation, each process
            compares the clips of its own part of the batch.
    """

    streams: Tuple[str, ...] = ("time", "clips")
    weights: str = "learned"
    learn_from: str = "loss"
    uniform_share: float = 0.0
    benefit: bool = False
    embedding: str = "pooled"
    frames: Optional[int] = None
    batch_size: Optional[int] = None
    time_bins: int = 64
    batch_bins: int = 8
    frequency_bins: int = 64
    time_expansion: int = 2
    batch_expansion: int = 2
    normalize_over: str = "frame"
    temperature: float = 1.0
    batch_reduction: str = "clips"
    weighting: str = "own"
    gather: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "weights": ("learned", "agreement", "difference", "uniform"),
            "learn_from": ("loss", "agreement"),
            "embedding": ("pooled", "fixed"),
            "normalize_over": ("frame", "embedding"),
            "batch_reduction": ("clips", "frames"),
            "weighting": ("own", "other", "product"),
        }
        for name, choices in allowed.items():
            check_choice(f"calibration {name}", getattr(self, name), choices)
        for stream in self.streams:
            check_choice("a stream of calibration", stream, STREAMS)
        if not self.streams:
            raise ValueError("calibration without streams has nothing to compare")
        if self.embedding == "fixed" and not (self.frames and self.batch_size):
            raise ValueError("calibration embedding='fixed' needs frames and batch_size, the only sizes it accepts")
        if self.embedding == "fixed" and "frequency" in self.streams:
            raise ValueError("calibration embedding='fixed' is the published form, which has no frequency stream")
        check_number("calibration temperature", self.temperature, 0.0, above=True)
        if not (isinstance(self.uniform_share, (int, float)) and 0 <= self.uniform_share <= 1):
            raise ValueError(f"calibration uniform_share must be a number from 0 to 1, not {self.uniform_share!r}")
        for name in ("time_bins", "batch_bins", "frequency_bins", "time_expansion", "batch_expansion"):
            check_count(f"calibration {name}", getattr(self, name))

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "CalibrationOptions":
        """Options as a configuration file has them, the names of earlier ones included.

        Raises:
            ValueError: for an option that does not exist, or a value that it does not take.
        """
        options = dict(given)
        off = [stream for switch, stream in _SWITCHES.items() if not options.pop(switch, True)]
        refuse_unknown(options, list(cls.__dataclass_fields__), "calibration")
        streams = options.get("streams", cls.streams)
        if isinstance(streams, str):
            raise ValueError(f"calibration streams must be a list such as [time, frequency], not {streams!r}")
        options["streams"] = tuple(stream for stream in STREAMS if stream in streams and stream not in off)
        options["streams"] += tuple(stream for stream in streams if stream not in STREAMS)  # refused by name
        if options.get("embedding") == "none":
            options.update(embedding="pooled", weights="uniform")
        return cls(**options)


class StreamLoss(NamedTuple):
    """One stream of a layer set with Ns student and Nt teacher layers; N is T, or the bins of the frequency stream.

    Attributes:
        loss: scalar.
        pair_loss: ``(Ns, Nt)``, before the division by Ns.
        uniform_loss: scalar, the loss under uniform weights and without benefit: the one to compare trainings by.
        weights: ``(B, N, Ns, Nt)``, sum 1 over the teacher layers; None where they are uniform.
    """

    loss: Tensor
    pair_loss: Tensor
    uniform_loss: Tensor
    weights: Optional[Tensor]


class SetLoss(NamedTuple):
    """Loss of one layer set.

    Attributes:
        loss: scalar, the sum over the streams; where the weights have a loss of their own, its gradient comes with this
            one, its value does not.
        streams: by name.
        calibration_loss: what trains the weights where the loss that they scale does not, else None. It has no
            gradient in the networks' features.
    """

    loss: Tensor
    streams: Dict[str, StreamLoss]
    calibration_loss: Optional[Tensor]

    def detach(self) -> "SetLoss":
        """The same values, cut from the graph."""

        def cut(value: Optional[Tensor]) -> Any:
            return None if value is None else value.detach()

        streams = {name: StreamLoss(*(cut(value) for value in stream)) for name, stream in self.streams.items()}
        return SetLoss(self.loss.detach(), streams, cut(self.calibration_loss))


class RowEmbedding(nn.Sequential):
    """Two-layer embedding of a similarity row: ``(B, T, N)`` to ``(B, T, output)``."""

    def __init__(self, size: int, hidden: int, output: int):
        super().__init__(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, output))


class CalibrationWeights(nn.Module):
    """Weights of all student-teacher pairs for one stream.

    Args:
        student_layers, teacher_layers: Ns and Nt.
        stream: of :data:`STREAMS`.
        options: see :class:`CalibrationOptions`.
    """

    def __init__(self, student_layers: int, teacher_layers: int, stream: str, options: CalibrationOptions):
        super().__init__()
        self.stream = stream
        self.options = options
        if stream == "clips":
            size = int(options.batch_size or 0) if options.embedding == "fixed" else options.batch_bins
            hidden = output = options.batch_expansion * size
        else:
            pooled = options.time_bins if stream == "time" else options.frequency_bins
            size = int(options.frames or 0) if options.embedding == "fixed" else pooled
            hidden, output = options.time_expansion * size, size
        self.size = size
        self.queries = nn.ModuleList(RowEmbedding(size, hidden, output) for _ in range(student_layers))
        self.keys = nn.ModuleList(RowEmbedding(size, hidden, output) for _ in range(teacher_layers))

    def accepts(self, similarity: Similarity) -> bool:
        """Whether the embeddings take a similarity of this size."""
        return self.options.embedding != "fixed" or similarity.gram.shape[-1] == self.size

    def _row(self, similarity: Similarity) -> Tensor:
        """What the embedding reads, ``(B, N, size)``."""
        if self.options.embedding == "fixed":
            if not self.accepts(similarity):
                name = "frames" if self.stream == "time" else "clips"
                raise ValueError(
                    f"fixed {self.stream} calibration was built for {self.size} {name}, got "
                    f"{similarity.gram.shape[-1]}: use embedding='pooled' for varying sizes"
                )
            return similarity.gram
        row = similarity.cosine
        if self.stream == "clips":
            row = row.sort(-1, descending=True).values
        return row @ resampling_matrix(row.shape[-1], self.size, row)

    def _embed(self, embedding: nn.Module, similarity: Similarity) -> Tensor:
        # Embeddings may live in another dtype (a model cast to float64 or bfloat16) than the similarities.
        row = self._row(similarity)
        embedded = embedding(row.to(next(embedding.parameters()).dtype)).to(row.dtype)
        axis = 1 if self.options.normalize_over == "frame" else -1
        return F.normalize(embedded, dim=axis, eps=_EMBEDDING_FLOOR)

    def forward(self, student: Sequence[Similarity], teacher: Sequence[Similarity]) -> Tensor:
        """Match of queries and keys over the temperature, the logarithm of unnormalised weights: ``(B, N, Ns, Nt)``."""
        queries = torch.stack([self._embed(e, s) for e, s in zip(self.queries, student, strict=True)], dim=2)
        keys = torch.stack([self._embed(e, s) for e, s in zip(self.keys, teacher, strict=True)], dim=2)
        return queries @ keys.mT / self.options.temperature


def pair_losses(student: Sequence[Similarity], teacher: Sequence[Similarity]) -> Tensor:
    """Symmetric KL of the row distributions of every pair: ``(B, N, Ns, Nt)``, teacher rows detached."""
    ours = [(rows, rows.log()) for rows in (s.rows() for s in student)]
    theirs = [(rows, rows.log()) for rows in (t.detach().rows() for t in teacher)]
    return torch.stack(
        [torch.stack([symmetric_kl(p, q, log_p, log_q) for q, log_q in theirs], -1) for p, log_p in ours], -2
    )


def agreement_weights(distances: Tensor, temperature: float, sign: float = 1.0) -> Tensor:
    """Softmax over the teacher layers of how near each is, relative to their mean distance; without gradient.

    Args:
        distances: ``(B, N, Ns, Nt)``.
        temperature: 1: a teacher layer at half the mean distance has e^0.5 times the weight of one at the mean.
        sign: 1 weighs the near ones more, -1 the far ones.
    """
    distances = distances.detach()
    mean = distances.mean(-1, keepdim=True).clamp_min(torch.finfo(distances.dtype).tiny)
    return torch.softmax(-sign * distances / (mean * temperature), dim=-1)


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
        self.attach_keys = attach_keys and self.options.learn_from == "loss"
        learned = self._weighing_streams() if self.options.weights == "learned" else []
        self.learned = nn.ModuleDict(
            {name: CalibrationWeights(student_layers, teacher_layers, name, self.options) for name in learned}
        )

    def _weighing_streams(self) -> List[str]:
        """Streams whose weights enter the loss; the others get no parameters."""
        streams = self.options.streams
        if self.options.weighting != "own" and len(streams) == 1:
            other = {"time": "clips", "clips": "time", "frequency": "time"}[streams[0]]
            return [other] if self.options.weighting == "other" else [*streams, other]
        return list(streams)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], benefit: Optional[Mapping[str, Tensor]] = None
    ) -> SetLoss:
        """Compare features ``(B, C, T, F)``; channels and widths may differ between layers, B and T may not.

        Args:
            benefit: for each stream how much the teacher is ahead, ``(B, N)`` from 0 to 1; None: everywhere alike.

        Raises:
            ValueError: when the number of layers, B or T do not fit.
        """
        _check_layers(student, teacher, self.student_layers, self.teacher_layers)
        with torch.autocast(student[0].device.type, enabled=False):
            used = list(dict.fromkeys((*self.options.streams, *self._weighing_streams())))
            ours, theirs = self._similarities(student, used), self._similarities(teacher, used)
            compared = used if self._reads_distances() else self.options.streams
            distances = {name: pair_losses(ours[name], theirs[name]) for name in compared}
            weights, calibration_loss = self._weights(ours, theirs, distances)
            streams = {}
            for name in self.options.streams:
                gain = None if benefit is None else benefit[name]
                by_clips = name == "clips" and self.options.batch_reduction == "clips"
                divisor = ours[name][0].gram.shape[2 if by_clips else 1]
                streams[name] = self._stream_loss(distances[name], self._combine(name, weights), gain, divisor)
        total = torch.stack([stream.loss for stream in streams.values()]).sum()
        if calibration_loss is not None:
            total = total + calibration_loss - calibration_loss.detach()
        return SetLoss(total, streams, calibration_loss)

    def _reads_distances(self) -> bool:
        """Whether weights come from the distances themselves."""
        return self.options.weights in ("agreement", "difference") or self.options.learn_from == "agreement"

    def _similarities(self, layers: Sequence[Tensor], streams: Sequence[str]) -> Dict[str, List[Similarity]]:
        found: Dict[str, List[Similarity]] = {}
        if "time" in streams or "clips" in streams:
            # Batches of validation may differ in size between processes.
            gather = self.options.gather and self.training
            pairs = [layer_similarities(layer, gather) for layer in layers]
            found["time"], found["clips"] = [time for time, _ in pairs], [clips for _, clips in pairs]
        if "frequency" in streams:
            found["frequency"] = [bin_similarity(layer, self.options.frequency_bins) for layer in layers]
        return found

    def _weights(
        self,
        student: Mapping[str, Sequence[Similarity]],
        teacher: Mapping[str, Sequence[Similarity]],
        distances: Mapping[str, Tensor],
    ) -> Tuple[Dict[str, Tensor], Optional[Tensor]]:
        """Weights ``(B, N, Ns, Nt)`` by stream, none where they are uniform, and the loss that trains them."""
        options = self.options
        if options.weights == "uniform":
            return {}, None
        if options.weights != "learned":
            sign = 1.0 if options.weights == "agreement" else -1.0
            found = {
                name: agreement_weights(distances[name], options.temperature, sign) for name in self._weighing_streams()
            }
            return {name: self._with_uniform_share(value) for name, value in found.items()}, None
        apart = options.learn_from == "agreement"
        weights, losses = {}, []
        for name, learned in self.learned.items():
            if not (self.training or learned.accepts(student[name][0])):  # type: ignore[operator]
                continue
            queries = [s.detach() for s in student[name]] if apart else student[name]
            keys = teacher[name] if self.attach_keys else [t.detach() for t in teacher[name]]
            match = learned(queries, keys)
            if apart:
                target = agreement_weights(distances[name], options.temperature)
                losses.append(-(target * torch.log_softmax(match, -1)).sum(-1).mean())
                match = match.detach()
            weights[name] = self._with_uniform_share(torch.softmax(match, -1))
        return weights, torch.stack(losses).sum() if losses else None

    def _with_uniform_share(self, weights: Tensor) -> Tensor:
        share = self.options.uniform_share
        return weights if share == 0 else (1 - share) * weights + share / self.teacher_layers

    def _combine(self, stream: str, weights: Mapping[str, Tensor]) -> Optional[Tensor]:
        """Weights that a stream is weighted with."""
        if self.options.weighting == "own":
            return weights.get(stream)
        if len(weights) < len(self._weighing_streams()):
            return None
        others = [_on_axis(value, name, stream) for name, value in weights.items() if name != stream]
        if self.options.weighting == "other":
            return torch.stack(torch.broadcast_tensors(*others)).mean(0)
        product = weights[stream]
        for other in others:
            product = product * other
        return product / product.sum(-1, keepdim=True)

    def _stream_loss(
        self, distances: Tensor, weights: Optional[Tensor], benefit: Optional[Tensor], divisor: int
    ) -> StreamLoss:
        """Weighted distances, a mean over the clips and their sum over frames or bins divided by ``divisor``."""
        divisor *= distances.shape[0]
        weighted = distances / self.teacher_layers if weights is None else distances * weights
        if benefit is not None:
            weighted = weighted * benefit.to(weighted.dtype)[:, :, None, None]
        pair_loss = weighted.sum((0, 1)) / divisor
        uniform = distances.detach().sum() / (divisor * self.teacher_layers * self.student_layers)
        return StreamLoss(pair_loss.sum() / self.student_layers, pair_loss, uniform, weights)


def _on_axis(weights: Tensor, stream: str, target: str) -> Tensor:
    """Weights of one stream for the places of another: a mean over frames or bins where these are not its own."""
    same = (stream == "frequency") == (target == "frequency")
    return weights if same else weights.mean(1, keepdim=True)


def _check_layers(
    student: Sequence[Tensor], teacher: Sequence[Tensor], student_layers: int, teacher_layers: int
) -> None:
    for who, features, count in (("student", student, student_layers), ("teacher", teacher, teacher_layers)):
        if len(features) != count:
            raise ValueError(f"the set was built for {count} {who} layers, got {len(features)}")
    sizes = {(f.shape[0], f.shape[2]) for f in (*student, *teacher)}
    if len(sizes) > 1:
        raise ValueError(f"all layers of a set need the same batch size and number of frames, got (B, T) = {sizes}")
