"""PESQ and STOI, and all measures of one utterance."""

import logging

import numpy as np
import pytest
import soundfile

from i2srf_kd.metrics.perceptual import estoi, stoi, wb_pesq
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


def test_lengths_may_differ_by_a_hop_only(real):
    clean, noisy, fs = real
    cut = score_utterance(clean[:-256], noisy[:-256], fs, ("ssnr",))
    assert score_utterance(clean, noisy[:-256], fs, ("ssnr",)) == cut
    with pytest.raises(ValueError, match=f"reference has {len(clean)} samples but estimate has {len(clean) - 400}"):
        score_utterance(clean, noisy[:-400], fs)


def test_unknown_metric_is_named():
    with pytest.raises(ValueError, match="unknown metrics sdr; choose from pesq_wb"):
        score_utterance(np.ones(9), np.ones(9), 16000, ("sdr",))
