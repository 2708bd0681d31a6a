"""PESQ and STOI, and all measures of one utterance."""

import logging
import re

import numpy as np
import pytest
import soundfile

from i2srf_kd.audio.resample import resample
from i2srf_kd.metrics import pesq_process
from i2srf_kd.metrics.perceptual import estoi, nb_pesq, stoi, wb_pesq
from i2srf_kd.metrics.table import METRICS, Metric, default_metrics
from i2srf_kd.metrics.utterance import DEFAULT, score_utterance


@pytest.fixture(scope="module")
def real(audio_dir):
    name = "p232_170.wav"
    clean, fs = soundfile.read(audio_dir / "test" / "clean" / name)
    noisy, _ = soundfile.read(audio_dir / "test" / "noisy" / name)
    return clean, noisy, fs


def test_scores_are_those_of_the_packages(real):
    from pesq import pesq
    from pystoi import stoi as reference_stoi

    clean, noisy, fs = real
    scores = score_utterance(clean, noisy, fs)
    assert tuple(scores) == DEFAULT
    assert scores["pesq_wb"] == pesq(fs, clean, noisy, "wb")
    assert scores["stoi"] == pytest.approx(reference_stoi(clean, noisy, fs), abs=1e-12)
    assert scores["estoi"] == pytest.approx(reference_stoi(clean, noisy, fs, extended=True), abs=1e-9)


def test_estoi_repeats_and_leaves_the_global_generator_alone(real):
    clean, noisy, fs = real
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    first = estoi(clean, noisy, fs)
    assert np.random.rand() == expected
    assert estoi(clean, noisy, fs) == first


def test_perfect_estimate_gets_the_best_scores(real):
    clean, _, fs = real
    scores = score_utterance(clean, clean, fs)
    assert scores["pesq_wb"] > 4.6 and scores["stoi"] == pytest.approx(1.0) and scores["ssnr"] == 35.0


@pytest.mark.parametrize("silent", ["reference", "estimate"])
def test_silence_is_undefined_and_counted(silent, caplog):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    pair = (0 * noise, noise) if silent == "reference" else (noise, 0 * noise)
    with caplog.at_level(logging.WARNING):
        assert np.isnan(wb_pesq(*pair, 16000))
    assert "no. " in caplog.text and "WB-PESQ is undefined" in caplog.text


def test_short_recordings_are_undefined():
    noise = 0.1 * np.random.default_rng(0).standard_normal(2000)
    assert np.isnan(wb_pesq(noise, noise, 16000)) and np.isnan(stoi(noise, noise, 16000))
    mostly_silent = np.concatenate([noise, np.zeros(8000)])
    assert np.isnan(stoi(mostly_silent, mostly_silent, 16000))
    assert np.isnan(score_utterance(noise, noise, 16000)["covl"])


def test_other_sampling_rate_is_refused_only_where_it_matters():
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    with pytest.raises(ValueError, match="csig needs 16000 Hz but the audio has 8000 Hz"):
        score_utterance(noise, noise, 8000, ("csig",))
    assert set(score_utterance(noise, noise, 8000, ("stoi", "si_sdr"))) == {"stoi", "si_sdr"}


def test_audio_of_a_high_rate_is_scored_on_copies_where_a_score_needs_its_rate(real):
    clean, noisy, fs = real
    high = [resample(wave, fs, 48000) for wave in (clean, noisy)]
    scores, expected = score_utterance(*high, 48000), score_utterance(clean, noisy, fs)
    assert default_metrics(48000) == DEFAULT == tuple(scores)
    for name, value in expected.items():
        # The copies have lost a little at the upper end of their band.
        assert scores[name] == pytest.approx(value, rel=0.02, abs=0.1 if name in ("ssnr", "si_sdr") else 0.02), name


def test_narrow_band_audio_has_narrow_band_pesq(real):
    from pesq import pesq

    clean, noisy = (resample(wave, real[2], 8000) for wave in real[:2])
    scores = score_utterance(clean, noisy, 8000, default_metrics(8000))
    assert list(scores) == ["pesq_nb", "ssnr", "stoi", "estoi", "si_sdr"]
    assert (
        scores["pesq_nb"] == pesq(8000, clean.astype(float), noisy.astype(float), "nb") == nb_pesq(clean, noisy, 8000)
    )


@pytest.fixture
def pesq_of(monkeypatch):
    """Makes the process of PESQ run other code."""

    def start(code):
        process = pesq_process.PesqProcess()
        monkeypatch.setattr(pesq_process, "pesq", process)
        monkeypatch.setattr(pesq_process, "_START", f"import sys; sys.path[:] = sys.argv[1:]; {code}")
        return process

    return start


@pytest.mark.parametrize(
    "answer, reason",
    [("__import__('os').abort()", "crashed .signal 6"), ("[None for _ in iter(int, 1)]", "took too long")],
)
def test_a_crash_or_a_loop_of_pesq_costs_one_score(real, pesq_of, caplog, monkeypatch, answer, reason):
    clean, noisy, fs = real
    server = "import i2srf_kd.metrics.pesq_process as p; p.SECONDS_LIMIT = 0.1"
    process = pesq_of(f"{server}; p._score = lambda *_: {answer}; p.serve()")
    assert np.isnan(wb_pesq(clean[:1600], noisy[:1600], fs))
    assert "WB-PESQ is undefined" in caplog.text and re.search(reason, caplog.text)
    monkeypatch.undo()
    assert process.close() is None and wb_pesq(clean, noisy, fs) > 1


def test_a_process_that_cannot_start_is_an_error(real, pesq_of):
    pesq_of("sys.exit(3)")
    with pytest.raises(RuntimeError, match="exit code 3"):
        wb_pesq(*real)


def test_many_pauses_do_not_end_the_scoring(real):
    """The package crashes on these, in its C code."""
    clean, noisy, fs = real
    burst = clean[len(clean) // 2 :][: int(0.3 * fs)]
    many = np.concatenate([np.concatenate([burst, np.zeros(int(0.3 * fs))]) for _ in range(60)])
    scores = score_utterance(many, many + 0.005 * np.random.default_rng(0).standard_normal(len(many)), fs)
    assert np.isfinite(scores["stoi"]) and (np.isnan(scores["pesq_wb"]) or scores["pesq_wb"] > 1)
    assert wb_pesq(clean, noisy, fs) > 1


def test_a_score_of_ones_own_is_a_line_of_the_table(monkeypatch):
    """It is computed like all others, on copies at its rate, and shown as it says."""
    own = Metric("length", 1, "kilosamples", 1e-3, rate=4000, compute=lambda pair: float(len(pair.reference)))
    monkeypatch.setitem(METRICS, "length", own)
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    assert score_utterance(noise, noise, 16000, ("ssnr", "length"))["length"] == 2000
    assert own.label == "length [kilosamples] ↑" and own.text(2000.0, signed=True) == "+2.0"


def test_lengths_may_differ_by_a_hop_only(real):
    clean, noisy, fs = real
    cut = score_utterance(clean[:-256], noisy[:-256], fs, ("ssnr",))
    assert score_utterance(clean, noisy[:-256], fs, ("ssnr",)) == cut
    with pytest.raises(ValueError, match=f"reference has {len(clean)} samples but estimate has {len(clean) - 400}"):
        score_utterance(clean, noisy[:-400], fs)


def test_unknown_metric_is_named():
    with pytest.raises(ValueError, match="unknown metrics sdr; choose from pesq_wb"):
        score_utterance(np.ones(9), np.ones(9), 16000, ("sdr",))
