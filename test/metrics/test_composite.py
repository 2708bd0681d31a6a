"""LLR, WSS and the composite measures against a frame-by-frame transcription of their definitions."""

import numpy as np
import pytest
import soundfile
from scipy.linalg import solve_toeplitz, toeplitz

from i2srf_kd.metrics.composite import combine, composite, frame_llr, frame_wss, llr, wss
from i2srf_kd.metrics.signal import segmental_snr

CENTRES = (
    "50 120 190 260 330 400 470 540 617.372 703.378 798.717 904.128 1020.38 1148.30 1288.72 1442.54 1610.70 1794.16 "
    "1993.93 2211.08 2446.71 2701.97 2978.04 3276.17 3597.63"
)
WIDTHS = (
    "70 70 70 70 70 70 70 77.3724 86.0056 95.3398 105.411 116.256 127.914 140.423 153.823 168.154 183.457 199.776 "
    "217.153 235.631 255.255 276.072 298.126 321.465 346.136"
)


def _speech_like(seed, fs, samples=8000, noise=0.02):
    """Coloured noise with a varying level, and the same with white noise on top."""
    from scipy.signal import lfilter

    generator = np.random.default_rng(seed)
    level = 0.02 * (1.2 + np.sin(2 * np.pi * 3 * np.arange(samples) / fs))
    clean = lfilter([1.0], [1.0, -1.3, 0.8], generator.standard_normal(samples)) * level
    return clean, clean + noise * generator.standard_normal(samples)


def _frames(wave, fs):
    window = round(0.03 * fs)
    hop = window // 4
    taper = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, window + 1) / (window + 1)))
    return [wave[i * hop : i * hop + window] * taper for i in range(int(len(wave) / hop - window / hop))]


def _predictor(frame, order):
    """Normal equations solved by scipy instead of a recursion written here."""
    lags = np.array([np.dot(frame[: len(frame) - k], frame[k:]) for k in range(order + 1)])
    return lags, np.concatenate([[1.0], -solve_toeplitz(lags[:-1], lags[1:])])


def _naive_llr(clean, noisy, fs):
    order = 16 if fs >= 10000 else 10
    values = []
    for a, b in zip(_frames(clean, fs), _frames(noisy, fs), strict=True):
        lags, clean_filter = _predictor(a, order)
        _, noisy_filter = _predictor(b, order)
        matrix = toeplitz(lags)
        values.append(np.log((noisy_filter @ matrix @ noisy_filter) / (clean_filter @ matrix @ clean_filter)))
    return np.array(values)


def _nearest_peak(level, slope, band):
    n = band
    if slope[band] > 0:
        while n < 24 and slope[n] > 0:
            n += 1
        return level[n - 1]
    while n >= 0 and slope[n] <= 0:
        n -= 1
    return level[n + 1]


def _naive_wss(clean, noisy, fs):
    """Waveforms on the int16 scale, as in the original."""
    window = round(0.03 * fs)
    n_fft = 2 ** int(np.ceil(np.log2(2 * window)))
    half = n_fft // 2
    centres, widths = np.array(CENTRES.split(), float), np.array(WIDTHS.split(), float)
    filters = []
    for centre, width in zip(centres, widths, strict=True):
        position, bins = np.floor(centre / (fs / 2) * half), width / (fs / 2) * half
        gain = np.exp(-11 * ((np.arange(half) - position) / bins) ** 2 + np.log(70.0) - np.log(width))
        filters.append(np.where(gain > np.exp(-30 / (2 * 2.303)), gain, 0.0))
    values = []
    for pair in zip(_frames(clean, fs), _frames(noisy, fs), strict=True):
        slopes, weights = [], []
        for frame in pair:
            power = np.abs(np.fft.fft(frame / 32768, n_fft)[:half]) ** 2
            level = np.array([10 * np.log10(max(np.sum(power * f), 1e-10)) for f in filters])
            slope = level[1:] - level[:-1]
            peak = np.array([_nearest_peak(level, slope, band) for band in range(24)])
            slopes.append(slope)
            weights.append(20 / (20 + level.max() - level[:24]) * 1 / (1 + peak - level[:24]))
        weight = (weights[0] + weights[1]) / 2
        values.append(np.sum(weight * (slopes[0] - slopes[1]) ** 2) / np.sum(weight))
    return np.array(values)


@pytest.mark.parametrize("fs", [8000, 16000])
@pytest.mark.parametrize("seed", [0, 1])
def test_llr_and_wss_agree_with_a_loop_over_frames(fs, seed):
    clean, noisy = _speech_like(seed, fs)
    np.testing.assert_allclose(frame_llr(clean, noisy, fs), _naive_llr(clean, noisy, fs), rtol=1e-7, atol=1e-10)
    expected = _naive_wss(32768 * clean, 32768 * noisy, fs)
    np.testing.assert_allclose(frame_wss(clean, noisy, fs), expected, rtol=1e-9)


