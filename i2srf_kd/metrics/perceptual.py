"""WB-PESQ, STOI and ESTOI of one utterance, through the packages ``pesq`` and ``pystoi``."""

import itertools
import logging
import warnings
from contextlib import contextmanager
from typing import Iterator

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.metrics.signal import as_pair

WIDE_BAND_RATE = 16000
_undefined = itertools.count(1)
_logger = logging.getLogger(__name__)


def _report_undefined(metric: str, reason: str) -> float:
    """Count and log a score that does not exist, and stand in NaN for it."""
    _logger.warning("%s is undefined, NaN is recorded (no. %d so far): %s", metric, next(_undefined), reason)
    return float("nan")


def require_wide_band(metric: str, fs: int) -> None:
    """Raise ``ValueError`` unless ``fs`` is 16 kHz."""
    if fs != WIDE_BAND_RATE:
        raise ValueError(f"{metric} needs {WIDE_BAND_RATE} Hz but the audio has {fs} Hz: resample it first")


def wb_pesq(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Wide-band PESQ, ITU-T P.862.2 without corrigendum 2, as the speech enhancement literature reports it.

    Args:
        reference: clean waveform, ``(samples,)``.
        estimate: enhanced waveform of the same length.
        fs: sampling rate, 16000.

    Returns:
        MOS-LQO, about 1.04 to 4.64. NaN, with a counted warning in the log, if PESQ finds no speech, if the estimate
        is silent or if the recording is shorter than a quarter of a second.

    Raises:
        ValueError: other sampling rate, or waveforms that do not form a pair.
    """
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    require_wide_band("WB-PESQ", fs)
    ref, est = as_pair(reference, estimate)
    if not est.any():
        return _report_undefined("WB-PESQ", "the estimate is silent")
    try:
        return float(pesq(fs, ref, est, "wb"))
    except NoUtterancesError:
        return _report_undefined("WB-PESQ", "no speech was found in the reference")
    except BufferTooShortError:
        return _report_undefined("WB-PESQ", f"{len(ref)} samples are less than a quarter of a second")


@contextmanager
def _fixed_global_seed() -> Iterator[None]:
    """pystoi dithers ESTOI with numpy's global generator: fix it, so that scores repeat bit by bit, and put it back."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def _intelligibility(reference: ArrayLike, estimate: ArrayLike, fs: int, extended: bool) -> float:
    from pystoi import stoi as compute

    name = "ESTOI" if extended else "STOI"
    ref, est = as_pair(reference, estimate)
    if not ref.any():
        return _report_undefined(name, "the reference is silent")
    if len(ref) < 0.4 * fs:
        return _report_undefined(name, f"{len(ref)} samples are less than one segment of 0.4 s")
    with warnings.catch_warnings(), _fixed_global_seed():
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(compute(ref, est, fs, extended=extended))
        except RuntimeWarning:
            return _report_undefined(name, "less than 0.4 s is left after silent frames are removed")


def stoi(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Short-time objective intelligibility (Taal et al., IEEE TASLP 2011).

    Args:
        reference: clean waveform, ``(samples,)``.
        estimate: enhanced waveform of the same length.
        fs: sampling rate in Hz (resampled to 10 kHz inside).

    Returns:
        About 0 to 1. NaN, with a counted warning in the log, if less than 0.4 s of speech is left.
    """
    return _intelligibility(reference, estimate, fs, extended=False)


def estoi(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Extended STOI (Jensen and Taal, IEEE/ACM TASLP 2016); arguments and result as in :func:`stoi`."""
    return _intelligibility(reference, estimate, fs, extended=True)
