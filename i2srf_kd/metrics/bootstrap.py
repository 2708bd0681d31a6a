"""Percentile bootstrap over utterances."""

from typing import Iterator, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_INDICES_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    """Utterances that entered."""
    n_nan: int
    """Utterances left out because their score is undefined."""


class Difference(NamedTuple):
    """A mean paired difference and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    n_nan: int
    share_positive: float
    """Share of resamples whose mean difference is above 0."""


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of ``resamples`` draws with replacement: ``(n,)`` to ``(resamples,)``. Memory stays bounded."""

    def chunks() -> Iterator[NDArray[np.float64]]:
        generator = np.random.default_rng(seed)
        rows = max(1, _INDICES_AT_ONCE // len(values))
        for start in range(0, resamples, rows):
            shape = (min(rows, resamples - start), len(values))
            yield values[generator.integers(0, len(values), shape)].mean(axis=1)

    return np.concatenate(list(chunks()))


def _check(level: float, resamples: int) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, expected a number between 0 and 1 such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected at least 1")


def _bounds(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_with_interval(values: ArrayLike, level: float = 0.95, resamples: int = 10000, seed: int = 0) -> Interval:
    """Mean over utterances with a percentile bootstrap interval (Efron, 1979).

    The interval says how much the mean would move with other utterances from the same source; it says nothing about
    other speakers, noises or training seeds.

    Args:
        values: one score per utterance, ``(n,)``; NaN entries are left out and counted.
        level: coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: makes the interval repeatable.

    Returns:
        NaN in mean, low and high if no score is defined.
    """
    _check(level, resamples)
    scores = np.asarray(values, dtype=np.float64).ravel()
    defined = scores[~np.isnan(scores)]
    missing = len(scores) - len(defined)
    if not len(defined):
        return Interval(float("nan"), float("nan"), float("nan"), 0, missing)
    low, high = _bounds(_resampled_means(defined, resamples, seed), level)
    return Interval(float(defined.mean()), low, high, len(defined), missing)


def paired_difference(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> Difference:
    """Mean of ``a - b`` over utterances with a percentile bootstrap interval, utterances resampled as pairs.

    Two systems scored on the same utterances share most of their variance, so this interval is far narrower than the
    two separate ones suggest.

    Args:
        a: scores of one system, ``(n,)``.
        b: scores of the other on the same utterances in the same order, ``(n,)``; a pair with a NaN is left out.
        level: coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: makes the interval repeatable.

    Raises:
        ValueError: different numbers of scores.
    """
    _check(level, resamples)
    first, second = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if len(first) != len(second):
        raise ValueError(f"paired scores differ in number: {len(first)} and {len(second)}")
    differences = first - second
    defined = differences[~np.isnan(differences)]
    missing = len(differences) - len(defined)
    if not len(defined):
        return Difference(float("nan"), float("nan"), float("nan"), 0, missing, float("nan"))
    means = _resampled_means(defined, resamples, seed)
    low, high = _bounds(means, level)
    return Difference(float(defined.mean()), low, high, len(defined), missing, float(np.mean(means > 0)))
