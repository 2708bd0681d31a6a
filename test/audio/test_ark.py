"""Archives as kaldiio writes them: entries are audio files like any other."""

import os

import kaldiio
import numpy as np
import pytest

from i2srf_kd.audio.ark import file_of, open_entry, split_place
from i2srf_kd.audio.io import probe, read_audio
from i2srf_kd.system.errors import UserError

FS = 16000


def waves(count: int = 3):
    random = np.random.default_rng(0)
    return {f"utt{i}": np.round(random.uniform(-0.5, 0.5, 5000 + i) * 32768) / 32768 for i in range(count)}


def write(path, kind="flac"):
    """An archive of :func:`waves`, and the place of each."""
    content = {utt: (FS, wave) for utt, wave in waves().items()}
    scp = path.with_suffix(".scp")
    kaldiio.save_ark(str(path), content, scp=str(scp), write_function="soundfile", write_kwargs={"format": kind})
    return dict(line.split(maxsplit=1) for line in scp.read_text().splitlines())


def entry(utt, content):
    """A short file as an entry, byte by byte."""
    return utt.encode() + b" AUDIO\x01" + bytes([len(content)]) + content


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_entries_are_read_whole_and_in_parts(tmp_path, kind):
    for utt, place in write(tmp_path / "größe x.ark", kind).items():
        wave = waves()[utt]
        assert probe(place) == (len(wave), FS, 1, "PCM_16")
        assert np.array_equal(read_audio(place)[0], wave)
        for start in (0, 1, 4095, 4990):
            assert np.array_equal(read_audio(place, start=start, frames=10)[0], wave[start : start + 10])


def test_entries_that_are_bare_wav_files_are_read(tmp_path):
    bare = {utt: (FS, np.int16(wave * 32768)) for utt, wave in waves().items()}
    kaldiio.save_ark(str(tmp_path / "y.ark"), bare, scp=str(tmp_path / "y.scp"))
    for line in (tmp_path / "y.scp").read_text().splitlines():
        utt, place = line.split(maxsplit=1)
        assert np.array_equal(read_audio(place)[0], waves()[utt])


def test_a_name_is_a_place_only_with_archive_and_number():
    assert split_place("a b/x.ark:17") == ("a b/x.ark", 17)
    assert file_of("x.ark:17") == "x.ark"
    for name in ("x.ark", "x.wav:17", "x.ark:", "dir.ark:7/x.wav"):
        assert split_place(name) == (name, None)


def test_damage_is_named(tmp_path):
    places = write(tmp_path / "x.ark", "wav")
    with pytest.raises(UserError, match=r"gone.ark:3: cannot read the archive \(No such file"):
        read_audio(tmp_path / "gone.ark:3")
    with pytest.raises(UserError, match="x.ark:6: no audio at this place; format the set again"):
        read_audio(tmp_path / "x.ark:6")
    with pytest.raises(UserError, match="x.ark:999999: no audio at this place"):
        read_audio(tmp_path / "x.ark:999999")
    os.truncate(tmp_path / "x.ark", (tmp_path / "x.ark").stat().st_size - 7)
    with pytest.raises(UserError, match="truncated archive, 7 bytes are missing"):
        read_audio(places["utt2"])
    assert len(read_audio(places["utt1"])[0]) == 5001
    (tmp_path / "y.ark").write_bytes(entry("a", b"<html>not audio</html>"))
    with pytest.raises(UserError, match="an HTML or XML page"):
        read_audio(tmp_path / "y.ark:2")


def test_an_archive_that_was_replaced_is_read_anew(tmp_path):
    place = write(tmp_path / "x.ark")["utt0"]
    read_audio(place)
    kaldiio.save_ark(str(tmp_path / "new"), {"utt0": (FS, np.zeros(11))}, write_function="soundfile")
    os.replace(tmp_path / "new", tmp_path / "x.ark")
    assert len(read_audio(place)[0]) == 11


def test_entries_seek_as_files_do(tmp_path):
    before = entry("a", b"other")
    (tmp_path / "x.ark").write_bytes(before + entry("b", b"0123456789"))
    opened = open_entry(str(tmp_path / "x.ark"), len(before) + 2)
    assert opened.read() == b"0123456789" and opened.read(1) == b""
    assert opened.seek(-3, os.SEEK_END) == 7 and opened.read(2) == b"78" and opened.tell() == 9
    assert opened.seek(20) == 20 and opened.read() == b""
