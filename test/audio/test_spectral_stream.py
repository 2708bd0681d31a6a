"""The streaming STFT against torch's, with a network that leaves frames as they are or scales them by their number."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from waves import blocks_of

from i2srf_kd.audio.spectral_stream import CHUNK_FRAMES, SpectralStream
from i2srf_kd.system.errors import UserError


def gain(frame):
    return 1 / (1 + frame % 3)


class Scaled(SpectralStream):
    """Multiplies frame ``k`` of the last microphone by ``gain(k)`` and returns it."""

    def forget(self):
        self.frames = 0

    def step(self, planes):
        assert planes.dtype == np.float32 and planes.shape[:2] == (self.streams, 2 * self.num_mics)
        assert 1 <= planes.shape[2] <= CHUNK_FRAMES
        gains = gain(np.arange(self.frames, self.frames + planes.shape[2]))
        self.frames += planes.shape[2]
        return planes[:, -2:] * gains[:, None].astype(np.float32)


def offline(wave, n_fft, hop):
    """What is defined for a recording in one piece: whole hops, at least one window, reflected edges."""
    samples = len(wave)
    padded = max(-(-samples // hop) * hop, n_fft)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    signal = torch.nn.functional.pad(torch.from_numpy(wave).double(), (0, padded - samples))
    spectrum = torch.stft(signal, n_fft, hop, window=window, return_complex=True)
    spectrum = spectrum * torch.from_numpy(gain(np.arange(spectrum.shape[1])))
    return torch.istft(spectrum, n_fft, hop, window=window, length=padded)[:samples].numpy()


def run(stream, wave, sizes):
    return np.concatenate([*(stream(block) for block in blocks_of(wave, sizes)), stream.flush()])


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 700),
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(any),
    transform=st.sampled_from([(32, 16), (32, 8), (32, 10), (30, 15), (64, 1)]),
)
@example(samples=1, sizes=[1], transform=(32, 16))
@example(samples=17, sizes=[1], transform=(32, 16))  # the fewest samples that can be reflected
def test_equals_the_offline_transform(samples, sizes, transform):
    wave = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    stream = Scaled(16000, *transform)
    stream.forget()
    for _ in range(2):  # a stream can be used again after its end
        np.testing.assert_allclose(run(stream, wave, sizes), offline(wave, *transform), atol=2e-6)


def test_samples_come_as_soon_as_they_can():
    stream = Scaled(16000, 32, 16)
    stream.forget()
    ready = [len(stream(np.zeros(1, np.float32))) for _ in range(100)]
    assert [i for i, count in enumerate(ready) if count] == [31, 47, 63, 79, 95]
    assert set(ready) == {0, 16} and stream.latency == 32
    assert len(stream.flush()) == 100 - 5 * 16


def test_microphones_and_streams_side_by_side():
    waves = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    stream = Scaled(16000, 32, 16, num_mics=2, streams=2)
    stream.forget()
    found = run(stream, waves, [7, 90])
    assert found.shape == (400, 2)
    for column, channel in ((0, 1), (1, 3)):
        np.testing.assert_allclose(found[:, column], offline(waves[:, channel], 32, 16), atol=2e-6)


def test_no_samples_at_all():
    stream = Scaled(16000, 32, 16)
    stream.forget()
    assert stream(np.zeros(0, np.float32)).shape == stream.flush().shape == (0,)


@pytest.mark.parametrize(
    "block, words",
    [
        (np.zeros((5, 2), np.float32), r"expected blocks \(samples, 1\), got \(5, 2\)"),
        (np.zeros(5, np.int16), "block of int16"),
        (np.array([0, np.nan]), "NaN"),
    ],
)
def test_a_bad_block_is_named_and_not_taken(block, words):
    stream = Scaled(16000, 32, 16)
    stream.forget()
    wave = np.random.default_rng(0).normal(size=90).astype(np.float32)
    first = stream(wave[:50])
    with pytest.raises(UserError, match=words):
        stream(block)
    found = np.concatenate([first, stream(wave[50:]), stream.flush()])
    np.testing.assert_allclose(found, offline(wave, 32, 16), atol=2e-6)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="hop_length 17"):
        Scaled(16000, 32, 17)
    with pytest.raises(ValueError, match="streams"):
        Scaled(16000, 32, 16, streams=0)
