"""PESQ, STOI and ESTOI of one utterance, through the packages ``pesq`` and ``pystoi``."""

import itertools
import logging
import warnings
from contextlib import contextmanager
from typing import Iterator, List, Sequence

import numpy as np
from numpy.typing import ArrayLike

from i2srf_kd.audio.resample import resample
from i2srf_kd.metrics import pesq_process
from i2srf_kd.metrics.signal import as_pair

NARROW_BAND, WIDE_BAND = 8000, 16000
_undefined = itertools.count(1)
logger = logging.getLogger(__name__)


def _report_undefined(metric: str, reason: str) -> float:
    """Count and log a score that does not exist, and stand in NaN for it."""
    logger.warning("%s is undefined, NaN is recorded (no. %d so far): %s", metric, next(_undefined), reason)
    return float("nan")


def copies_at(rate: int, metric: str, fs: int, waves: Sequence[np.ndarray]) -> List[np.ndarray]:
    """Waveforms at the rate of a metric: themselves at this rate, copies at a higher one.

    Raises:
        ValueError: their own rate is lower.
    """
    if fs < rate:
        raise ValueError(f"{metric} needs {rate} Hz but the audio has {fs} Hz: resample it first")
    return [wave if fs == rate else resample(wave, fs, rate) for wave in waves]


def wb_pesq(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Wide-band PESQ, ITU-T P.862.2 without corrigendum 2, as the speech enhancement literature reports it.

    Args:
        reference: clean waveform, ``(samples,)``.
        estimate: enhanced waveform of the same length.
        fs: sampling rate in Hz, 16000 or more; PESQ is that of copies at 16000.

    Returns:
        MOS-LQO, about 1.04 to 4.64. NaN, with a counted warning in the log, if PESQ finds no speech, if the estimate
        is silent, if the recording is shorter than a quarter of a second, or if the package ``pesq`` crashes on it,
        which it does on recordings of more than about 50 pauses.

    Raises:
        ValueError: lower sampling rate, or waveforms that do not form a pair.
    """
    return _pesq("WB-PESQ", "wb", WIDE_BAND, reference, estimate, fs)


def nb_pesq(reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    """Narrow-band PESQ, ITU-T P.862 with the mapping of P.862.1; see :func:`wb_pesq`, at 8000 Hz."""
    return _pesq("NB-PESQ", "nb", NARROW_BAND, reference, estimate, fs)


def _pesq(name: str, mode: str, rate: int, reference: ArrayLike, estimate: ArrayLike, fs: int) -> float:
    ref, est = copies_at(rate, name, fs, as_pair(reference, estimate))
    if not est.any():
        return _report_undefined(name, "the estimate is silent")
    try:
        return pesq_process.pesq(rate, ref, est, mode)
    except pesq_process.PesqFailed as error:
        return _report_undefined(name, str(error))


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