def test_means_leave_the_worst_twentieth_out():
    clean, noisy = _speech_like(0, 16000)
    frames = np.sort(frame_wss(clean, noisy, 16000))
    assert wss(clean, noisy, 16000) == pytest.approx(frames[: int(len(frames) * 0.95 + 0.5)].mean())
    assert wss(clean, noisy, 16000) < frames.mean()


def test_equal_signals_have_no_distance():
    clean, _ = _speech_like(0, 16000)
    assert llr(clean, clean, 16000) == pytest.approx(0.0, abs=1e-12)
    assert wss(clean, clean, 16000) == 0.0
    assert composite(clean, clean, 16000, 4.64) == (5.0, 5.0, 5.0)


def test_wss_is_inflated_when_scaled_down_twice():
    """What the copied script does: its input in [-1, 1] is divided by 32768 and weak bands sink below the floor."""
    clean, noisy = _speech_like(0, 16000, noise=0.001)
    right, inflated = wss(clean, noisy, 16000), wss(clean / 32768, noisy / 32768, 16000)
    assert inflated < 0.9 * right
    assert combine(2.0, 0.5, inflated, 1.0).csig > combine(2.0, 0.5, right, 1.0).csig


def test_int16_and_float_give_the_same():
    clean, noisy = ((32768 * x).astype(np.int16) for x in _speech_like(0, 16000))
    assert composite(clean, noisy, 16000, 2.0) == composite(clean / 32768, noisy / 32768, 16000, 2.0)


def test_regressions_and_clipping():
    scores = combine(2.0, 0.6, 30.0, 2.0)
    assert scores.csig == pytest.approx(3.093 - 0.6174 + 1.206 - 0.27)
    assert scores.cbak == pytest.approx(1.634 + 0.956 - 0.21 + 0.126)
    assert scores.covl == pytest.approx(1.594 + 1.61 - 0.3072 - 0.21)
    assert combine(1.0, 4.0, 150.0, -10.0) == (1.0, 1.0, 1.0)
    assert np.isnan(combine(float("nan"), 0.5, 30.0, 2.0)).all()


@pytest.mark.parametrize("which", ["reference", "estimate", "both"])
def test_digital_silence_gives_finite_distances(which):
    clean, noisy = _speech_like(0, 16000)
    for name, wave in (("reference", clean), ("estimate", noisy)):
        if which in (name, "both"):
            wave[1000:5000] = 0.0
    assert np.isfinite(frame_llr(clean, noisy, 16000)).all()
    assert np.isfinite(frame_wss(clean, noisy, 16000)).all()


def test_too_short_is_undefined():
    assert np.isnan(llr(np.ones(500), np.ones(500), 16000)) and np.isnan(wss(np.ones(500), np.ones(500), 16000))


def test_real_pairs_agree_with_a_loop_over_frames(audio_dir):
    for path in sorted((audio_dir / "test" / "clean").glob("*.wav"))[12:14]:
        clean, fs = soundfile.read(path)
        noisy, _ = soundfile.read(audio_dir / "test" / "noisy" / path.name)
        np.testing.assert_allclose(frame_wss(clean, noisy, fs), _naive_wss(32768 * clean, 32768 * noisy, fs), rtol=1e-9)
        np.testing.assert_allclose(frame_llr(clean, noisy, fs), _naive_llr(clean, noisy, fs), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_noisy_row_of_the_25_real_pairs(audio_dir):
    """PESQ, STOI and SI-SDR are published for these pairs; the composite values are this implementation's own."""
    from i2srf_kd.metrics.utterance import score_utterance

    rows = []
    for path in sorted((audio_dir / "test" / "clean").glob("*.wav")):
        clean, fs = soundfile.read(path)
        noisy, _ = soundfile.read(audio_dir / "test" / "noisy" / path.name)
        rows.append(score_utterance(clean, noisy, fs))
        assert rows[-1]["ssnr"] == segmental_snr(clean, noisy, fs)
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert len(rows) == 25
    assert means["pesq_wb"] == pytest.approx(2.192, abs=5e-4)
    assert 100 * means["stoi"] == pytest.approx(93.2, abs=0.05)
    assert means["si_sdr"] == pytest.approx(8.19, abs=5e-3)
    assert means["csig"] == pytest.approx(3.584, abs=2e-3)
    assert means["cbak"] == pytest.approx(2.737, abs=2e-3)
    assert means["covl"] == pytest.approx(2.882, abs=2e-3)
