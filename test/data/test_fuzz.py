"""Files that no program wrote: reading them gives a value or a UserError, never anything else, and soon."""

import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2srf_kd.audio.io import probe, read_audio
from i2srf_kd.audio.overlap_add import read_blocks
from i2srf_kd.data.kaldi_dir import DataDir, read_audio_table, read_table
from i2srf_kd.system.errors import UserError

MANY = settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
SAMPLES = 400
LENGTHS = st.sampled_from([0, 1, 7, 8, 36, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFD8, 0xFFFFFFFF])
WORDS = st.one_of(LENGTHS, st.integers(0, 2**32 - 1)).map(lambda number: struct.pack("<I", number))
LINES = st.text(st.sampled_from("ab1_. \t\r\n|\ufeffé\0") | st.characters(codec="utf-8"), max_size=60)


def sound(container: str, subtype: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.sin(np.arange(SAMPLES)), 16000, subtype, format=container)
    return stream.getvalue()


SOUNDS = [sound("WAV", "PCM_16"), sound("WAV", "FLOAT"), sound("WAVEX", "PCM_24"), sound("FLAC", "PCM_16")]
SOUNDS += [sound(container, "PCM_16") for container in ("RF64", "W64", "AIFF", "AU", "NIST")]


def value_or_user_error(function):
    try:
        return function()
    except UserError as error:
        assert str(error)
        return None


@st.composite
def damaged(draw):
    """A sound with other bytes in its first hundred, and perhaps without its end."""
    content = bytearray(draw(st.sampled_from(SOUNDS)))
    for _ in range(draw(st.integers(0, 3))):
        place, word = draw(st.integers(0, 100)), draw(WORDS)
        content[place : place + 4] = word
    return bytes(content[: draw(st.sampled_from([len(content), 10, 44, 60, len(content) - 3]))])


@MANY
@given(damaged())
def test_headers(tmp_path, content):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    header = value_or_user_error(lambda: probe(path))
    read = value_or_user_error(lambda: read_audio(path))
    value_or_user_error(lambda: list(read_blocks(path, 100)))
    if read is not None:
        assert header is not None and len(read[0]) == header.frames and np.isfinite(read[0]).all()


@pytest.mark.parametrize("data", [0, 0x7FFFF000, 0xFFFFFFFF])
@MANY
@given(riff=WORDS, before=st.binary(max_size=9))
def test_placeholders_of_lengths(tmp_path, data, riff, before):
    """Whatever the other length says and whatever chunk stands before, samples are read to the end or refused."""
    content = bytearray(SOUNDS[0])
    content[4:8], content[40:44] = riff, struct.pack("<I", data)
    chunk = b"junk" + struct.pack("<I", len(before)) + before + b"\0" * (len(before) % 2)
    path = tmp_path / "x.wav"
    path.write_bytes(content[:36] + chunk + content[36:])
    read = value_or_user_error(lambda: read_audio(path))
    assert read is None or len(read[0]) == SAMPLES


@MANY
@given(LINES.map(str.encode) | st.binary(max_size=60))
def test_tables(tmp_path, content):
    (tmp_path / "wav.scp").write_bytes(content)
    for read in (read_table, read_audio_table):
        table = value_or_user_error(lambda read=read: read(tmp_path / "wav.scp"))
        assert table is None or all(key and value for key, value in table.items())


@MANY
@given(LINES, st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_segments(tmp_path, line, begin, end):
    for name in ("wav.scp", "spk1.scp"):
        (tmp_path / name).write_text("rec x.wav\n")
    for content in (line, f"u rec {begin} {end}\n"):
        (tmp_path / "segments").write_text(content, encoding="utf-8")
        data = value_or_user_error(lambda: DataDir.read(tmp_path, unformatted=True))
        for span in data.spans.values() if data else ():
            assert span[0] >= 0 and (span[1] > span[0] or span[1] < 0)
