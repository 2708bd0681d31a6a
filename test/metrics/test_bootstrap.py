"""The bootstrap over seeds and utterances against resampling written out, and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from i2srf_kd.metrics.bootstrap import CrossedBootstrap

SEEDS, UTTERANCES = 4, 30


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    seed_effect, utterance_effect = generator.normal(0, 0.3, (SEEDS, 1)), generator.gamma(2.0, 0.5, (1, UTTERANCES))
    return seed_effect + utterance_effect + generator.normal(0, 0.2, (SEEDS, UTTERANCES))


def widened(values, level=0.95):
    """Seeds moved apart by the factor between a bootstrap's and a Student interval of their mean."""
    seeds, middle = len(values), np.nanmean(values, axis=0)
    quantiles = stats.t.interval(level, seeds - 1)[1] / stats.norm.interval(level)[1]
    return middle + np.sqrt(seeds / (seeds - 1)) * quantiles * (values - middle)


def written_out(values, statistic, resamples=4000):
    """Quantiles of a statistic over explicit draws of rows and columns."""
    values = [widened(v) for v in values]
    generator = np.random.default_rng(7)
    found = []
    for _ in range(resamples):
        rows = generator.integers(0, values[0].shape[0], values[0].shape[0])
        columns = generator.integers(0, values[0].shape[1], values[0].shape[1])
        found.append(statistic(*(v[np.ix_(rows, columns)] for v in values)))
    return np.quantile(found, [0.025, 0.975])


def test_mean_agrees_with_explicit_draws(scores):
    result = CrossedBootstrap(SEEDS, UTTERANCES).mean(scores)
    low, high = written_out([scores], np.mean)
    assert result.mean == pytest.approx(scores.mean())
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.03)
    assert result.seed_std == pytest.approx(stats.tstd(scores.mean(axis=1)))
    assert (result.n, result.n_nan, result.n_seeds) == (SEEDS * UTTERANCES, 0, SEEDS)


def test_undefined_scores_are_left_out(scores):
    scores[1, 3] = scores[2, 3] = scores[0, 8] = np.nan
    result = CrossedBootstrap(SEEDS, UTTERANCES).mean(scores)
    low, high = written_out([scores], np.nanmean)
    assert result.mean == pytest.approx(np.nanmean(scores))
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.03)
    assert (result.n, result.n_nan) == (SEEDS * UTTERANCES - 3, 3)


def test_one_seed_is_the_bootstrap_over_utterances(scores):
    result = CrossedBootstrap(1, UTTERANCES, level=0.9).mean(scores[:1])
    theirs = stats.bootstrap((scores[0],), np.mean, confidence_level=0.9, n_resamples=10000, method="percentile", rng=1)
    assert result.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert result.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)
    assert np.isnan(result.seed_std)


def test_share_positive_is_half_for_noise(scores):
    bootstrap = CrossedBootstrap(1, UTTERANCES)
    assert bootstrap.mean(scores[:1] - scores[0].mean()).share_positive == pytest.approx(0.5, abs=0.06)
    assert bootstrap.mean(scores[:1]).share_positive == 1.0


def test_seeds_widen_the_interval(scores):
    crossed = CrossedBootstrap(SEEDS, UTTERANCES)
    same = np.repeat(scores[:1], SEEDS, axis=0)
    one = CrossedBootstrap(1, UTTERANCES).mean(scores[:1])
    without = crossed.mean(same)
    assert without.high - without.low == pytest.approx(one.high - one.low, rel=0.1)
    shifted = same + np.array([[-1.0], [1.0], [-1.0], [1.0]])
    result = crossed.mean(shifted)
    assert result.high - result.low > 1.5 * (without.high - without.low)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_coverage_with_few_seeds(seeds):
    """The true mean is in at least 90 % of the 95 % intervals, also where the seeds matter most."""
    generator = np.random.default_rng(1)
    bootstrap, trials, found = CrossedBootstrap(seeds, 20, resamples=1000), 400, 0
    for _ in range(trials):
        effects = generator.normal(0, 0.3, (seeds, 1)) + generator.normal(0, 0.3, 20)
        result = bootstrap.mean(effects + generator.normal(0, 0.1, (seeds, 20)))
        found += result.low <= 0 <= result.high
    assert found >= 0.9 * trials


def test_ratio_agrees_with_explicit_draws(scores):
    gap = 0.5 + 0.1 * scores
    gain = 0.25 + 0.1 * scores
    result = CrossedBootstrap(SEEDS, UTTERANCES).ratio(gain, gap)
    low, high = written_out([gain, gap], lambda a, b: a.mean() / b.mean())
    assert result.ratio == pytest.approx(gain.mean() / gap.mean())
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.01)
    assert result.denominator.low > 0


def test_ratio_is_undefined_where_the_denominator_may_be_zero(scores):
    centred = scores - scores.mean()
    result = CrossedBootstrap(SEEDS, UTTERANCES).ratio(scores, centred)
    assert np.isnan(result[:3]).all() and result.denominator.low < 0 < result.denominator.high


def test_ratio_is_undefined_where_the_denominator_is_negative(scores):
    result = CrossedBootstrap(SEEDS, UTTERANCES).ratio(scores - 6.0, scores - 9.0)
    assert np.isnan(result[:3]).all() and result.denominator.high < 0


def test_ratio_leaves_pairs_out_where_one_is_undefined(scores):
    gap, gain = scores + 3.0, scores + 1.0
    gap[0, 0] = gain[1, 1] = np.nan
    both = ~np.isnan(gap) & ~np.isnan(gain)
    result = CrossedBootstrap(SEEDS, UTTERANCES).ratio(gain, gap)
    assert result.ratio == pytest.approx(gain[both].mean() / gap[both].mean())
    assert result.denominator.n_nan == 2


def test_repeatable_and_bounded_in_memory(scores, monkeypatch):
    whole = CrossedBootstrap(SEEDS, UTTERANCES, resamples=500).mean(scores)
    assert CrossedBootstrap(SEEDS, UTTERANCES, resamples=500).mean(scores) == whole
    assert CrossedBootstrap(SEEDS, UTTERANCES, resamples=500, seed=1).mean(scores) != whole
    monkeypatch.setattr("i2srf_kd.metrics.bootstrap._INDICES_AT_ONCE", 1000)
    assert CrossedBootstrap(SEEDS, UTTERANCES, resamples=500).mean(scores) == pytest.approx(whole)


def test_wrong_arguments(scores):
    with pytest.raises(ValueError, match="at least one of each"):
        CrossedBootstrap(0, 3)
    with pytest.raises(ValueError, match=r"shape \(4, 30\), expected \(30, 4\)"):
        CrossedBootstrap(UTTERANCES, SEEDS).mean(scores)
    with pytest.raises(ValueError, match="level is 95"):
        CrossedBootstrap(1, 1, level=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        CrossedBootstrap(1, 1, resamples=0)
    nothing = CrossedBootstrap(1, 2).mean([[np.nan, np.nan]])
    assert np.isnan(nothing.mean) and nothing.n == 0 and nothing.n_nan == 2
