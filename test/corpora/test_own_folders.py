"""Sets from folders of speech and noise, and from pairs."""

import importlib.util
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import soundfile
from places import REPOSITORY

from i2srf_kd.audio.level import active_power
from i2srf_kd.corpora.own_folders import FolderOptions, at_rate, read_pairs, read_speech, split_speech, write_mixtures
from i2srf_kd.data.kaldi_dir import DataDir, read_table
from i2srf_kd.system.errors import UserError


def sound(path: Path, seed: int = 0, fs: int = 16000, seconds: float = 1.0, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * np.random.default_rng(seed).standard_normal(round(seconds * fs)), fs)
    return path


@pytest.fixture()
def folders(tmp_path: Path) -> Path:
    """Speech of six readers in two books, noise of two rates."""
    for reader in range(6):
        for number in range(2):
            sound(tmp_path / f"speech/book {reader % 2}/chp_{number}_reader_{reader:05d}.wav", reader)
    for number in range(5):
        sound(tmp_path / f"noise/deep/n{number}.wav", 10 + number, fs=16000 if number else 48000)
    return tmp_path


@pytest.fixture(scope="module")
def data_py() -> Any:
    """local/data.py of the recipe."""
    spec = importlib.util.spec_from_file_location("dns_data", REPOSITORY / "egs/dns/local/data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture()
def prepare(data_py: Any, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run it in the folder of :func:`folders`."""
    monkeypatch.chdir(folders)
    return lambda *options: data_py.main(["--data_dir", "data", *options])


def sets(folders: Path) -> Dict[str, DataDir]:
    return {name: DataDir.read(folders / "data" / name) for name in ("train", "valid", "test")}


def test_speakers_and_noises_belong_to_one_set(folders: Path, prepare: Callable) -> None:
    options = ["--speech_dir", "speech", "--noise_dir", "noise", "--speaker_regex", "reader_([0-9]+)"]
    assert prepare(*options) == 0
    found = sets(folders)
    speakers = [set(data.utt2spk.values()) for data in found.values()]
    assert [len(names) for names in speakers] == [4, 1, 1] and len(set.union(*speakers)) == 6
    assert found["train"].wav == found["train"].spk1  # mixtures are made while training
    noises = set(read_table(folders / "data/noise.scp").values())
    assert len(noises) == 3 and all(soundfile.info(path).samplerate == 16000 for path in noises)
    before = {path: path.read_bytes() for path in (folders / "data").rglob("*") if path.is_file()}
    assert len([path for path in before if path.suffix == ".flac" and "mixtures" in path.parts]) == 8
    assert prepare(*options) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_mixtures_have_the_ratio_that_their_table_tells(folders: Path) -> None:
    speech = read_speech(folders / "speech", "reader_([0-9]+)")
    noise = [str(folders / f"noise/deep/n{number}.wav") for number in (1, 2)]
    mixed = write_mixtures(speech, noise, folders / "out", FolderOptions(mixtures=5, snr=(-3.0, 9.0)), nj=1)
    assert len(mixed) == 5
    for utt_id in mixed.utterances:
        mixture, clean = (soundfile.read(table[utt_id])[0] for table in (mixed.wav, mixed.spk1))
        snr = 10 * np.log10(active_power(clean, 16000) / np.mean((mixture - clean) ** 2))
        assert snr == pytest.approx(float(mixed.extra["utt2snr"][utt_id]), abs=0.05) and -3 <= snr <= 9
        assert np.abs(mixture).max() < 1
    again = write_mixtures(speech, noise, folders / "again", FolderOptions(mixtures=12, snr=(-3.0, 9.0)), nj=2)
    for utt_id in mixed.utterances:  # does not depend on the others
        assert Path(again.wav[utt_id]).read_bytes() == Path(mixed.wav[utt_id]).read_bytes()


@pytest.mark.parametrize("names", [("x/a.wav", "x/a.wav"), ("b_snr5_fileid_7.wav", "clean_fileid_7.wav")])
def test_pairs_to_train_and_test_with(folders: Path, prepare: Callable, names: Any) -> None:
    for number in range(4):
        for kind, name in zip(("noisy", "clean"), names, strict=True):
            file = name.replace("a.wav", f"a{number}.wav").replace("_7", f"_{number}")
            sound(folders / "set/no_reverb" / kind / file, number)
    pairs = read_pairs(folders / "set")
    assert len(pairs) == 4
    for utt_id in pairs.utterances:
        assert "noisy" in pairs.wav[utt_id] and "clean" in pairs.spk1[utt_id]
        assert np.array_equal(soundfile.read(pairs.wav[utt_id])[0], soundfile.read(pairs.spk1[utt_id])[0])
    assert prepare("--pairs_dir", "set", "--test_dir", "set", "--noise_dir", "noise") == 0
    assert [len(data) for data in sets(folders).values()] == [3, 1, 4]
    (folders / "set/no_reverb/noisy" / names[0].replace("a.wav", "a0.wav").replace("_7", "_0")).unlink()
    with pytest.raises(UserError, match="no noisy counterpart in"):
        read_pairs(folders / "set")


def test_one_speaker_is_split_by_utterance_and_that_is_said(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = read_speech(folders / "speech/book 0", None)
    assert set(data.utt2spk.values()) == {"chp"}
    parts = split_speech(data, FolderOptions(), 2)
    assert sorted(u for part in parts for u in part.utterances) == data.utterances and min(map(len, parts)) == 1
    assert "--speaker_regex" in caplog.text


def test_a_copy_at_another_rate_has_one_channel_and_the_length(tmp_path: Path) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal((4800, 2))
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/x.wav", wave, 48000)
    ((_, copy),) = at_rate([tmp_path / "in/x.wav"], tmp_path / "in", tmp_path / "out", 8000, 1).items()
    info = soundfile.info(copy)
    assert (info.samplerate, info.channels, info.frames) == (8000, 1, 800)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give --speech_dir and --noise_dir, or --pairs_dir"),
        (["--speech_dir", "speech"], "needs --noise_dir"),
        (["--speech_dir", "nowhere", "--noise_dir", "noise"], "nowhere: no such folder of speech"),
        (["--speech_dir", "speech", "--noise_dir", "empty"], "empty: no audio files of noise"),
        (["--speech_dir", "speech", "--noise_dir", "noise", "--snr", "9", "1"], "--snr 9 1: give the lowest first"),
        (["--speech_dir", "speech", "--noise_dir", "noise", "--speaker_regex", "who"], "needs a group"),
        (["--speech_dir", "speech", "--noise_dir", "noise", "--speaker_regex", "x(.)"], "finds no speaker in"),
        (["--speech_dir", "speech", "--noise_dir", "silent"], "is silent"),
        (["--speech_dir", "silent", "--noise_dir", "noise"], "too few"),
        (["--speech_dir", "odd", "--noise_dir", "noise"], "cannot be read: convert them"),
        (["--pairs_dir", "speech"], "no folder noisy"),
    ],
)
def test_what_is_wrong_is_said(folders: Path, prepare: Callable, options: List[str], message: str) -> None:
    (folders / "empty").mkdir()
    sound(folders / "silent/x.wav", level=0)
    sound(folders / "odd/x.wav")
    (folders / "odd/y.m4a").write_bytes(b"x")
    with pytest.raises(UserError) as error:
        prepare(*options)
    assert message in str(error.value) and not (folders / "data/train").exists()
