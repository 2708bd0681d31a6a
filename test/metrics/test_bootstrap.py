"""Bootstrap intervals."""

import numpy as np
import pytest
from scipy import stats

from i2srf_kd.metrics.bootstrap import mean_with_interval, paired_difference


@pytest.fixture
def scores():
    return np.random.default_rng(0).gamma(2.0, 1.0, 120)


def test_interval_agrees_with_scipy(scores):
    ours = mean_with_interval(scores, 0.9, 10000, seed=3)
    theirs = stats.bootstrap((scores,), np.mean, confidence_level=0.9, n_resamples=10000, method="percentile", rng=4)
    assert ours.mean == pytest.approx(scores.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    assert mean_with_interval(scores, 0.99).high > mean_with_interval(scores, 0.9).high


def test_seed_repeats(scores):
    assert mean_with_interval(scores, seed=1) == mean_with_interval(scores, seed=1)
    assert mean_with_interval(scores, seed=1) != mean_with_interval(scores, seed=2)


def test_large_sets_are_drawn_in_parts(scores, monkeypatch):
    whole = mean_with_interval(scores, resamples=500)
    monkeypatch.setattr("i2srf_kd.metrics.bootstrap._INDICES_AT_ONCE", 1000)
    assert mean_with_interval(scores, resamples=500) == whole


def test_nan_is_left_out_and_counted(scores):
    with_nan = np.insert(scores, [3, 50], np.nan)
    result = mean_with_interval(with_nan)
    assert (result.n, result.n_nan) == (120, 2)
    assert result[:3] == mean_with_interval(scores)[:3]
    empty = mean_with_interval([np.nan])
    assert np.isnan(empty.mean) and (empty.n, empty.n_nan) == (0, 1)


def test_paired_difference_uses_the_pairing(scores):
    better = scores + 0.05 + 0.01 * np.random.default_rng(1).standard_normal(len(scores))
    result = paired_difference(better, scores)
    assert result.mean == pytest.approx(0.05, abs=0.005) and result.low > 0 and result.share_positive == 1.0
    assert result.high - result.low < 0.1 * (mean_with_interval(scores).high - mean_with_interval(scores).low)
    swapped = paired_difference(scores, better)
    assert (swapped.mean, swapped.low, swapped.share_positive) == pytest.approx((-result.mean, -result.high, 0.0))


def test_share_positive_is_half_for_noise():
    noise = np.random.default_rng(0).standard_normal(200)
    assert paired_difference(noise - noise.mean(), np.zeros(200)).share_positive == pytest.approx(0.5, abs=0.03)


def test_pairs_with_a_nan_are_dropped():
    result = paired_difference([1.0, np.nan, 3.0], [0.0, 0.0, np.nan])
    assert (result.mean, result.n, result.n_nan) == (1.0, 1, 2)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="differ in number: 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="level is 95"):
        mean_with_interval([1.0], level=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        mean_with_interval([1.0], resamples=0)
