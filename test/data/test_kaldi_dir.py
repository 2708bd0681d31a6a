"""Kaldi data folders: round trip, parts and errors that name file and line."""

import pytest

from i2srf_kd.data.kaldi_dir import (
    DataDir,
    describe,
    parse_shard,
    raise_problems,
    read_audio_table,
    read_table,
    write_table,
)
from i2srf_kd.system.errors import UserError


def make_data(n_utterances: int = 5) -> DataDir:
    ids = [f"p{i % 2}_{i:03d}" for i in range(n_utterances)]
    return DataDir(
        wav={u: f"noisy dir/ü {u}.wav" for u in ids},
        spk1={u: f"clean/{u}.wav" for u in ids},
        utt2spk={u: u[:2] for u in ids},
        extra={"utt2snr": {ids[0]: "2.5"}},
    )


def test_round_trip_with_blanks_and_umlauts_in_paths(tmp_path):
    data = make_data()
    data.write(tmp_path / "data ä")
    assert DataDir.read(tmp_path / "data ä") == data
    assert (tmp_path / "data ä" / "spk2utt").read_text() == "p0 p0_000 p0_002 p0_004\np1 p1_001 p1_003\n"
    ids = [line.split()[0] for line in (tmp_path / "data ä" / "wav.scp").read_text(encoding="utf-8").splitlines()]
    assert ids == sorted(ids) and len(ids) == 5


def test_rewriting_removes_tables_that_are_gone(tmp_path):
    make_data().write(tmp_path)
    smaller = make_data().subset(["p1_001"])
    smaller.write(tmp_path)
    assert DataDir.read(tmp_path) == smaller and not (tmp_path / "utt2snr").exists()


def test_shards_cover_everything_once():
    data = make_data(7)
    parts = [data.shard(i, 3) for i in (1, 2, 3)]
    assert sorted(u for part in parts for u in part.wav) == data.utterances
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(data.shard(9, 9)) == 0
    with pytest.raises(UserError, match="lack utterance nobody"):
        data.subset(["nobody"])


def test_without_speakers_every_utterance_is_its_own(tmp_path):
    make_data().write(tmp_path)
    (tmp_path / "utt2spk").unlink()
    (tmp_path / "spk2utt").unlink()
    assert DataDir.read(tmp_path).utt2spk["p1_001"] == "p1_001"


@pytest.mark.parametrize(
    "contents, message",
    [
        ("a x.wav\na y.wav\n", "wav.scp:2: a is listed twice"),
        ("b x.wav\na y.wav\n", "wav.scp:2: a comes after b; sort the file"),
        ("a x.wav\nb\n", "wav.scp:2: expected '<id> <value>'"),
        ("a x.wav\n\nb y.wav\n", "wav.scp:2: expected"),
        ("", "no utterances"),
        ("a sox x.wav |\n", "commands .*utterance a"),
        ("a x.wav\nb y.wav\n", "spk1.scp lacks utterance b of wav.scp"),
    ],
)
def test_malformed_wav_scp(tmp_path, contents, message):
    (tmp_path / "wav.scp").write_text(contents)
    (tmp_path / "spk1.scp").write_text("a c.wav\n")
    with pytest.raises(UserError, match=message):
        DataDir.read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_tables_of_other_systems_are_read(tmp_path, encoding, line_break):
    (tmp_path / "x.scp").write_bytes(f"a é.wav{line_break}b c d.wav{line_break}".encode(encoding))
    assert read_table(tmp_path / "x.scp") == {"a": "é.wav", "b": "c d.wav"}


