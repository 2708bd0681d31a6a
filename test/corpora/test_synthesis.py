"""The mini corpus: layout, reproducibility, levels and errors."""

import errno
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from i2srf_kd.audio.io import probe, read_audio
from i2srf_kd.audio.level import active_power
from i2srf_kd.corpora import synthesis
from i2srf_kd.corpora.synthesis import MiniCorpusOptions, generate_mini_corpus, make_sentences, mix
from i2srf_kd.system.errors import UserError

SMALL = MiniCorpusOptions(fs=16000, seed=3, train_utts=9, valid_utts=3, test_utts=6)
installed = pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return generate_mini_corpus(tmp_path_factory.mktemp("mini ü") / "corpus", SMALL)


def contents(folder: Path):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_log(folder: Path, part: str):
    return [line.split() for line in (folder / f"log_{part}.txt").read_text().splitlines()]


@installed
def test_layout_is_voicebanks(corpus):
    files = contents(corpus)
    for part, count in (("trainset_28spk", 12), ("testset", 6)):
        noisy, clean = (
            sorted(name.partition("/")[2] for name in files if name.startswith(f"{kind}_{part}_wav/"))
            for kind in ("noisy", "clean")
        )
        log = read_log(corpus, part)
        assert noisy == clean == [f"{line[0]}.wav" for line in log] and len(noisy) == count
    speakers = {line[0].partition("_")[0] for line in read_log(corpus, "trainset_28spk")}
    assert {"p226", "p287"} < speakers and len(speakers) == 10
    assert {line[0].partition("_")[0] for line in read_log(corpus, "testset")} == {"p232", "p257"}


@installed
def test_mixtures_have_the_logged_snr(corpus):
    allowed = {"trainset_28spk": {"0", "5", "10", "15"}, "testset": {"2.5", "7.5", "12.5", "17.5"}}
    for part, snrs in allowed.items():
        for utt_id, _, snr in read_log(corpus, part):
            noisy, fs = read_audio(corpus / f"noisy_{part}_wav" / f"{utt_id}.wav")
            clean, _ = read_audio(corpus / f"clean_{part}_wav" / f"{utt_id}.wav")
            noise = noisy.astype(np.float64) - clean
            assert fs == 16000 and np.abs(noisy).max() < 1.0 and snr in snrs
            assert 10 * np.log10(active_power(clean, fs) / np.mean(noise**2)) == pytest.approx(float(snr), abs=0.1)
            assert 2.0 < len(clean) / fs < 7.0


@installed
def test_test_part_is_heard_nowhere_in_training(corpus):
    noises = [{line[1] for line in read_log(corpus, part)} for part in ("trainset_28spk", "testset")]
    assert not noises[0] & noises[1]
    assert not set(synthesis.TRAIN_NOISES) & set(synthesis.TEST_NOISES)
    voices = [*synthesis.TRAIN_SPEAKERS.values(), *synthesis.VALID_SPEAKERS.values(), *synthesis.TEST_SPEAKERS.values()]
    assert len(set(voices)) == 12


@installed
def test_same_options_give_the_same_bytes(corpus, tmp_path):
    assert contents(generate_mini_corpus(tmp_path / "again", SMALL)) == contents(corpus)
    other = generate_mini_corpus(tmp_path / "other", MiniCorpusOptions(8000, 4, 8, 2, 2))
    path = "noisy_testset_wav/p232_001.wav"
    assert contents(other)[path] != contents(corpus)[path] and probe(other / path).fs == 8000


@installed
def test_complete_corpus_is_kept_and_other_options_replace_it(tmp_path):
    tiny = MiniCorpusOptions(8000, 0, 8, 2, 2)
    folder = generate_mini_corpus(tmp_path / "x", tiny)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    generate_mini_corpus(folder, tiny)
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    generate_mini_corpus(folder, MiniCorpusOptions(8000, 1, 8, 2, 3))
    assert len(list(folder.glob("noisy_testset_wav/*"))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_foreign_files_are_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        generate_mini_corpus(tmp_path, SMALL)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@installed
def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(soundfile, "write", lambda *args, **kwargs: full())
    with pytest.raises(UserError, match="No space left"):
        generate_mini_corpus(tmp_path / "x", MiniCorpusOptions(8000, 0, 8, 2, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fs": 4000}, "--fs 4000"),
        ({"seed": -1}, "--seed -1"),
        ({"train_utts": 7}, "--train_utts 7: must lie between 8"),
        ({"valid_utts": 1}, "--valid_utts 1"),
        ({"test_utts": 5000}, "--test_utts 5000"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        generate_mini_corpus(tmp_path / "x", MiniCorpusOptions(**options))


def test_sentences_differ():
    sentences = make_sentences(3000, np.random.default_rng(0))
    assert len(set(sentences)) == 3000 and all(7 <= len(s.split()) <= 16 for s in sentences)
    assert make_sentences(5, np.random.default_rng(0)) != make_sentences(5, np.random.default_rng(1))
    with pytest.raises(UserError, match="the grammar has only"):
        make_sentences(10**7, np.random.default_rng(0))


def test_mix_keeps_the_peak_and_the_common_scale():
    random = np.random.default_rng(0)
    clean = np.concatenate([np.zeros(8000), 0.9 * np.sin(np.arange(8000) / 5)])
    mixture, scaled = mix(clean, random.standard_normal(16000), 0.0, 16000)
    assert np.abs(mixture).max() == pytest.approx(synthesis.PEAK)
    gain = scaled.max() / clean.max()
    assert gain < 1 and np.allclose(scaled, gain * clean)
    noise_power = np.mean((mixture - scaled) ** 2)
    assert 10 * np.log10(active_power(scaled, 16000) / noise_power) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UserError, match="silent"):
        mix(np.zeros(100), random.standard_normal(100), 0.0, 16000)
