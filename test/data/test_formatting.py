"""Formatting: rates, formats, shards, repetition and bad audio."""

import logging
import os
import re

import numpy as np
import pytest
import soundfile
from plain_user import plain_user

from i2srf_kd.audio.io import probe, read_audio
from i2srf_kd.data import formatting
from i2srf_kd.data.formatting import FormatOptions, collect, format_data, format_shard
from i2srf_kd.data.kaldi_dir import DataDir, read_audio_table, read_table
from i2srf_kd.system.errors import UserError

FS = 16000
RANDOM = np.random.default_rng(0)


def noise(n_samples: int = 4000, channels: int = 1) -> np.ndarray:
    shape = (n_samples,) if channels == 1 else (n_samples, channels)
    return RANDOM.uniform(-0.5, 0.5, shape)


def make_data(folder, signals, fs=FS, subtype="PCM_16"):
    """A data folder from ``{utterance: (mixture, reference)}``; a signal may be bytes for the file itself."""
    data = DataDir({}, {}, {}, {"utt2snr": {}})
    for utt_id, pair in signals.items():
        for kind, table, signal in (("noisy", data.wav, pair[0]), ("clean ü", data.spk1, pair[1])):
            path = folder / kind / f"{utt_id}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(signal, bytes):
                path.write_bytes(signal)
            else:
                soundfile.write(path, signal, fs, subtype=subtype)
            table[utt_id] = str(path)
        data.utt2spk[utt_id] = utt_id[0]
        data.extra["utt2snr"][utt_id] = "5"
    data.write(folder / "data")
    return folder / "data"


@pytest.fixture
def good(tmp_path):
    return make_data(tmp_path, {f"{'ab'[i % 2]}{i}": (noise(), noise()) for i in range(5)})


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".flac", ".wav")}


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_audio_of_the_right_rate_is_unchanged(good, tmp_path, audio_format):
    out = tmp_path / "dump ü" / "train"
    data = format_data(good, out, FormatOptions(FS, audio_format))
    source = DataDir.read(good)
    assert data == DataDir.read(out)
    for utt_id in source.wav:
        for before, after in ((source.wav, data.wav), (source.spk1, data.spk1)):
            assert np.array_equal(read_audio(before[utt_id])[0], read_audio(after[utt_id])[0])
            assert after[utt_id].endswith(audio_format)
    assert set(data.extra["utt2num_samples"].values()) == {"4000"}
    assert data.extra["utt2snr"] == source.extra["utt2snr"] and data.utt2spk == source.utt2spk
    assert (out / "dropped.tsv").read_text() == ""