@pytest.mark.parametrize("entry", ["{}.flac", "noisy.1-of-1.ark:{}"])
def test_audio_that_was_moved_with_its_tables_is_found(tmp_path, entry):
    (tmp_path / "elsewhere" / "test" / "audio").mkdir(parents=True)
    for number, name in enumerate("ab"):
        file = f"audio/{entry.format(number)}"
        (tmp_path / "elsewhere" / "test" / file.partition(":")[0]).touch()
        with open(tmp_path / "elsewhere" / "test" / "wav.scp", "a") as table:
            table.write(f"{name} dump/test/raw/test/{file}\n")
    scp = tmp_path / "elsewhere" / "test" / "wav.scp"
    (scp.parent / "spk1.scp").write_text(scp.read_text())
    here = {name: f"{scp.parent}/audio/{entry.format(number)}" for number, name in enumerate("ab")}
    assert read_audio_table(scp) == DataDir.read(scp.parent).wav == DataDir.read(scp.parent).spk1 == here
    (scp.parent / "audio").rename(tmp_path / "lost")
    assert read_audio_table(scp)["a"] == f"dump/test/raw/test/audio/{entry.format(0)}"  # which is named as missing


def test_other_bad_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such data folder"):
        DataDir.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot read .*wav.scp"):
        DataDir.read(tmp_path)
    (tmp_path / "wav.scp").write_bytes(b"a a.wav\nb caf\xe9.wav\n")
    with pytest.raises(UserError, match="wav.scp: not UTF-8 .*in line 2.* rename files"):
        DataDir.read(tmp_path)
    (tmp_path / "wav.scp").write_bytes("a a.wav\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="wav.scp: not UTF-8 text but UTF-16"):
        DataDir.read(tmp_path)
    make_data().write(tmp_path)
    (tmp_path / "spk2utt").write_text("p0 p0_000\n")
    with pytest.raises(UserError, match="spk2utt does not agree"):
        DataDir.read(tmp_path)
    surplus = make_data()
    surplus.spk1["zz"] = "x.wav"
    with pytest.raises(UserError, match="spk1.scp has utterance zz that wav.scp lacks"):
        surplus.write(tmp_path)


def test_tables_accept_tabs_and_a_missing_last_line_end(tmp_path):
    (tmp_path / "x").write_text("a\tone two\r\nb   three")
    assert read_table(tmp_path / "x") == {"a": "one two", "b": "three"}


@pytest.mark.parametrize("table", [{"a b": "x"}, {"": "x"}, {"a": ""}, {"a": "x\ny"}, {"a": " x"}])
def test_what_a_table_cannot_hold_is_refused(tmp_path, table):
    with pytest.raises(UserError, match="cannot be"):
        write_table(tmp_path / "x", table)
    assert not (tmp_path / "x").exists()


def test_shard_option():
    assert parse_shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/2", ""):
        with pytest.raises(UserError, match="expected i/N"):
            parse_shard(text)


def test_long_lists_are_shortened():
    assert describe(["a"]) == "utterance a"
    assert describe(list("abcdefg")) == "utterances a, b, c, d, e and 2 more"
    raise_problems("none", [])
    with pytest.raises(UserError) as error:
        raise_problems("30 bad files", [f"file{i}" for i in range(30)])
    assert "30 bad files" in str(error.value) and "file19" in str(error.value) and "file20" not in str(error.value)
    assert "and 10 more" in str(error.value)


def test_further_audio_files_round_trip_and_go_when_rewritten(tmp_path):
    data = make_data(2)
    data.more_wav = [{utt: f"/b/{utt}.wav" for utt in data.wav}, {utt: f"/c/{utt}.wav" for utt in data.wav}]
    data.write(tmp_path)
    assert DataDir.read(tmp_path) == data and (tmp_path / "wav_3.scp").is_file()
    first = data.utterances[0]
    assert data.subset([first]).mixture_files(first) == (data.wav[first], f"/b/{first}.wav", f"/c/{first}.wav")
    make_data(2).write(tmp_path)
    assert DataDir.read(tmp_path).more_wav == [] and not list(tmp_path.glob("wav_*.scp"))


def test_sets_are_joined():
    data = make_data(5)
    first, second = data.subset(data.utterances[:2]), data.subset(data.utterances[2:])
    assert first.joined(second) == data
    with pytest.raises(UserError, match="both hold utterances? "):
        data.joined(first)
    second.more_wav = [dict(second.wav)]
    with pytest.raises(UserError, match="different numbers of files"):
        first.joined(second)
