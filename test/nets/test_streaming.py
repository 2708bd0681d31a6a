"""A spectrum in chunks gives what the whole spectrum gives, and the memory does not grow."""

import pytest
import torch
from export.trained import make_network
from hypothesis import given, settings
from hypothesis import strategies as st

from i2srf_kd.nets.streaming import StreamingDPDCRN

WINDOW = 6


@pytest.fixture(scope="module")
def network():
    return make_network(num_mics=2, n_fft=64, blocks=2, causal=True, attention_window=WINDOW)


@settings(max_examples=25, deadline=None)
@given(chunks=st.lists(st.integers(1, 20), min_size=1, max_size=8), batch=st.integers(1, 2))
@torch.no_grad()
def test_any_chunks_give_the_whole(network, chunks, batch):
    step = StreamingDPDCRN(network)
    spectrum = 0.1 * torch.randn(batch, 4, sum(chunks), 33)  # as of speech; rounding grows with the level
    state, pieces = step.initial_state(batch), []
    for chunk in spectrum.split(chunks, dim=2):
        piece, *state = step(chunk, *state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=2), network(spectrum).spectrum, rtol=0, atol=1e-5)


@torch.no_grad()
def test_chunks_are_exact_in_double_precision():
    network = make_network(n_fft=64, causal=True, attention_window=WINDOW).double()
    step = StreamingDPDCRN(network)
    spectrum = torch.randn(1, 2, 30, 33, dtype=torch.float64)
    state, pieces = step.initial_state(), []
    for chunk in spectrum.split([1, 2, 9, 1, 17], dim=2):
        piece, *state = step(chunk, *state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=2), network(spectrum).spectrum, rtol=0, atol=1e-12)


@torch.no_grad()
def test_state_keeps_its_size(network):
    step = StreamingDPDCRN(network)
    state = step.initial_state()
    shapes = [tensor.shape for tensor in state]
    for frames in (1, 3, 50, 1):
        _, *state = step(torch.randn(1, 4, frames, 33), *state)
        assert [tensor.shape for tensor in state] == shapes


def test_a_network_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match="not causal.*causal=True"):
        StreamingDPDCRN(make_network(n_fft=64))
