"""All measures of one pair of waveforms."""

from typing import Dict, Sequence, Set, Tuple

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.metrics import composite, perceptual, signal
from i2srf_kd.metrics.names import METRICS, WIDE_BAND

DEFAULT: Tuple[str, ...] = ("pesq_wb", "csig", "cbak", "covl", "ssnr", "stoi", "estoi", "si_sdr")
"""What is computed where nothing else is asked for, at 16 kHz and above."""
SCORES: Tuple[str, ...] = ("pesq_wb", "pesq_nb", *DEFAULT[1:])
_COMPOSITE = ("csig", "cbak", "covl")
_WIDE_BAND = ("pesq_wb", *_COMPOSITE)

LENGTH_TOLERANCE = 0.02
"""Seconds by which an estimate may be shorter or longer than its reference (one STFT hop and a little more)."""


def default_metrics(fs: int) -> Tuple[str, ...]:
    """:data:`DEFAULT` for audio of a sampling rate in Hz; below 16000, NB-PESQ stands in for what needs wide band."""
    if fs >= WIDE_BAND:
        return DEFAULT
    return tuple(name for name in SCORES if (METRICS[name].rate or fs) <= fs)


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
    zero_mean: bool = False,
) -> Dict[str, float]:
    """Score one utterance.

    Args:
        reference: clean waveform, ``(samples,)``, floating point in [-1, 1] or int16.
        estimate: enhanced waveform, ``(samples,)``; up to :data:`LENGTH_TOLERANCE` longer or shorter.
        fs: sampling rate in Hz; at least 16000 for ``pesq_wb``, ``csig``, ``cbak`` and ``covl``, which are those of
            copies at 16000 Hz, and 8000 for ``pesq_nb``.
        metrics: which of :data:`SCORES` to compute.
        zero_mean: remove the mean before SI-SDR.

    Returns:
        Metric to value, in the order of ``metrics``. STOI and ESTOI are fractions, SSNR and SI-SDR are in dB. NaN where
        a measure is undefined, for instance PESQ without speech.

    Raises:
        ValueError: unknown metric, too low a sampling rate, or waveforms that do not form a pair.
    """
    unknown = [name for name in metrics if name not in SCORES]
    if unknown:
        raise ValueError(f"unknown metrics {', '.join(unknown)}; choose from {', '.join(SCORES)}")
    wanted = set(metrics)
    ref, est = signal.as_pair(*align_lengths(reference, estimate, fs))
    scores: Dict[str, float] = {}
    if wanted.intersection(_WIDE_BAND):
        first = next(name for name in metrics if name in _WIDE_BAND)
        wide_ref, wide_est = perceptual.copies_at(WIDE_BAND, first, fs, (ref, est))
        scores.update(_wide_band(wide_ref, wide_est, wanted))
    if "pesq_nb" in wanted:
        scores["pesq_nb"] = perceptual.nb_pesq(ref, est, fs)
    if "ssnr" in wanted:
        scores["ssnr"] = signal.segmental_snr(ref, est, fs)
    if "stoi" in wanted:
        scores["stoi"] = perceptual.stoi(ref, est, fs)
    if "estoi" in wanted:
        scores["estoi"] = perceptual.estoi(ref, est, fs)
    if "si_sdr" in wanted:
        scores["si_sdr"] = signal.si_sdr(ref, est, zero_mean)
    return {name: scores[name] for name in metrics}


def _wide_band(ref: np.ndarray, est: np.ndarray, wanted: Set[str]) -> Dict[str, float]:
    """WB-PESQ, and the composite measures if one is wanted, of waveforms at 16000 Hz."""
    pesq = perceptual.wb_pesq(ref, est, WIDE_BAND)
    if not wanted.intersection(_COMPOSITE):
        return {"pesq_wb": pesq}
    return {"pesq_wb": pesq, **composite.composite(ref, est, WIDE_BAND, pesq)._asdict()}
