"""All measures of one pair of waveforms."""

from typing import Dict, Sequence, Tuple

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.metrics import composite, perceptual, signal

DEFAULT: Tuple[str, ...] = ("pesq_wb", "csig", "cbak", "covl", "ssnr", "stoi", "estoi", "si_sdr")
_COMPOSITE = ("csig", "cbak", "covl")
_WIDE_BAND = ("pesq_wb", *_COMPOSITE)

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
    zero_mean: bool = False,
) -> Dict[str, float]:
    """Score one utterance.

    Args:
        reference: clean waveform, ``(samples,)``, floating point in [-1, 1] or int16.
        estimate: enhanced waveform, ``(samples,)``; up to :data:`LENGTH_TOLERANCE` longer or shorter.
        fs: sampling rate in Hz; 16000 for ``pesq_wb``, ``csig``, ``cbak`` and ``covl``.
        metrics: which of :data:`DEFAULT` to compute.
        zero_mean: remove the mean before SI-SDR.

    Returns:
        Metric to value, in the order of ``metrics``. STOI and ESTOI are fractions, SSNR and SI-SDR are in dB. NaN where
        a measure is undefined, for instance PESQ without speech.

    Raises:
        ValueError: unknown metric, wrong sampling rate, or waveforms that do not form a pair.
    """
    unknown = [name for name in metrics if name not in DEFAULT]
    if unknown:
        raise ValueError(f"unknown metrics {', '.join(unknown)}; choose from {', '.join(DEFAULT)}")
    wanted = set(metrics)
    for name in _WIDE_BAND:
        if name in wanted:
            perceptual.require_wide_band(name, fs)
    ref, est = signal.as_pair(*align_lengths(reference, estimate, fs))
    scores: Dict[str, float] = {}
    if wanted.intersection(_WIDE_BAND):
        scores["pesq_wb"] = perceptual.wb_pesq(ref, est, fs)
    if wanted.intersection((*_COMPOSITE, "ssnr")):
        scores["ssnr"] = signal.segmental_snr(ref, est, fs)
    if wanted.intersection(_COMPOSITE):
        llr, wss = composite.llr(ref, est, fs), composite.wss(ref, est, fs)
        scores.update(composite.combine(scores["pesq_wb"], llr, wss, scores["ssnr"])._asdict())
    if "stoi" in wanted:
        scores["stoi"] = perceptual.stoi(ref, est, fs)
    if "estoi" in wanted:
        scores["estoi"] = perceptual.estoi(ref, est, fs)
    if "si_sdr" in wanted:
        scores["si_sdr"] = signal.si_sdr(ref, est, zero_mean)
    return {name: scores[name] for name in metrics}
