"""Which chunk goes into which batch: nothing lost, the same on any number of processes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2srf_kd.data.chunks import (
    count_chunks,
    cover_utterance,
    training_batches,
    training_steps,
    validation_batches,
)
from i2srf_kd.system.errors import UserError


def named(lengths):
    return {f"utt{i:03d}": length for i, length in enumerate(lengths)}


LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=20).map(named)
CHUNK = st.integers(1, 30)


@given(length=st.integers(1, 500), chunk=CHUNK, ratio=st.floats(0.01, 1), shift=st.floats(0, 1))
def test_every_sample_is_covered_at_any_shift(length, chunk, ratio, shift):
    hop = max(1, round(chunk * ratio))
    starts = cover_utterance(length, chunk, hop, shift)
    covered = np.zeros(length, dtype=bool)
    for start in starts:
        covered[start : start + chunk] = True
        assert 0 <= start <= max(0, length - chunk)
    assert covered.all()
    assert len(starts) == len(set(starts.tolist())) == count_chunks(length, chunk, hop)


def test_shift_aligns_to_the_start_or_to_the_end():
    assert cover_utterance(25, 10, 10, 0.0).tolist() == [0, 10, 15]
    assert cover_utterance(25, 10, 10, 1.0).tolist() == [0, 5, 15]
    assert cover_utterance(10, 10, 5).tolist() == [0]  # exactly one chunk long
    assert cover_utterance(3, 10, 5).tolist() == [0]  # shorter


@given(lengths=LENGTHS, chunk=CHUNK, seed=st.integers(0, 1000), per_rank=st.integers(1, 3), ranks=st.integers(1, 4))
def test_ranks_together_see_the_batches_of_one_process(lengths, chunk, seed, per_rank, ranks):
    batch_size = per_rank * ranks
    hop = (chunk + 1) // 2
    if sum(count_chunks(n, chunk, hop) for n in lengths.values()) < batch_size:
        return
    for epoch in (1, 2, 5):
        whole = training_batches(lengths, chunk, hop, batch_size, seed, epoch)
        parts = [training_batches(lengths, chunk, hop, batch_size, seed, epoch, r, ranks) for r in range(ranks)]
        assert len(whole) == training_steps(lengths, chunk, hop, batch_size)
        for step, batch in enumerate(whole):
            assert [chunk for part in parts for chunk in part[step]] == batch
            assert {len(part[step]) for part in parts} == {per_rank}
        assert {len(part) for part in parts} == {len(whole)}


@given(lengths=LENGTHS, chunk=CHUNK, seed=st.integers(0, 1000), batch_size=st.integers(1, 12), steps=st.integers(1, 7))
def test_no_chunk_is_ever_lost(lengths, chunk, seed, batch_size, steps):
    """Epochs of any length go through one pass after the other, each of which holds every utterance in full."""
    hop = chunk
    size = sum(count_chunks(n, chunk, hop) for n in lengths.values())
    if size < batch_size:
        return
    epochs = -(-2 * size // (steps * batch_size))
    stream = [
        item
        for epoch in range(1, epochs + 1)
        for batch in training_batches(lengths, chunk, hop, batch_size, seed, epoch, steps_per_epoch=steps)
        for item in batch
    ]
    expected = {u: count_chunks(n, chunk, hop) for u, n in lengths.items()}
    for one_pass in (stream[:size], stream[size : 2 * size]):
        assert Counter(item.utt_id for item in one_pass) == expected
        for utt_id, length in lengths.items():
            covered = np.zeros(length, dtype=bool)
            for item in one_pass:
                if item.utt_id == utt_id:
                    covered[item.start : item.start + item.length] = True
            assert covered.all()


def test_epochs_differ_but_repeat_exactly():
    lengths = named([50, 70, 90, 35, 20])
    first, again = (training_batches(lengths, 20, 10, 4, 7, 1) for _ in range(2))
    assert first == again
    assert first != training_batches(lengths, 20, 10, 4, 7, 2)
    assert first != training_batches(lengths, 20, 10, 4, 8, 1)


def test_random_chunks_per_utterance():
    lengths = named([500, 700, 5])
    batches = training_batches(lengths, 20, 10, 3, 0, 1, chunks_per_utterance=2)
    assert Counter(c.utt_id for batch in batches for c in batch) == {u: 2 for u in lengths}
    assert all(c.start + c.length <= lengths[c.utt_id] for batch in batches for c in batch)


@given(lengths=LENGTHS, chunk=CHUNK, batch_size=st.integers(1, 12))
def test_validation_takes_every_utterance_once(lengths, chunk, batch_size):
    batches = validation_batches(lengths, chunk, batch_size)
    items = [item for batch in batches for item in batch]
    assert Counter(i.utt_id for i in items) == {u: -(-n // chunk) for u, n in lengths.items()}
    assert len(items) == len(set(items))
    assert max(map(len, batches)) <= batch_size
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    for utt_id, length in lengths.items():
        ends = [i.start + i.length for i in items if i.utt_id == utt_id]
        assert max(ends) == length


@given(lengths=LENGTHS, chunk=CHUNK, per_rank=st.integers(1, 4), ranks=st.integers(1, 5))
def test_validation_ranks_share_everything_in_equal_steps(lengths, chunk, per_rank, ranks):
    batch_size = per_rank * ranks
    total = sum(-(-n // chunk) for n in lengths.values())
    if total < ranks:
        with pytest.raises(UserError, match="fewer processes"):
            validation_batches(lengths, chunk, batch_size, 0, ranks)
        return
    parts = [validation_batches(lengths, chunk, batch_size, r, ranks) for r in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    sizes = [len(batch) for part in parts for batch in part]
    assert min(sizes) >= 1
    assert max(sizes) <= max(per_rank, 2)
    together = sorted(item for part in parts for batch in part for item in batch)
    assert together == sorted(item for batch in validation_batches(lengths, chunk, batch_size) for item in batch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 9}, "--batch_size 9 is more than the 3 chunk"),
        ({"batch_size": 3, "world_size": 2}, "multiple of 2"),
        ({"hop": 0}, "chunk_shift_ratio"),
        ({"hop": 11}, "chunk_shift_ratio"),
        ({"chunk_length": 0}, "--chunk_length"),
        ({"lengths": {}}, "no utterances"),
        ({"lengths": {"silent": 0}}, "silent has 0 samples"),
        ({"steps_per_epoch": 0}, "--num_iters_per_epoch"),
    ],
)
def test_bad_options_are_named(change, words):
    options = {"lengths": named([10, 20]), "chunk_length": 10, "hop": 10, "batch_size": 2, "seed": 0, "epoch": 1}
    with pytest.raises(UserError, match=words):
        training_batches(**{**options, **change})
