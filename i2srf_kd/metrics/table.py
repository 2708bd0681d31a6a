"""The table of scores: what each is called in files and in tables, how it is shown, and how it is computed.

A new score is a line in :data:`METRICS`: scoring computes it, and all tables show it.
"""

from functools import cached_property
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np

from i2srf_kd.metrics import composite, perceptual, signal
from i2srf_kd.metrics.perceptual import NARROW_BAND, WIDE_BAND
from i2srf_kd.system.errors import UserError


class Pair:
    """Two waveforms of one utterance, with what several scores share.

    Args:
        reference: clean waveform, ``(samples,)``, float64 in [-1, 1].
        estimate: enhanced waveform of the same length.
        fs: sampling rate in Hz.
    """

    def __init__(self, reference: np.ndarray, estimate: np.ndarray, fs: int):
        self.reference, self.estimate, self.fs = reference, estimate, fs

    @cached_property
    def wb_pesq(self) -> float:
        """WB-PESQ, which the composite measures are made of."""
        return perceptual.wb_pesq(self.reference, self.estimate, self.fs)

    @cached_property
    def ssnr(self) -> float:
        """Segmental SNR in dB."""
        return signal.segmental_snr(self.reference, self.estimate, self.fs)

    @cached_property
    def composite(self) -> composite.Composite:
        """CSIG, CBAK and COVL."""
        pair = self.reference, self.estimate, self.fs
        return composite.combine(self.wb_pesq, composite.llr(*pair), composite.wss(*pair), self.ssnr)


class Metric(NamedTuple):
    """How a score is shown.

    Attributes:
        name: in headings and sentences.
        decimals: that are shown.
        unit: behind the name; empty for scores without one.
        scale: from the number in files (STOI and WER are fractions there) to the shown one.
        higher_is_better: false for errors; None where nobody has said it.
        rate: in Hz that the score is defined at; audio of a higher rate is scored on a copy at this one, audio of a
            lower rate has no such score. None: scored at any rate.
        compute: the score of a pair; None for scores that need more than a pair, such as a recogniser.
    """

    name: str
    decimals: int = 3
    unit: str = ""
    scale: float = 1.0
    higher_is_better: Optional[bool] = True
    rate: Optional[int] = None
    compute: Optional[Callable[["Pair"], float]] = None

    @property
    def label(self) -> str:
        """Heading of a column: name, unit and which way is better."""
        unit = f" [{self.unit}]" if self.unit else ""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.name}{unit}{arrow}"

    def text(self, value: float, signed: bool = False) -> str:
        """A value from a file as it is shown, without its unit."""
        return f"{self.scale * value:{'+' if signed else ''}.{self.decimals}f}"


METRICS: Dict[str, Metric] = {
    "pesq_wb": Metric("WB-PESQ", rate=WIDE_BAND, compute=lambda pair: pair.wb_pesq),
    "pesq_nb": Metric(
        "NB-PESQ",
        rate=NARROW_BAND,
        compute=lambda pair: perceptual.nb_pesq(pair.reference, pair.estimate, pair.fs),
    ),
    "csig": Metric("CSIG", rate=WIDE_BAND, compute=lambda pair: pair.composite.csig),
    "cbak": Metric("CBAK", rate=WIDE_BAND, compute=lambda pair: pair.composite.cbak),
    "covl": Metric("COVL", rate=WIDE_BAND, compute=lambda pair: pair.composite.covl),
    "ssnr": Metric("SSNR", 2, "dB", compute=lambda pair: pair.ssnr),
    "stoi": Metric("STOI", 2, "%", 100.0, compute=lambda pair: perceptual.stoi(pair.reference, pair.estimate, pair.fs)),
    "estoi": Metric(
        "ESTOI", 2, "%", 100.0, compute=lambda pair: perceptual.estoi(pair.reference, pair.estimate, pair.fs)
    ),
    "si_sdr": Metric("SI-SDR", 2, "dB", compute=lambda pair: signal.si_sdr(pair.reference, pair.estimate)),
    "wer": Metric("WER", 2, "%", 100.0, higher_is_better=False, rate=WIDE_BAND),
    "challenge": Metric("challenge score", rate=WIDE_BAND),
    "dnsmos_sig": Metric("DNSMOS SIG", rate=WIDE_BAND),
    "dnsmos_bak": Metric("DNSMOS BAK", rate=WIDE_BAND),
    "dnsmos_ovrl": Metric("DNSMOS OVRL", rate=WIDE_BAND),
}
"""By the name in ``scores.csv``, in the order of the columns."""

SCORES: Tuple[str, ...] = tuple(name for name, metric in METRICS.items() if metric.compute is not None)
"""What can be computed of a pair."""

MAIN = ("pesq_wb", "pesq_nb", "si_sdr", "stoi")
"""What is shown where there is room for few."""


def metric_named(name: str) -> Metric:
    """How a score is shown, also one that is not in the table."""
    return METRICS.get(name) or Metric(name, higher_is_better=None)


def in_order(names: Iterable[str]) -> List[str]:
    """Scores in the order of the columns, unknown ones last."""
    present = set(names)
    return [name for name in METRICS if name in present] + sorted(present - METRICS.keys())


def default_metrics(fs: int) -> Tuple[str, ...]:
    """All scores of audio of a sampling rate in Hz; NB-PESQ only where there is no WB-PESQ, below 16000."""
    names = [name for name in SCORES if (METRICS[name].rate or fs) <= fs]
    return tuple(name for name in names if name != "pesq_nb" or "pesq_wb" not in names)


def check_metrics(names: Iterable[str], fs: int) -> None:
    """Raise UserError where scores do not exist for audio of a sampling rate in Hz."""
    absent = [name for name in names if (METRICS[name].rate or fs) > fs]
    if absent:
        there = ", ".join(name for name in SCORES if (METRICS[name].rate or fs) <= fs)
        raise UserError(f"--metrics {' '.join(absent)}: not defined for audio at {fs} Hz, which has {there}")


def in_training(fs: int) -> Dict[str, str]:
    """The scores of a training's validation: name in ``metrics.jsonl`` and criteria to that in the table."""
    return {"pesq": "pesq_wb" if fs >= WIDE_BAND else "pesq_nb", "stoi": "stoi", "si_sdr": "si_sdr"}
