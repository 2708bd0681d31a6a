"""Raw PCM on pipes."""

import os
import threading

import numpy as np
import pytest

from i2srf_kd.audio.pcm import read_pcm, write_pcm
from i2srf_kd.system.errors import UserError


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # the test has closed it
            pass


def feed(pipe, *parts):
    """Write from another thread, then close."""

    def write():
        for part in parts:
            os.write(pipe[1], part)
        os.close(pipe[1])

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("pcm_format, dtype", [("s16le", "<i2"), ("f32le", "<f4")])
@pytest.mark.parametrize("cut", [1, 3, 4, 999])
def test_pieces_of_any_size_become_samples(pipe, pcm_format, dtype, cut):
    wave = (np.arange(-500, 500).reshape(-1, 2) / 32768).astype(np.float32)
    data = (wave * 32768).astype(dtype).tobytes() if dtype == "<i2" else wave.astype(dtype).tobytes()
    thread = feed(pipe, *(data[i : i + cut] for i in range(0, len(data), cut)))
    blocks = list(read_pcm(pipe[0], pcm_format, 2, 64))
    thread.join()
    assert all(0 < len(block) <= 64 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), wave)


def test_what_has_come_is_given_without_waiting_for_more(pipe):
    os.write(pipe[1], np.zeros(10, "<i2").tobytes())  # and the pipe stays open
    assert len(next(read_pcm(pipe[0], "s16le", 1, 1000))) == 10


def test_an_end_within_a_sample_is_told(pipe):
    feed(pipe, bytes(7)).join()
    blocks = read_pcm(pipe[0], "s16le", 2, 64)
    assert next(blocks).shape == (1, 2)
    with pytest.raises(UserError, match="within a sample .3 bytes left over, 4 for 2 channels of s16le.*--channels"):
        next(blocks)


def test_written_samples_are_rounded_and_clipped(pipe):
    write_pcm(pipe[1], np.array([0.5, -2, 2, 1.6 / 32768], np.float32), "s16le")
    write_pcm(pipe[1], np.array([[0.25, -2]], np.float32), "f32le")
    assert np.frombuffer(os.read(pipe[0], 8), "<i2").tolist() == [16384, -32768, 32767, 2]
    assert np.frombuffer(os.read(pipe[0], 8), "<f4").tolist() == [0.25, -2]


def test_a_closed_pipe(pipe):
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        write_pcm(pipe[1], np.zeros(4, np.float32), "s16le")
