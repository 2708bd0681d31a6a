"""All measures of one pair of waveforms."""

from typing import Dict, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.metrics import perceptual, signal
from i2srf_kd.metrics.table import METRICS, SCORES, WIDE_BAND, Pair, default_metrics

DEFAULT = default_metrics(WIDE_BAND)
"""What is computed where nothing else is asked for, at 16 kHz and above."""

LENGTH_TOLERANCE = 0.02
"""Seconds by which an estimate may be shorter or longer than its reference (one STFT hop and a little more)."""


def align_lengths(reference: ArrayLike, estimate: ArrayLike, fs: int) -> Tuple[np.ndarray, np.ndarray]:
    """Cut both waveforms to the shorter one.

    Raises:
        ValueError: the lengths differ by more than :data:`LENGTH_TOLERANCE`.
    """
    ref, est = np.asarray(reference), np.asarray(estimate)
    if ref.ndim != 1 or est.ndim != 1:
        raise ValueError(f"expected one channel each, got shapes {ref.shape} (reference) and {est.shape} (estimate)")
    if abs(len(ref) - len(est)) > LENGTH_TOLERANCE * fs:
        raise ValueError(
            f"reference has {len(ref)} samples but estimate has {len(est)}: they may differ by at most "
            f"{LENGTH_TOLERANCE:g} s; do they belong to the same utterance?"
        )
    length = min(len(ref), len(est))
    return ref[:length], est[:length]


def score_utterance(
    reference: ArrayLike,
    estimate: ArrayLike,
    fs: int,
    metrics: Sequence[str] = DEFAULT,
) -> Dict[str, float]:
    """Score one utterance.

    Args:
        reference: clean waveform, ``(samples,)``, floating point in [-1, 1] or int16.
        estimate: enhanced waveform, ``(samples,)``; up to :data:`LENGTH_TOLERANCE` longer or shorter.
        fs: sampling rate in Hz; at least 16000 for ``pesq_wb``, ``csig``, ``cbak`` and ``covl``, which are those of
            copies at 16000 Hz, and 8000 for ``pesq_nb``.
        metrics: which of :data:`~i2srf_kd.metrics.table.SCORES` to compute.

    Returns:
        Metric to value, in the order of ``metrics``. STOI and ESTOI are fractions, SSNR and SI-SDR are in dB. NaN where
        a measure is undefined, for instance PESQ without speech.

    Raises:
        ValueError: unknown metric, too low a sampling rate, or waveforms that do not form a pair.
    """
    unknown = [name for name in metrics if name not in METRICS or METRICS[name].compute is None]
    if unknown:
        raise ValueError(f"unknown metrics {', '.join(unknown)}; choose from {', '.join(SCORES)}")
    ref, est = signal.as_pair(*align_lengths(reference, estimate, fs))
    pairs: Dict[int, Pair] = {}

    def score(name: str) -> float:
        metric = METRICS[name]
        rate = metric.rate or fs
        if rate not in pairs:
            copies = perceptual.copies_at(rate, name, fs, (ref, est))
            pairs[rate] = Pair(copies[0], copies[1], rate)
        assert metric.compute is not None
        return metric.compute(pairs[rate])

    return {name: score(name) for name in metrics}
