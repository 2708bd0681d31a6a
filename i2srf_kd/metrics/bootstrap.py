"""Percentile bootstrap over training seeds and utterances together; with one seed, over utterances alone."""

import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_INDICES_AT_ONCE = 2_000_000


def _check(level: float, resamples: int) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, expected a number between 0 and 1 such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")


def _bounds(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class CrossedInterval(NamedTuple):
    """A mean over seeds and utterances with its confidence interval."""

    mean: float
    low: float
    high: float
    seed_std: float
    """Standard deviation (n - 1) of the means of the seeds; NaN with one seed."""
    n_seeds: int
    n: int
    """Scores that entered, over all seeds."""
    n_nan: int
    share_positive: float
    """Share of resamples whose mean is above 0."""


class CrossedRatio(NamedTuple):
    """A ratio of two means with its confidence interval, NaN unless the denominator is clearly positive."""

    ratio: float
    low: float
    high: float
    denominator: CrossedInterval


def _widening(seeds: int, level: float) -> float:
    """Factor on the deviations of the seeds, see :class:`CrossedBootstrap`."""
    if seeds < 2:
        return 1.0
    from scipy import stats  # here: it takes a second to import, and only several seeds need it

    quantile = (1 + level) / 2
    return math.sqrt(seeds / (seeds - 1)) * float(stats.t.ppf(quantile, seeds - 1) / stats.norm.ppf(quantile))


class CrossedBootstrap:
    """Percentile bootstrap over two crossed factors: training seeds, and utterances that every seed is scored on.

    Each resample draws seeds with replacement and, independently, utterances with replacement, and averages the scores
    of the drawn seeds on the drawn utterances (the "pigeonhole" bootstrap of crossed random effects, Owen 2007). The
    interval so covers other utterances from the same source and other seeds; with one seed, other utterances alone, and
    it says nothing about other seeds. Of paired differences it is far narrower than the two separate ones suggest,
    because systems that are scored on the same utterances share most of their variance.

    A percentile bootstrap of few values is too narrow: with three seeds, a 95 % interval would cover about 84 %. Before
    they are drawn, the seeds' deviations from their mean are therefore widened by sqrt(S / (S - 1)), which makes up for
    the bias of the bootstrap's variance, times the ratio of Student's to the normal quantile, with S - 1 degrees of
    freedom (Hesterberg 2015, who adjusts the quantiles instead; our reading for two factors). The mean stays.

    All quantities that are asked of one object share its draws, so that ratios are of matching resamples.

    Args:
        seeds: number of seeds S.
        utterances: number of utterances U.
        level: coverage of the intervals.
        resamples: number of resamples R.
        seed: makes the intervals repeatable.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, seeds: int, utterances: int, level: float = 0.95, resamples: int = 10000, seed: int = 0):
        _check(level, resamples)
        if seeds < 1 or utterances < 1:
            raise ValueError(f"{seeds} seeds and {utterances} utterances: at least one of each is needed")
        self.shape = (seeds, utterances)
        self.level = level
        self._widening = _widening(seeds, level)
        generator = np.random.default_rng(seed)
        # How often each seed and each utterance is drawn.
        self._seed_counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(np.float64)
        rows = max(1, _INDICES_AT_ONCE // utterances)
        shares = np.full(utterances, 1 / utterances)
        self._utterance_counts = np.concatenate(
            [
                generator.multinomial(utterances, shares, min(rows, resamples - start)).astype(np.uint16)
                for start in range(0, resamples, rows)
            ]
        )

    def _resampled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Means of all resamples, ``(S, U)`` to ``(R,)``; NaN where a resample drew no defined score."""
        values = self._widened(values)
        defined = ~np.isnan(values)
        if defined.all():
            return self._weighted_sums(values) / values.size
        totals = self._weighted_sums(np.where(defined, values, 0.0))
        counts = self._weighted_sums(defined.astype(np.float64))
        return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)

    def _widened(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seeds further apart, with the same mean in every utterance."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # an utterance without any score
            centre = np.nanmean(values, axis=0, keepdims=True)
        widened: NDArray[np.float64] = centre + self._widening * (values - centre)
        return widened

    def _weighted_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = max(1, _INDICES_AT_ONCE // values.shape[1])
        parts = []
        for start in range(0, len(self._utterance_counts), rows):
            per_seed = self._utterance_counts[start : start + rows].astype(np.float64) @ values.T
            parts.append((per_seed * self._seed_counts[start : start + rows]).sum(axis=1))
        return np.concatenate(parts)

    def _as_scores(self, values: ArrayLike) -> NDArray[np.float64]:
        scores = np.asarray(values, dtype=np.float64)
        if scores.shape != self.shape:
            raise ValueError(f"scores of shape {scores.shape}, expected {self.shape} (seeds, utterances)")
        return scores

    def mean(self, values: ArrayLike) -> CrossedInterval:
        """Mean of scores, or of paired differences, with its interval.

        Args:
            values: ``(S, U)``; NaN entries are left out and counted.

        Returns:
            NaN in mean, low and high if no score is defined.
        """
        scores = self._as_scores(values)
        defined = ~np.isnan(scores)
        count = int(defined.sum())
        if count == 0:
            nan = float("nan")
            return CrossedInterval(nan, nan, nan, nan, self.shape[0], 0, scores.size, nan)
        seed_means = [float(row[mask].mean()) for row, mask in zip(scores, defined, strict=True) if mask.any()]
        spread = float(np.std(seed_means, ddof=1)) if len(seed_means) > 1 else float("nan")
        means = self._resampled(scores)
        means = means[~np.isnan(means)]
        low, high = _bounds(means, self.level)
        positive = float(np.mean(means > 0))
        return CrossedInterval(
            float(scores[defined].mean()), low, high, spread, self.shape[0], count, scores.size - count, positive
        )

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike) -> CrossedRatio:
        """Ratio of the means of two sets of paired scores, resampled together.

        Scores that are NaN in either are left out of both. Where the denominator's interval contains zero, the ratio
        has no bounded interval (Fieller, 1954) and is NaN. Below zero it is NaN as well: a loss divided by a loss would
        look like a gain.

        Args:
            numerator, denominator: ``(S, U)``.
        """
        top, bottom = self._as_scores(numerator), self._as_scores(denominator)
        undefined = np.isnan(top) | np.isnan(bottom)
        top, bottom = np.where(undefined, np.nan, top), np.where(undefined, np.nan, bottom)
        below = self.mean(bottom)
        nan = float("nan")
        if not below.low > 0:
            return CrossedRatio(nan, nan, nan, below)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self._resampled(top) / self._resampled(bottom)
        low, high = _bounds(ratios[~np.isnan(ratios)], self.level)
        return CrossedRatio(float(np.nanmean(top) / np.nanmean(bottom)), low, high, below)
