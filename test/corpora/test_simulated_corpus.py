"""Corpora of simulated rooms: layout, reproducibility, splits, continuing, errors."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from i2srf_kd.bin import mini_corpus, simulate_rooms
from i2srf_kd.corpora import simulated_corpus
from i2srf_kd.corpora.simulated_corpus import RoomOptions, simulate_corpus
from i2srf_kd.system.errors import UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyroomacoustics") is None, reason="no pyroomacoustics")
FAST = RoomOptions(seed=0, rooms=2, rt60=(0.0, 0.0))  # this seed holds out s3 for dev


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three speakers with two utterances each, five noises of three lengths and rates."""
    folder = tmp_path_factory.mktemp("sources ü")
    random = np.random.default_rng(0)
    for name, count, fs in (("s1", 3000, 16000), ("s2", 2000, 8000), ("s3", 9000, 48000)):
        (folder / "speech" / name).mkdir(parents=True)
        for number in (1, 2):
            wave = 0.1 * random.standard_normal(count)
            soundfile.write(folder / "speech" / name / f"{name}_{number}.flac", wave, fs)
    (folder / "noise").mkdir()
    for number in range(5):
        soundfile.write(folder / "noise" / f"{number}.wav", 0.1 * random.standard_normal((2000, 2)), 16000)
    return folder


def make(sources, out, options=FAST, nj=1):
    return simulate_corpus(sources / "speech", sources / "noise", out, options, nj)


def contents(folder: Path):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.wav")}


@pytest.fixture(scope="module")
def corpus(sources, tmp_path_factory):
    return make(sources, tmp_path_factory.mktemp("corpus") / "x")


def test_layout_is_that_of_l3das23(corpus):
    speakers = {"train100": ("s1", "s2"), "dev": ("s3",)}
    expected = set()
    for part, names in speakers.items():
        for utt in (f"{name}_{number}" for name in names for number in (1, 2)):
            expected |= {f"L3DAS23_Task1_{part}/data/{utt}_{mic}.wav" for mic in "AB"}
            expected.add(f"L3DAS23_Task1_{part}/labels/{utt}.wav")
    assert set(contents(corpus)) == expected
    for path in sorted(corpus.rglob("labels/*.wav")):
        label = soundfile.info(path)
        assert (label.channels, label.samplerate, label.subtype) == (1, 16000, "PCM_16")
        for mic in "AB":
            mixture = soundfile.info(path.parent.parent / "data" / f"{path.stem}_{mic}.wav")
            assert (mixture.channels, mixture.frames, mixture.samplerate) == (4, label.frames, 16000)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(sources, corpus, tmp_path):
    assert contents(make(sources, tmp_path / "x", nj=2)) == contents(corpus)


def test_another_seed_gives_another_corpus(sources, corpus, tmp_path):
    other = contents(make(sources, tmp_path / "y", replace(FAST, seed=2)))
    assert other.keys() == contents(corpus).keys() and other != contents(corpus)


def test_an_utterance_does_not_depend_on_the_others(sources, corpus, tmp_path):
    options = replace(FAST, train_utts=2, dev_utts=1)
    fewer = contents(make(sources, tmp_path / "x", options))
    assert len(fewer) == 9 and fewer.items() <= contents(corpus).items()


