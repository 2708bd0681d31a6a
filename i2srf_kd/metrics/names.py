"""The table of scores: what each is called in files and in tables, and how it is shown."""

from typing import Dict, Iterable, List, NamedTuple, Optional


class Metric(NamedTuple):
    """How a score is shown.

    Attributes:
        name: in headings and sentences.
        decimals: that are shown.
        unit: behind the name; empty for scores without one.
        scale: from the number in files (STOI and WER are fractions there) to the shown one.
        higher_is_better: false for errors.
        rate: in Hz that the score is defined at; audio of a higher rate is scored on a copy at this one, audio of a
            lower rate has no such score. None: scored at any rate.
    """

    name: str
    decimals: int = 3
    unit: str = ""
    scale: float = 1.0
    higher_is_better: bool = True
    rate: Optional[int] = None

    @property
    def label(self) -> str:
        """Heading of a column: name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def text(self, value: float, signed: bool = False) -> str:
        """A value from a file as it is shown, without its unit."""
        return f"{self.scale * value:{'+' if signed else ''}.{self.decimals}f}"


NARROW_BAND, WIDE_BAND = 8000, 16000

METRICS: Dict[str, Metric] = {
    "pesq_wb": Metric("WB-PESQ", rate=WIDE_BAND),
    "pesq_nb": Metric("NB-PESQ", rate=NARROW_BAND),
    "csig": Metric("CSIG", rate=WIDE_BAND),
    "cbak": Metric("CBAK", rate=WIDE_BAND),
    "covl": Metric("COVL", rate=WIDE_BAND),
    "ssnr": Metric("SSNR", 2, "dB"),
    "stoi": Metric("STOI", 2, "%", 100.0),
    "estoi": Metric("ESTOI", 2, "%", 100.0),
    "si_sdr": Metric("SI-SDR", 2, "dB"),
    "wer": Metric("WER", 2, "%", 100.0, higher_is_better=False, rate=WIDE_BAND),
    "challenge": Metric("challenge score", rate=WIDE_BAND),
    "dnsmos_sig": Metric("DNSMOS SIG", rate=WIDE_BAND),
    "dnsmos_bak": Metric("DNSMOS BAK", rate=WIDE_BAND),
    "dnsmos_ovrl": Metric("DNSMOS OVRL", rate=WIDE_BAND),
}
"""By the name in ``scores.csv``, in the order of the columns."""

IN_TRAINING: Dict[str, str] = {"pesq": "pesq_wb", "stoi": "stoi", "si_sdr": "si_sdr"}
"""The scores of a training's validation: name in ``metrics.jsonl`` and criteria (``valid,pesq,max``) to that
above; ``pesq`` is ``pesq_nb`` below 16 kHz."""

MAIN = ("pesq_wb", "pesq_nb", "si_sdr", "stoi")
"""What is shown where there is room for few."""


def metric_named(name: str) -> Metric:
    """How a score is shown, also one that is not in the table."""
    return METRICS.get(name) or Metric(name)


def in_order(names: Iterable[str]) -> List[str]:
    """Scores in the order of the columns, unknown ones last."""
    present = set(names)
    return [name for name in METRICS if name in present] + sorted(present - METRICS.keys())