@pytest.mark.parametrize("fs", [8000, 44100, 48000])
def test_any_rate_becomes_the_wanted_one(tmp_path, fs):
    folder = make_data(tmp_path, {"a": (noise(4001), noise(4001)), "s": (noise(4001, 2), noise(4001, 2))}, fs=fs)
    data = format_data(folder, tmp_path / "out", FormatOptions(FS))
    expected = -(-4001 * FS // fs)
    assert data.extra["utt2num_samples"] == {"a": str(expected), "s": str(expected)}
    for table in (data.wav, data.spk1):
        assert probe(table["a"])[:3] == (expected, FS, 1) and probe(table["s"])[:3] == (expected, FS, 2)


@pytest.mark.parametrize("audio_format", ["flac.ark", "wav.ark"])
def test_archives_hold_what_files_would(good, tmp_path, audio_format):
    """The same samples, two files for each shard, whatever the number of processes."""
    options = FormatOptions(FS, audio_format)
    files = format_data(good, tmp_path / "files", FormatOptions(FS))
    for index in (2, 1):
        format_shard(good, tmp_path / "arks", options, index, 2, nj=index)
    data = collect(good, tmp_path / "arks", options, 2)
    assert data == DataDir.read(tmp_path / "arks") and data.extra == files.extra
    for table, other in ((data.wav, files.wav), (data.spk1, files.spk1)):
        for utt_id, place in table.items():
            assert ".ark:" in place and np.array_equal(read_audio(place)[0], read_audio(other[utt_id])[0])
    names = {path.name for path in (tmp_path / "arks/audio").rglob("*")}
    assert names == {f"{kind}.{index}-of-2.ark" for kind in ("noisy", "clean") for index in (1, 2)}
    again = format_data(tmp_path / "arks", tmp_path / "again", FormatOptions(FS))  # archives as a source
    assert np.array_equal(read_audio(again.wav["a0"])[0], read_audio(files.wav["a0"])[0])


def test_archives_are_kept_or_made_anew_as_a_whole(good, tmp_path):
    out, options = tmp_path / "out", FormatOptions(FS, "flac.ark")

    def state():
        return {path.name: path.stat().st_ino for path in (out / "audio").iterdir()}

    def format_all(count=2):
        for index in range(1, count + 1):
            format_shard(good, out, options, index, count)
        return collect(good, out, options, count)

    data = format_all()
    before = state()
    format_all()
    assert state() == before and len(before) == 4
    source = DataDir.read(good)
    changed = [name for name in before if ".1-" in name]
    soundfile.write(source.wav["a0"], noise(), FS)
    data = format_all()
    assert [name for name, inode in state().items() if before[name] != inode] == sorted(
        changed, key=list(state()).index
    )
    assert np.array_equal(read_audio(data.wav["a0"])[0], read_audio(source.wav["a0"])[0])
    before = state()
    with open(out / "audio/clean.2-of-2.ark", "r+b") as file:
        file.truncate(100)
    format_all()
    assert {name for name, inode in state().items() if before[name] != inode} == {
        "clean.2-of-2.ark", "noisy.2-of-2.ark"
    }  # fmt: skip
    data = format_all(3)
    assert len(state()) == 6 and len(read_audio(data.spk1["b1"])[0]) == 4000


def test_bad_audio_and_archives(tmp_path):
    signals = {"a": (noise(), noise()), "b": (np.zeros(4000), noise()), "c": (noise(), noise())}
    folder = make_data(tmp_path, signals)
    data = format_data(folder, tmp_path / "out", FormatOptions(FS, "wav.ark"))
    assert data.utterances == ["a", "c"] and "b\tsilent mixture" in (tmp_path / "out/dropped.tsv").read_text()
    assert len(read_audio(data.spk1["c"])[0]) == 4000
    os.truncate(DataDir.read(folder).wav["c"], 100)
    with pytest.raises(UserError, match="1 of 3 utterances are broken(.|\n)*c: .*truncated"):
        format_data(folder, tmp_path / "out", FormatOptions(FS, "wav.ark"))


def test_8_bit_and_clipped_audio_is_formatted(tmp_path):
    folder = make_data(tmp_path, {"a": (5 * noise(), noise())}, subtype="PCM_U8")
    assert len(format_data(folder, tmp_path / "out", FormatOptions())) == 1


def test_shards_together_equal_one_run(good, tmp_path):
    options = FormatOptions()
    whole = format_data(good, tmp_path / "whole", options)
    for index in (3, 1, 2):
        format_shard(good, tmp_path / "parts", options, index, 3)
    parts = collect(good, tmp_path / "parts", options, 3)
    assert parts.utterances == whole.utterances and parts.extra == whole.extra
    for utt_id in whole.wav:
        with open(whole.wav[utt_id], "rb") as a, open(parts.wav[utt_id], "rb") as b:
            assert a.read() == b.read()


def test_several_processes_equal_one(good, tmp_path):
    one = format_data(good, tmp_path / "one", FormatOptions())
    two = format_data(good, tmp_path / "two", FormatOptions(), nj=2)
    assert [os.path.basename(path) for path in two.wav.values()] == [os.path.basename(p) for p in one.wav.values()]
    assert two.extra == one.extra


def test_collecting_too_early_or_with_other_options(good, tmp_path):
    format_shard(good, tmp_path / "out", FormatOptions(), 1, 2)
    with pytest.raises(UserError, match="shard 2/2 is missing; run it again with --shard 2/2"):
        collect(good, tmp_path / "out", FormatOptions(), 2)
    assert not (tmp_path / "out" / "wav.scp").exists()
    format_shard(good, tmp_path / "out", FormatOptions(), 2, 2)
    with pytest.raises(UserError, match="made with other options"):
        collect(good, tmp_path / "out", FormatOptions(8000), 2)
    DataDir.read(good).subset(["a0"]).write(good)
    with pytest.raises(UserError, match="has changed since it was formatted"):
        collect(good, tmp_path / "out", FormatOptions(), 2)


def test_more_shards_than_utterances(good, tmp_path):
    for index in range(1, 8):
        format_shard(good, tmp_path / "out", FormatOptions(), index, 7)
    assert len(collect(good, tmp_path / "out", FormatOptions(), 7)) == 5


def test_finished_audio_is_kept_and_changed_audio_made_again(good, tmp_path):
    out = tmp_path / "out"
    format_data(good, out, FormatOptions())
    before = tree(out)
    format_shard(good, out, FormatOptions(), 1, 2)
    format_shard(good, out, FormatOptions(), 2, 2)
    collect(good, out, FormatOptions(), 2)
    assert tree(out) == before and len(before) == 10

    source = DataDir.read(good)
    soundfile.write(source.wav["a0"], noise(), FS)
    data = DataDir.read(out)
    with open(data.spk1["b1"], "r+b") as file:
        file.truncate(100)
    os.unlink(data.wav["a2"])
    format_data(good, out, FormatOptions())
    changed = {path.name for path, time in tree(out).items() if time != before[path]}
    assert changed == {"a0.flac", "b1.flac", "a2.flac"}
    assert np.array_equal(read_audio(data.wav["a0"])[0], read_audio(source.wav["a0"])[0])
    assert probe(data.spk1["b1"]).frames == 4000

    format_data(good, out, FormatOptions(8000))
    assert probe(data.wav["a0"]).fs == 8000


def test_interrupted_run_continues(good, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_audio, written = formatting.write_audio, []

    def interrupted(path, *args):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        return write_audio(path, *args)

    monkeypatch.setattr(formatting, "_SAVE_EVERY", 1)
    monkeypatch.setattr(formatting, "write_audio", interrupted)
    with pytest.raises(KeyboardInterrupt):
        format_data(good, out, FormatOptions())
    with pytest.raises(UserError, match="shard 1/1 is unfinished"):
        collect(good, out, FormatOptions())
    before = tree(out)
    monkeypatch.undo()
    assert len(format_data(good, out, FormatOptions())) == 5
    kept = [path for path, time in before.items() if tree(out)[path] == time]
    assert len(kept) == 4, "the two finished pairs are kept, the half-finished one is made again"


def test_broken_pairs_are_all_named_and_the_others_written(tmp_path):
    nan = noise()
    nan[7] = np.nan
    signals = {
        "good": (noise(), noise()),
        "longer": (noise(4001), noise()),
        "nan": (nan, noise()),
        "page": (b"<html>", noise()),
        "zero": (noise(), b""),
    }
    folder = make_data(tmp_path, signals, subtype="FLOAT")
    os.unlink(DataDir.read(folder).wav["page"])
    data = DataDir.read(folder)
    soundfile.write(data.wav["page"], noise(8000), 2 * FS, subtype="FLOAT")
    data.wav["gone"] = data.spk1["gone"] = str(tmp_path / "gone.wav")
    data.utt2spk["gone"] = "g"
    data.write(folder)
    with pytest.raises(UserError) as error:
        format_data(folder, tmp_path / "out", FormatOptions())
    message = str(error.value)
    assert "5 of 6 utterances are broken" in message
    for expected in (
        "longer: different length",
        "4001 samples",
        "nan: ",
        "the first at sample 7",
        "page: different rate",
        "32000 Hz",
        "zero.wav: empty file",
        "gone.wav: No such file",
    ):
        assert expected in message
    assert (tmp_path / "out" / "audio" / "noisy" / "good.flac").exists()
    with pytest.raises(UserError, match="5 of 6"):
        collect(folder, tmp_path / "out", FormatOptions())
    data.subset(["good"]).write(folder)
    assert len(format_data(folder, tmp_path / "out", FormatOptions())) == 1


def test_silent_and_empty_pairs_are_dropped_and_listed(tmp_path, caplog):
    zeros = np.zeros(4000)
    signals = {
        "ok": (noise(), noise()),
        "empty": (np.zeros(0), np.zeros(0)),
        "offset": (noise(), zeros + 0.25),
        "silent": (zeros, zeros),
    }
    folder = make_data(tmp_path, signals)
    with caplog.at_level(logging.WARNING):
        data = format_data(folder, tmp_path / "out", FormatOptions())
    assert data.utterances == ["ok"] and list(data.extra["utt2snr"]) == ["ok"]
    dropped = (tmp_path / "out" / "dropped.tsv").read_text().splitlines()
    assert dropped == ["empty\tno samples", "offset\tsilent reference", "silent\tsilent mixture and reference"]
    assert "3 of 4 utterances dropped" in caplog.text
    assert read_table(tmp_path / "out" / "utt2num_samples") == {"ok": "4000"}


def test_nothing_usable_is_an_error(tmp_path):
    folder = make_data(tmp_path, {"a": (np.zeros(10), np.zeros(10))})
    with pytest.raises(UserError, match="no utterance is usable.*dropped.tsv"):
        format_data(folder, tmp_path / "out", FormatOptions())


def test_many_channels(tmp_path):
    folder = make_data(tmp_path, {"a": (noise(500, 9), noise(500))})
    with pytest.raises(UserError, match="a: .*9 channels, but FLAC holds at most 8: give --audio_format wav"):
        format_data(folder, tmp_path / "out", FormatOptions())
    data = format_data(folder, tmp_path / "out", FormatOptions(audio_format="wav"))
    assert probe(data.wav["a"]).channels == 9 and probe(data.spk1["a"]).channels == 1


def test_bad_options(good, tmp_path):
    with pytest.raises(UserError, match="--fs 0"):
        format_data(good, tmp_path / "out", FormatOptions(0))
    with pytest.raises(UserError, match="--audio_format mp3"):
        format_data(good, tmp_path / "out", FormatOptions(FS, "mp3"))
    with pytest.raises(UserError, match="--nj 0"):
        format_data(good, tmp_path / "out", FormatOptions(), nj=0)
    with pytest.raises(UserError, match="same folder"):
        format_data(good, good, FormatOptions())
    data = DataDir.read(good)
    for table in (data.wav, data.spk1, data.utt2spk):
        table["x/y"] = "z"
    data.write(good)
    with pytest.raises(UserError, match="x/y: ids become file names"):
        format_data(good, tmp_path / "out", FormatOptions())


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures in several files


@pytest.fixture
def joined(tmp_path):
    """Two utterances of 4 + 2 channels."""
    folder = make_data(tmp_path, {utt_id: (noise(channels=4), noise()) for utt_id in ("a0", "b1")})
    data = DataDir.read(folder)
    data.more_wav = [{}]
    for utt_id in data.wav:
        data.more_wav[0][utt_id] = str(tmp_path / f"{utt_id}_2.wav")
        soundfile.write(data.more_wav[0][utt_id], noise(channels=2), FS)
    data.write(folder)
    return folder


def test_channels_of_several_files_are_joined_in_their_order(joined, tmp_path):
    out = format_data(joined, tmp_path / "dump", FormatOptions(FS), nj=1)
    source = DataDir.read(joined)
    assert out.more_wav == [] and not (tmp_path / "dump" / "wav_2.scp").exists()
    for utt_id, path in out.wav.items():
        parts = [read_audio(file)[0] for file in source.mixture_files(utt_id)]
        np.testing.assert_array_equal(read_audio(path)[0], np.concatenate(parts, axis=1))
        assert read_audio(out.spk1[utt_id])[0].ndim == 1
    half = format_data(joined, tmp_path / "half", FormatOptions(FS // 2))
    assert probe(half.wav["a0"]).channels == 6 and probe(half.wav["a0"]).frames == 2000
    before = tree(tmp_path / "dump")
    format_data(joined, tmp_path / "dump", FormatOptions(FS))
    assert tree(tmp_path / "dump") == before


def test_a_further_file_that_changes_is_noticed(joined, tmp_path):
    format_data(joined, tmp_path / "dump", FormatOptions(FS))
    data = DataDir.read(joined)
    soundfile.write(data.more_wav[0]["a0"], noise(channels=2), FS)
    before = tree(tmp_path / "dump")
    format_data(joined, tmp_path / "dump", FormatOptions(FS))
    changed = {path.stem for path, time in tree(tmp_path / "dump").items() if before[path] != time}
    assert changed == {"a0"}
    data.more_wav[0]["a0"], data.more_wav[0]["b1"] = data.more_wav[0]["b1"], data.more_wav[0]["a0"]
    data.write(joined)
    with pytest.raises(UserError, match="has changed since it was formatted"):
        collect(joined, tmp_path / "dump", FormatOptions(FS))


def test_bad_further_files_are_named(joined, tmp_path):
    data = DataDir.read(joined)
    soundfile.write(data.more_wav[0]["a0"], noise(3000, 2), FS)
    soundfile.write(data.more_wav[0]["b1"], noise(channels=5), FS)
    with pytest.raises(UserError) as error:
        format_data(joined, tmp_path / "dump", FormatOptions(FS))
    assert "a0_2.wav has 3000 samples" in str(error.value)
    assert "b1.wav + " in str(error.value) and "9 channels, but FLAC holds at most 8" in str(error.value)
    (joined / "wav_2.scp").write_text("a0 x.wav\n")
    with pytest.raises(UserError, match="wav_2.scp lacks utterance b1"):
        DataDir.read(joined)


@pytest.fixture
def recording(tmp_path):
    """One recording of a second, in files, and in a data folder by itself."""
    folder = make_data(tmp_path, {"rec": (noise(FS), noise(FS))})
    for name in ("utt2spk", "spk2utt", "utt2snr"):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("audio_format", ["flac", "wav.ark"])
def test_segments_are_utterances(recording, tmp_path, audio_format):
    (recording / "segments").write_text("rec_0 rec 0.0 0.25\nrec_1 rec 0.25 1.1\nrec_2 rec 0.5 -1\n")
    (recording / "text").write_text("rec_1 hello\n")
    options = FormatOptions(FS, audio_format)
    for _ in range(2):  # the second time, everything is there
        data = format_data(recording, tmp_path / "out", options)
    assert data.extra["text"] == {"rec_1": "hello"}
    assert data.extra["utt2num_samples"] == {"rec_0": "4000", "rec_1": "12000", "rec_2": "8000"}
    for scp, table in (("wav.scp", data.wav), ("spk1.scp", data.spk1)):
        whole = read_audio(read_table(recording / scp)["rec"])[0]
        for utt_id, part in (("rec_0", whole[:4000]), ("rec_1", whole[4000:]), ("rec_2", whole[8000:])):
            assert np.array_equal(read_audio(table[utt_id])[0], part)
    (recording / "segments").write_text("rec_1 rec 0.0 0.5\n")
    assert format_data(recording, tmp_path / "out", options).extra["utt2num_samples"] == {"rec_1": "8000"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("u rec 0.0 1.6", "segment of 0 to 1.6 s, but .*rec.wav has 1 s"),
        ("u rec 2 -1", "segment of 2 to -1 s"),
        ("u rec 0.5 0.5", "u begins at 0.5 s and ends at 0.5 s"),
        ("u rec 0.5", "expected '<utterance> <recording> <begin> <end>'"),
        ("u rec a b", "expected '<utterance>"),
        ("", "segments: no utterances"),
        ("u other 0 1", "wav.scp lacks utterance other, recordings of .*segments"),
    ],
)
def test_bad_segments_are_named(recording, tmp_path, line, message):
    (recording / "segments").write_text(line and line + "\n")
    with pytest.raises(UserError, match=message):
        format_data(recording, tmp_path / "out", FormatOptions())


def test_segments_are_ignored_by_nobody(recording):
    (recording / "segments").write_text("rec_0 rec 0.0 0.5\n")
    for read in (DataDir.read, lambda folder: read_audio_table(folder / "wav.scp")):
        with pytest.raises(UserError, match="segments: utterances are parts of recordings; format the set first"):
            read(recording)


@pytest.mark.parametrize("audio_format", ["flac", "flac.ark"])
def test_commands_are_run(recording, tmp_path, audio_format):
    for scp in ("wav.scp", "spk1.scp"):
        path = read_table(recording / scp)["rec"]
        os.rename(path, tmp_path / f"{scp}.wav")
        (recording / scp).write_text(f"rec cat {tmp_path}/{scp}.wav |\n")
    with pytest.raises(UserError, match="commands \\(pipes\\) in place of audio files .* format the set first"):
        DataDir.read(recording)
    options = FormatOptions(FS, audio_format)
    data = format_data(recording, tmp_path / "out", options)
    assert np.array_equal(read_audio(data.wav["rec"])[0], read_audio(tmp_path / "wav.scp.wav")[0])
    soundfile.write(tmp_path / "wav.scp.wav", noise(FS), FS)
    data = format_data(recording, tmp_path / "out", options)  # nothing tells that the command prints something else
    assert np.array_equal(read_audio(data.wav["rec"])[0], read_audio(tmp_path / "wav.scp.wav")[0])


def test_commands_that_fail_are_named(recording, tmp_path):
    for command, message in (
        ("cat nowhere.wav", "rec: cat nowhere.wav |: ended with code 1: cat: nowhere.wav: No such file"),
        ("echo hello", "rec: echo hello |: a text file, not audio"),
        ("true", "rec: true |: empty file"),
    ):
        (recording / "wav.scp").write_text(f"rec {command} |\n")
        with pytest.raises(UserError, match=re.escape(message)):
            format_data(recording, tmp_path / "out", FormatOptions())


def test_files_that_may_not_be_read_are_named_and_the_others_done(tmp_path):
    folder = make_data(tmp_path, {name: (noise(), noise()) for name in "amz"})
    os.chmod(DataDir.read(folder).wav["m"], 0)
    for audio_format in ("flac", "flac.ark"):
        with plain_user(), pytest.raises(UserError, match="1 of 3 .*\n.*m: .*m.wav: cannot be read"):
            format_data(folder, tmp_path / audio_format, FormatOptions(FS, audio_format))
    assert len(list((tmp_path / "flac").rglob("*.flac"))) == 4