def test_complete_corpus_is_kept_and_interrupted_one_continued(sources, corpus, tmp_path, monkeypatch):
    whole, recorded = simulated_corpus._record, []

    def until_third(utt, options):
        recorded.append(utt.utt_id)
        if len(recorded) == 3:
            raise KeyboardInterrupt
        return whole(utt, options)

    monkeypatch.setattr(simulated_corpus, "_record", until_third)
    with pytest.raises(KeyboardInterrupt):
        make(sources, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    make(sources, tmp_path / "x")
    assert recorded[2] == recorded[3] and len(recorded) == 7
    assert contents(tmp_path / "x") == contents(corpus)
    make(sources, tmp_path / "x")
    assert len(recorded) == 7


def test_sets_in_folders_of_the_sources_are_kept(sources, tmp_path):
    for kind, train, dev in (("speech", "s1", "s3"), ("noise", "0.wav", "1.wav")):
        for name, what in (("train", train), ("dev", dev)):
            source, target = sources / kind / what, tmp_path / kind / name
            shutil.copytree(source, target) if source.is_dir() else target.mkdir(parents=True)
            source.is_dir() or shutil.copy(source, target)
    found = make(tmp_path, tmp_path / "x")
    assert {path.stem[:2] for path in found.rglob("L3DAS23_Task1_dev/labels/*")} == {"s3"}
    assert {path.stem[:2] for path in found.rglob("L3DAS23_Task1_train100/labels/*")} == {"s1"}


def test_speakers_and_noises_of_dev_are_heard_nowhere_else(sources):
    options = RoomOptions(seed=5)
    speech = simulated_corpus._split_speech(sources / "speech", options)
    noise = simulated_corpus._split_noise(sources / "noise", options)
    for split, count in ((speech, 6), (noise, 5)):
        assert len(split["train"]) + len(split["dev"]) == count and not set(split["train"]) & set(split["dev"])
    assert len({path.parent for path in speech["dev"]}) == 1 and len(noise["dev"]) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": -1}, "--seed -1"),
        ({"rooms": 0}, "--rooms 0"),
        ({"fs": 100}, "--fs 100"),
        ({"rt60": (0.5, 0.2)}, "--rt60 0.5 0.2"),
        ({"train_utts": 9}, "9 utterances are wanted, there are 4"),
    ],
)
def test_bad_options(sources, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(sources, tmp_path / "x", replace(FAST, **options))
    assert not list(tmp_path.iterdir())


def test_bad_sources(sources, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no audio files"):
        simulate_corpus(tmp_path / "empty", sources / "noise", tmp_path / "x", FAST)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        simulate_corpus(sources / "speech", tmp_path / "nowhere", tmp_path / "x", FAST)
    shutil.copytree(sources / "speech", tmp_path / "speech")
    soundfile.write(tmp_path / "speech" / "s2" / "s2_2.flac", np.zeros(500), 16000)
    with pytest.raises(UserError, match="s2_2.flac: silent"):
        simulate_corpus(tmp_path / "speech", sources / "noise", tmp_path / "x", FAST)
    shutil.copy(tmp_path / "speech/s1/s1_1.flac", tmp_path / "speech/s2/s1_1.flac")
    with pytest.raises(UserError, match="would be the same utterance"):
        simulate_corpus(tmp_path / "speech", sources / "noise", tmp_path / "x", FAST)


def test_sources_with_long_silences(sources, tmp_path):
    """Recordings of noise and speech may hold digital silence for longer than an utterance."""
    shutil.copytree(sources / "speech", tmp_path / "speech")
    noise = np.concatenate([np.zeros(15 * 16000), [0.1, -0.1]])
    for number in range(2):
        (tmp_path / "noise").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "noise" / f"{number}.wav", noise, 16000)
    folder = simulate_corpus(tmp_path / "speech", tmp_path / "noise", tmp_path / "x", FAST)
    assert len(contents(folder)) == 18
    late = np.concatenate([np.zeros(13 * 16000), 0.1 * np.hanning(999)])
    soundfile.write(tmp_path / "speech" / "s1" / "s1_1.flac", late, 16000)
    with pytest.raises(UserError, match="s1_1.flac: its first 12 s, of which the utterance is made, are silent"):
        simulate_corpus(tmp_path / "speech", tmp_path / "noise", tmp_path / "y", FAST)


def test_names_that_cannot_be_utterances_are_refused_before_any_work(sources, tmp_path):
    shutil.copytree(sources / "speech", tmp_path / "speech")
    (tmp_path / "speech/s3/s3_2.flac").rename(tmp_path / "speech/s3/s3 2.flac")
    with pytest.raises(UserError, match="s3 2.flac: .* no white space; rename the file"):
        simulate_corpus(tmp_path / "speech", sources / "noise", tmp_path / "x", FAST)
    assert not (tmp_path / ".x.partial").exists()


def test_names_that_tell_no_speakers_need_folders_of_the_sets(sources, tmp_path, caplog):
    for name in ("train", "dev"):
        (tmp_path / "speech" / name).mkdir(parents=True)
        shutil.copy(sources / "speech/s1/s1_1.flac", tmp_path / "speech" / name / f"clean_{name}.flac")
    with pytest.raises(UserError, match=r"1 speaker by the names .*; folders train and dev in it say"):
        simulate_corpus(tmp_path / "speech" / "dev", sources / "noise", tmp_path / "x", FAST)
    folder = simulate_corpus(tmp_path / "speech", sources / "noise", tmp_path / "x", FAST)
    assert sorted(path.stem for path in folder.rglob("labels/*")) == ["clean_dev", "clean_train"]
    assert "all names begin with clean" in caplog.text
    shutil.copy(sources / "speech/s2/s2_1.flac", tmp_path / "speech" / "train")
    with pytest.raises(UserError, match="speakers clean are in train and in dev; move their files"):
        simulate_corpus(tmp_path / "speech", sources / "noise", tmp_path / "y", FAST)


def test_command(sources, corpus, tmp_path, capsys):
    words = ["--speech_dir", sources / "speech", "--noise_dir", sources / "noise", "--out", tmp_path / "x"]
    words += ["--rooms", 2, "--rt60", 0, 0]
    assert simulate_rooms.main([str(word) for word in words]) == 0
    assert contents(tmp_path / "x") == contents(corpus) and str(tmp_path / "x") in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")
def test_mini_corpus_in_rooms(tmp_path):
    counts = ["--train_utts", "8", "--valid_utts", "2", "--test_utts", "2", "--fs", "8000"]
    mini_corpus.main([str(tmp_path / "x"), "--layout", "l3das23", *counts])
    names = sorted(path.stem for path in (tmp_path / "x/L3DAS23_Task1_train100/labels").iterdir())
    assert len(names) == 10 and names[0] == "226-0-0001"
    assert len(list((tmp_path / "x/L3DAS23_Task1_dev/data").iterdir())) == 4
    before = contents(tmp_path / "x")
    mini_corpus.main([str(tmp_path / "x"), "--layout", "l3das23", *counts])
    assert contents(tmp_path / "x") == before
