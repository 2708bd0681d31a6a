"""Windows, cross-fades and streaming through files."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from waves import noise

from i2srf_kd.audio.overlap_add import BlockWriter, fade_in, overlap_add, overlap_add_blocks, read_blocks
from i2srf_kd.system.errors import UserError


def in_blocks(wave, sizes):
    start = 0
    while start < len(wave):
        size = sizes[start % len(sizes)]
        yield wave[start : start + size]
        start += size


@settings(max_examples=300, deadline=None)
@given(
    samples=st.integers(1, 400),
    window=st.integers(1, 150),
    share=st.floats(0, 0.5),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    channels=st.integers(0, 3),
)
def test_identity_stays_identity_whatever_the_lengths(samples, window, share, sizes, channels):
    wave = noise(samples, channels) if channels else noise(samples)
    lengths = []

    def process(piece):
        lengths.append(len(piece))
        return piece.copy()

    pieces = list(overlap_add_blocks(in_blocks(wave, sizes), process, window, int(share * window)))
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    assert set(lengths) == {min(window, samples)}  # never a small rest


@settings(max_examples=100, deadline=None)
@given(samples=st.integers(1, 500), window=st.integers(2, 100), share=st.floats(0, 0.5))
def test_each_window_is_used_once_and_no_more_than_needed(samples, window, share):
    overlap = int(share * window)
    wave = np.arange(samples, dtype=np.float64)
    starts = []

    def process(piece):
        starts.append(int(piece[0]))
        return piece

    overlap_add(wave, process, window, overlap)
    hop = window - overlap
    assert starts[:-1] == [i * hop for i in range(len(starts) - 1)]
    assert starts[-1] == (max(0, samples - window) if len(starts) > 1 else 0)
    assert len(starts) == 1 + max(0, -(-(samples - window) // hop))


@pytest.mark.parametrize("overlap", [1, 2, 7, 1000])
def test_fades_sum_to_one_and_rise(overlap):
    rise = fade_in(overlap)
    np.testing.assert_allclose(rise + rise[::-1], 1.0, atol=1e-15)
    assert (np.diff(rise) > 0).all() and 0 < rise[0] <= rise[-1] < 1


def test_windows_are_untouched_away_from_the_fades_and_weighted_in_them():
    wave = np.ones(260)
    values = iter([1.0, 2.0, 3.0])
    result = overlap_add(wave, lambda piece: piece * next(values), 100, 20)
    rise = fade_in(20)
    np.testing.assert_array_equal(result[:80], 1.0)
    np.testing.assert_allclose(result[80:100], (1 - rise) * 1 + rise * 2)
    np.testing.assert_array_equal(result[100:160], 2.0)
    np.testing.assert_allclose(result[160:180], (1 - rise) * 2 + rise * 3)
    np.testing.assert_array_equal(result[180:], 3.0)


def test_no_seams():
    """Windows whose gains differ a little: the step at a seam is far below that difference."""
    wave = np.ones(16000 * 4)
    gains = iter(np.tile([1.0, 1.2], 10))
    result = overlap_add(wave, lambda piece: piece * next(gains), 16000, 1600)
    assert np.abs(np.diff(result)).max() < 0.2 * 2 / 1600


def test_blocks_are_read_only_when_needed():
    taken = []

    def blocks():
        for i in range(100):
            taken.append(i)
            yield np.zeros(10)

    stream = overlap_add_blocks(blocks(), lambda piece: piece, 50, 10)
    next(stream)
    assert len(taken) <= 6


def test_nothing_in_nothing_out():
    assert list(overlap_add_blocks([], lambda piece: piece, 10, 2)) == []


@pytest.mark.parametrize("window, overlap", [(0, 0), (10, 6), (10, -1)])
def test_impossible_windows(window, overlap):
    with pytest.raises(UserError, match="window"):
        overlap_add(np.zeros(30), lambda piece: piece, window, overlap)


@pytest.mark.parametrize(
    "name, subtype, channels",
    [
        ("a.wav", "PCM_16", 1),
        ("a.wav", "PCM_24", 2),
        ("a.wav", "PCM_32", 1),
        ("a.wav", "FLOAT", 6),
        ("a.flac", "PCM_16", 2),
        ("a.flac", "PCM_24", 1),
        ("a.aiff", "PCM_16", 2),
        ("a.caf", "PCM_16", 1),
        ("a.w64", "DOUBLE", 1),
    ],
)
def test_a_file_survives_reading_and_writing_in_blocks(tmp_path, name, subtype, channels):
    source, target = tmp_path / name, tmp_path / "out" / name
    soundfile.write(source, noise(5000, channels), 22050, subtype=subtype)
    with BlockWriter(target, source, channels) as writer:
        for block in read_blocks(source, 777):
            writer.write(block)
    before, after = soundfile.info(source), soundfile.info(target)
    for field in ("samplerate", "channels", "format", "subtype", "frames"):
        assert getattr(before, field) == getattr(after, field), field
    expected = soundfile.read(source, dtype="float32")[0]
    tolerance = 2**-24 if subtype == "PCM_32" else 0  # float32 holds 24 bits
    np.testing.assert_allclose(soundfile.read(target, dtype="float32")[0], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name, subtype", [("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")])
def test_lossy_files_keep_their_length(tmp_path, name, subtype):
    if name.endswith("mp3") and "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no MP3")
    source, target = tmp_path / name, tmp_path / "out" / name
    soundfile.write(source, noise(30000), 16000, subtype=subtype)
    with BlockWriter(target, source, 1) as writer:
        for block in read_blocks(source):
            writer.write(block)
    assert soundfile.info(target).format == soundfile.info(source).format
    assert abs(soundfile.info(target).frames - soundfile.info(source).frames) < 2500


def test_a_file_that_lost_its_end_gets_no_name(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "like.ogg", noise(3000), 16000)
    monkeypatch.setattr(soundfile.SoundFile, "write", lambda self, samples: None)  # as an encoder on a full disk
    with pytest.raises(UserError, match="x.ogg: .*is the disk full"):
        with BlockWriter(tmp_path / "x.ogg", tmp_path / "like.ogg", 1) as writer:
            writer.write(noise(3000)[:, None])
    assert [path.name for path in tmp_path.iterdir()] == ["like.ogg"]


def test_a_write_protected_folder_is_not_taken_for_a_full_disk(protected_folder):
    soundfile.write(protected_folder.parent / "like.wav", noise(3000), 16000)
    with pytest.raises(UserError, match="cannot write .*x.wav: Permission denied; mend that"):
        with BlockWriter(protected_folder / "x.wav", protected_folder.parent / "like.wav", 1):
            pass


def test_disk_that_is_full_from_the_beginning(tmp_path):
    resource = pytest.importorskip("resource")
    soundfile.write(tmp_path / "like.wav", noise(3000), 16000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*x.wav: is the disk full"):
            with BlockWriter(tmp_path / "x.wav", tmp_path / "like.wav", 1) as writer:
                writer.write(noise(3000)[:, None])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["like.wav"]


def test_clipping_is_counted_for_integers_and_absent_for_floats(tmp_path):
    for subtype, clipped in (("PCM_16", 2), ("FLOAT", 0)):
        soundfile.write(tmp_path / "like.wav", noise(10), 8000, subtype=subtype)
        with BlockWriter(tmp_path / "x.wav", tmp_path / "like.wav", 1) as writer:
            writer.write(np.array([[0.5], [1.5], [-2.0]], np.float32))
        assert writer.clipped == clipped
        peak = np.abs(soundfile.read(tmp_path / "x.wav")[0]).max()
        assert peak == (1.0 if clipped else 2.0)


def test_failed_output_leaves_nothing(tmp_path):
    source = tmp_path / "a.wav"
    soundfile.write(source, noise(100), 8000)
    with pytest.raises(RuntimeError, match="on purpose"):
        with BlockWriter(tmp_path / "out" / "a.wav", source, 1) as writer:
            writer.write(noise(10, 1))
            raise RuntimeError("on purpose")
    assert list((tmp_path / "out").iterdir()) == []


def test_format_that_cannot_hold_the_channels(tmp_path):
    source = tmp_path / "a.flac"
    soundfile.write(source, noise(100), 8000)
    with pytest.raises(UserError, match=r"a\.flac: FLAC .* 9 channels .*convert it to wav"):
        with BlockWriter(tmp_path / "out" / "a.flac", source, 9):
            pass
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_files_are_named(tmp_path):
    wave = noise(1000)
    wave[700] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan\.wav: NaN or infinite values, the first at sample 700"):
        list(read_blocks(tmp_path / "nan.wav", 100))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    with pytest.raises(UserError, match=r"none\.wav: holds no samples"):
        list(read_blocks(tmp_path / "none.wav"))
    soundfile.write(tmp_path / "cut.flac", noise(50000), 8000)
    cut = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(UserError, match=r"cut\.flac: .*truncated"):
        list(read_blocks(tmp_path / "cut.flac"))


_STREAM = """
import sys
from i2srf_kd.audio.overlap_add import BlockWriter, overlap_add_blocks, read_blocks
from i2srf_kd.system.memory import peak_resident_bytes
source, target = sys.argv[1:]
before = peak_resident_bytes()
with BlockWriter(target, source, 1) as writer:
    for samples in overlap_add_blocks(read_blocks(source), lambda piece: piece, 160000, 16000):
        writer.write(samples)
print((peak_resident_bytes() - before) / 1e6)
"""


def test_memory_does_not_grow_with_the_recording(tmp_path, repository):
    """20 minutes are 77 MB as float32; a stream of 10 s windows takes a few."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16000, 1, "PCM_16") as file:
        minute = (3000 * noise(16000 * 60)).astype(np.int16)
        for _ in range(20):
            file.write(minute)
    command = [sys.executable, "-c", _STREAM, str(tmp_path / "long.wav"), str(tmp_path / "out.wav")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 30
    assert (tmp_path / "out.wav").read_bytes()[44:] == (tmp_path / "long.wav").read_bytes()[44:]
