"""Which chunk of which utterance goes into which batch.

Everything here is a pure function of utterance lengths, options, seed, epoch, rank and number of ranks. No file is
opened, so a batch can be named, skipped or repeated without reading audio, and a resumed or differently parallel run
sees the same data.

Training reads an endless stream: one shuffled pass over all chunks after the other. An epoch is the next
``steps * batch_size`` entries of that stream, so what does not fill a batch at the end of an epoch opens the next one
and no chunk is ever dropped. Validation covers every utterance in the same way each time and never drops anything.
"""

from typing import List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from i2srf_kd.system.errors import UserError


class Chunk(NamedTuple):
    """A stretch of one utterance, in samples. ``length`` is below the chunk length only for short utterances."""

    utt_id: str
    start: int
    length: int


Batch = List[Chunk]


def count_chunks(length: int, chunk_length: int, hop: int) -> int:
    """Number of chunks that cover an utterance of ``length`` samples."""
    return max(0, -(-(length - chunk_length) // hop)) + 1


def cover_utterance(length: int, chunk_length: int, hop: int, shift: float = 0.0) -> np.ndarray:
    """Starts of the chunks that cover an utterance.

    The grid of starts may slide without a hole or a change of its size: the first chunk always begins at 0, the last
    always ends with the utterance, and neighbours are at most ``hop`` apart.

    Args:
        length: samples of the utterance.
        chunk_length: samples of a chunk.
        hop: samples between two chunks, at most ``chunk_length``.
        shift: position of the grid in its room for play, 0 (aligned to the start) to 1 (aligned to the end).

    Returns:
        Starts in samples, ascending; ``[0]`` for an utterance that fits into one chunk.
    """
    last_start = max(0, length - chunk_length)
    n_chunks = count_chunks(length, chunk_length, hop)
    play = (n_chunks - 1) * hop - last_start
    starts = np.arange(n_chunks, dtype=np.int64) * hop - round(shift * play)
    return np.clip(starts, 0, last_start)


def training_steps(
    lengths: Mapping[str, int], chunk_length: int, hop: int, batch_size: int, chunks_per_utterance: int = 0
) -> int:
    """Full batches in one pass over the training data.

    Raises:
        UserError: there are fewer chunks than one batch takes, or an option is out of range.
    """
    _check_options(lengths, chunk_length, hop, batch_size)
    n_chunks = _pass_size(lengths, chunk_length, hop, chunks_per_utterance)
    if n_chunks < batch_size:
        raise UserError(
            f"--batch_size {batch_size} is more than the {n_chunks} chunk(s) that {len(lengths)} training utterance(s) "
            f"give with --chunk_length {chunk_length}: lower --batch_size or --chunk_length, or add training data"
        )
    return n_chunks // batch_size


def training_batches(
    lengths: Mapping[str, int],
    chunk_length: int,
    hop: int,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    chunks_per_utterance: int = 0,
    steps_per_epoch: Optional[int] = None,
) -> List[Batch]:
    """Batches of one rank in one training epoch.

    The global batches do not depend on ``world_size``: rank ``r`` of ``N`` gets the ``r``-th of ``N`` equal parts of
    each, so ``N`` ranks together see what a single process would.

    Args:
        lengths: samples per utterance; its order matters and must be the same on every rank.
        chunk_length: samples of a chunk; shorter utterances give one chunk of their own length (to be zero-padded).
        hop: samples between the chunks of an utterance.
        batch_size: chunks of a global batch, over all ranks.
        seed: with the pass over the data, decides order and places of the chunks.
        epoch: 1-based.
        rank: 0-based.
        world_size: number of ranks; must divide ``batch_size``.
        chunks_per_utterance: 0 takes the chunks that cover the utterance, K > 0 takes K at random places.
        steps_per_epoch: batches of an epoch; default: the full batches in one pass.

    Raises:
        UserError: an option is out of range, or there are fewer chunks than one batch takes.
    """
    _check_ranks(batch_size, rank, world_size, "--batch_size")
    full_steps = training_steps(lengths, chunk_length, hop, batch_size, chunks_per_utterance)
    steps = full_steps if steps_per_epoch is None else steps_per_epoch
    if steps < 1:
        raise UserError(f"--num_iters_per_epoch must be 1 or more, not {steps}")
    if epoch < 1:
        raise ValueError(f"epochs are counted from 1, not {epoch}")
    stream = _stream_slice(
        lengths, chunk_length, hop, seed, (epoch - 1) * steps * batch_size, steps * batch_size, chunks_per_utterance
    )
    per_rank = batch_size // world_size
    firsts = range(rank * per_rank, steps * batch_size, batch_size)
    return [stream[first : first + per_rank] for first in firsts]


def _stream_slice(
    lengths: Mapping[str, int], chunk_length: int, hop: int, seed: int, first: int, count: int, per_utterance: int
) -> Batch:
    """``count`` entries of the endless stream of chunks, from entry ``first`` on."""
    chunks: Batch = []
    stream_pass, offset = divmod(first, _pass_size(lengths, chunk_length, hop, per_utterance))
    while len(chunks) < count:
        shuffled = _shuffled_pass(lengths, chunk_length, hop, seed, stream_pass, per_utterance)
        chunks += shuffled[offset : offset + count - len(chunks)]
        stream_pass, offset = stream_pass + 1, 0
    return chunks


def _pass_size(lengths: Mapping[str, int], chunk_length: int, hop: int, per_utterance: int) -> int:
    if per_utterance:
        return per_utterance * len(lengths)
    return sum(count_chunks(length, chunk_length, hop) for length in lengths.values())


def _shuffled_pass(
    lengths: Mapping[str, int], chunk_length: int, hop: int, seed: int, stream_pass: int, per_utterance: int
) -> Batch:
    """All chunks once, in random order; places and order are drawn anew for every pass."""
    random = np.random.default_rng([seed, stream_pass])
    chunks: Batch = []
    for utt_id, length in lengths.items():
        if per_utterance:
            starts = random.integers(0, max(0, length - chunk_length) + 1, size=per_utterance)
        else:
            starts = cover_utterance(length, chunk_length, hop, random.random())
        chunks += [Chunk(utt_id, int(start), min(length, chunk_length)) for start in starts]
    return [chunks[i] for i in random.permutation(len(chunks))]


def validation_batches(
    lengths: Mapping[str, int], chunk_length: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> List[Batch]:
    """Batches of one rank in a validation pass, the same in every epoch.

    Each utterance is cut into full chunks side by side, the last one moved back so that it ends with the utterance
    (a tail of a few samples padded with zeros would make losses such as SI-SDR meaningless). The batches have equal
    size up to one chunk, at most ``batch_size``, and so have the parts of the ranks: nothing is left over, all ranks
    take the same number of steps, and a mean weighted by batch size is the mean over the chunks. Only when
    ``batch_size == world_size`` may a rank get two chunks instead of one.

    Raises:
        UserError: an option is out of range, or there are fewer chunks than ranks.
    """
    _check_options(lengths, chunk_length, chunk_length, batch_size)
    _check_ranks(batch_size, rank, world_size, "--valid_batch_size")
    chunks = [
        Chunk(utt_id, int(start), min(length, chunk_length))
        for utt_id, length in lengths.items()
        for start in cover_utterance(length, chunk_length, chunk_length)
    ]
    if len(chunks) < world_size:
        raise UserError(
            f"the validation data give {len(chunks)} chunk(s) for {world_size} processes: "
            "use fewer processes or add validation data"
        )
    n_batches = min(-(-len(chunks) // batch_size), len(chunks) // world_size)
    return [_equal_parts(batch, world_size)[rank] for batch in _equal_parts(chunks, n_batches)]


def _equal_parts(items: Sequence[Chunk], n_parts: int) -> List[Batch]:
    """Consecutive parts whose sizes differ by at most one."""
    borders = [len(items) * i // n_parts for i in range(n_parts + 1)]
    return [list(items[a:b]) for a, b in zip(borders[:-1], borders[1:], strict=True)]


def _check_options(lengths: Mapping[str, int], chunk_length: int, hop: int, batch_size: int) -> None:
    if not lengths:
        raise UserError("there are no utterances: the shape file is empty")
    if chunk_length < 1:
        raise UserError(f"--chunk_length must be 1 sample or more, not {chunk_length}")
    if not 1 <= hop <= chunk_length:
        raise UserError(
            f"the hop between chunks ({hop} samples) must lie between 1 and --chunk_length {chunk_length}: "
            "choose --chunk_shift_ratio above 0 and at most 1"
        )
    if batch_size < 1:
        raise UserError(f"--batch_size must be 1 or more, not {batch_size}")
    for utt_id, length in lengths.items():
        if length < 1:
            raise UserError(f"utterance {utt_id} has {length} samples: remove it from the data and redo the statistics")


def _check_ranks(batch_size: int, rank: int, world_size: int, option: str) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    if batch_size % world_size:
        raise UserError(
            f"{option} {batch_size} is shared by {world_size} processes and must be a multiple of {world_size}"
        )
