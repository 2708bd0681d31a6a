"""What is in the formatted sets: lengths for training (shape files) and a report to look at before training.

write_statistics("dump/raw", ["train", "valid", "test"], "exp/stats", nj=4)
"""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.io import read_audio
from i2srf_kd.audio.level import active_frames, to_db
from i2srf_kd.data.kaldi_dir import DataDir, describe, raise_problems, write_table
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, atomic_path, remove_temporaries, write_text
from i2srf_kd.system.markdown import table_lines
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

FULL_SCALE = 1.0 - 2.0**-15  # the largest value of 16 bit
_PERCENTILES = (5, 25, 50, 75, 95)


@dataclass
class UtteranceReport:
    """Measures of one utterance. Levels are in dBFS, shares between 0 and 1."""

    utt_id: str
    fs: int = 0
    samples: int = 0
    channels: int = 0  # of the mixture
    ref_channels: int = 0
    snr: Optional[float] = None  # dB, whole utterance; None without noise or where the channels differ
    clipped: float = 0.0  # share of the samples of the mixture at full scale
    silence: float = 0.0  # share of the frames of the reference 40 dB or more below its loudest frame
    peak: float = 0.0  # of the mixture
    rms: float = 0.0  # of the mixture
    clean_md5: str = ""  # of the reference's samples, to find utterances that are there twice
    problem: str = ""


def measure_pair(job: Tuple[str, str, str]) -> UtteranceReport:
    """Measure an utterance, given as id, mixture file and reference file; a bad file is named in ``problem``."""
    utt_id, noisy_path, clean_path = job
    try:
        noisy, fs = read_audio(noisy_path)
        clean, clean_fs = read_audio(clean_path)
    except UserError as error:
        return UtteranceReport(utt_id, problem=str(error))
    if fs != clean_fs or len(noisy) != len(clean):
        problem = f"{noisy_path} has {len(noisy)} samples at {fs} Hz, {clean_path} {len(clean)} at {clean_fs} Hz"
        return UtteranceReport(utt_id, problem=problem)
    magnitude = np.abs(noisy)
    return UtteranceReport(
        utt_id,
        fs=fs,
        samples=len(noisy),
        channels=_channels(noisy),
        ref_channels=_channels(clean),
        snr=_snr(noisy, clean),
        clipped=float(np.mean(magnitude >= FULL_SCALE)),
        silence=float(1.0 - active_frames(clean, fs).mean()),
        peak=to_db(magnitude.max() ** 2),
        rms=to_db(np.mean(np.square(noisy, dtype=np.float64))),
        clean_md5=hashlib.md5(clean.tobytes(), usedforsecurity=False).hexdigest(),
    )


def _channels(wave: np.ndarray) -> int:
    return 1 if wave.ndim == 1 else wave.shape[1]


def _snr(noisy: np.ndarray, clean: np.ndarray) -> Optional[float]:
    if noisy.shape != clean.shape:
        return None
    noise_power = np.mean(np.square(noisy.astype(np.float64) - clean))
    clean_power = np.mean(np.square(clean, dtype=np.float64))
    if noise_power == 0.0 or clean_power == 0.0:
        return None
    return float(10 * np.log10(clean_power / noise_power))


def summarize(reports: Sequence[UtteranceReport], data: DataDir, dropped: int = 0) -> Dict[str, Any]:
    """Figures of one set.

    Args:
        reports: measures of its utterances.
        data: the set.
        dropped: utterances that formatting left out.

    Returns:
        Plain numbers and dictionaries of them, for JSON.
    """
    seconds = np.array([report.samples / report.fs for report in reports])
    snrs = [report.snr for report in reports if report.snr is not None]
    return {
        "utterances": len(reports),
        "speakers": len(set(data.utt2spk.values())),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "sampling_rates": sorted({report.fs for report in reports}),
        "channels": sorted({report.channels for report in reports}),
        "seconds": _distribution(seconds),
        "snr_db": _distribution(snrs) if snrs else None,
        "utterances_without_snr": len(reports) - len(snrs),
        "clipped_utterances": sum(report.clipped > 0 for report in reports),
        "clipped_share": _mean([report.clipped for report in reports], 6),
        "silence_share": _mean([report.silence for report in reports], 4),
        "peak_dbfs": _distribution([report.peak for report in reports]),
        "rms_dbfs": _distribution([report.rms for report in reports]),
        "dropped_in_formatting": dropped,
    }


def _mean(values: Sequence[float], digits: int) -> float:
    return round(float(np.mean(values)), digits)


def _distribution(values: Any) -> Dict[str, float]:
    values = np.asarray(values, dtype=np.float64)
    figures = {"min": values.min(), "mean": values.mean(), "max": values.max()}
    figures.update({f"p{p}": v for p, v in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)})
    return {name: round(float(value), 3) for name, value in figures.items()}


def write_statistics(dump_dir: PathLike, sets: Sequence[str], out_dir: PathLike, nj: int = 1) -> Dict[str, Any]:
    """Measure sets and write ``<set>/speech_shape``, ``<set>/utterances.tsv`` and ``corpus_report.{json,md,png}``.

    ``speech_shape`` holds ``<utterance> <samples>``, for several channels ``<utterance> <samples>,<channels>``.

    Args:
        dump_dir: folder of the formatted sets.
        sets: their names; the first is taken for the training set.
        out_dir: where to write.
        nj: processes.

    Returns:
        The contents of ``corpus_report.json``.

    Raises:
        UserError: a set or a file is missing or bad; all bad files of a set are named together.
    """
    if len(set(sets)) < len(sets):
        raise UserError(f"--sets {' '.join(sets)}: a set is named twice")
    out = Path(out_dir)
    for folder in (out, *(out / name for name in sets)):
        remove_temporaries(folder)  # of a run that was killed
    data = {name: DataDir.read(Path(dump_dir, name)) for name in sets}
    reports = {name: _measure_set(name, data[name], nj) for name in sets}
    for name in sets:
        shapes = {r.utt_id: f"{r.samples}" if r.channels == 1 else f"{r.samples},{r.channels}" for r in reports[name]}
        write_text(out / name / "utterances.tsv", _utterance_table(reports[name]))
        write_table(out / name / "speech_shape", shapes)
    dropped = {name: _count_lines(Path(dump_dir, name, "dropped.tsv")) for name in sets}
    report = {
        "sets": {name: summarize(reports[name], data[name], dropped[name]) for name in sets},
        "remarks": find_remarks(data, reports),
    }
    write_text(out / "corpus_report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "corpus_report.md", format_markdown(report))
    plot_report(reports, out / "corpus_report.png")
    for remark in report["remarks"]:
        logger.warning("%s", remark)
    return report


def _measure_set(name: str, data: DataDir, nj: int) -> List[UtteranceReport]:
    jobs = [(utt_id, data.wav[utt_id], data.spk1[utt_id]) for utt_id in data.utterances]
    with process_map(measure_pair, jobs, nj) as results:
        reports = list(progress(results, total=len(jobs), desc=f"measure {name}"))
    problems = [f"{report.utt_id}: {report.problem}" for report in reports if report.problem]
    raise_problems(f"{name}: {len(problems)} of {len(jobs)} utterances are bad; run the formatting again", problems)
    _check_channels(name, reports)
    return reports


def _check_channels(name: str, reports: Sequence[UtteranceReport]) -> None:
    """Batches can only be made of utterances with the same number of channels."""
    (usual, _), *others = Counter((report.channels, report.ref_channels) for report in reports).most_common()
    if others:
        odd = [report for report in reports if (report.channels, report.ref_channels) != usual]
        raise_problems(
            f"{name}: {len(odd)} of {len(reports)} utterances differ from the rest (mixture {usual[0]}, reference "
            f"{usual[1]}) in the number of channels; give them as many as the rest, or leave them out",
            [f"{report.utt_id}: mixture {report.channels}, reference {report.ref_channels}" for report in odd],
        )


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _utterance_table(reports: Sequence[UtteranceReport]) -> str:
    columns = [name for name in asdict(reports[0]) if name not in ("problem", "clean_md5")]
    rows = ["\t".join(columns)]
    for report in reports:
        values = asdict(report)
        rows.append("\t".join(_cell(values[name]) for name in columns))
    return "\n".join(rows) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def find_remarks(data: Dict[str, DataDir], reports: Dict[str, List[UtteranceReport]]) -> List[str]:
    """What a reader should know before training: leaks between sets, mixed rates, missing noise."""
    remarks = []
    names = list(data)
    first_seen: Dict[str, Tuple[str, str]] = {}
    doubles: List[str] = []
    for name in names:
        for report in reports[name]:
            where = first_seen.setdefault(report.clean_md5, (name, report.utt_id))
            if where[0] != name:
                doubles.append(f"{report.utt_id} of {name} is {where[1]} of {where[0]}")
    if doubles:
        remarks.append(f"{len(doubles)} clean utterances are in two sets: {'; '.join(doubles[:3])}")
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            shared = sorted(set(data[name].utt2spk.values()) & set(data[other].utt2spk.values()))
            if shared:
                remarks.append(f"{name} and {other} share {len(shared)} speakers, such as {', '.join(shared[:3])}")
    rates = sorted({report.fs for name in names for report in reports[name]})
    if len(rates) > 1:
        remarks.append(f"sampling rates differ: {', '.join(map(str, rates))} Hz; format all sets alike")
    for name in names:
        noiseless = [report.utt_id for report in reports[name] if report.snr is None and report.channels == 1]
        if noiseless:
            remarks.append(f"{name}: mixture and reference are the same in {describe(noiseless)}")
    return remarks


def format_markdown(report: Dict[str, Any]) -> str:
    """The report as a table with one column per set."""
    sets = report["sets"]
    rows = [
        ("utterances", lambda s: f"{s['utterances']}"),
        ("speakers", lambda s: f"{s['speakers']}"),
        ("hours", lambda s: f"{s['hours']:.2f}"),
        ("sampling rate [Hz]", lambda s: ", ".join(map(str, s["sampling_rates"]))),
        ("channels", lambda s: ", ".join(map(str, s["channels"]))),
        ("length [s]: median (min to max)", lambda s: _median(s["seconds"])),
        ("SNR [dB]: median (min to max)", lambda s: _median(s["snr_db"])),
        ("peak [dBFS]: median (min to max)", lambda s: _median(s["peak_dbfs"])),
        ("RMS [dBFS]: median (min to max)", lambda s: _median(s["rms_dbfs"])),
        ("utterances with clipping", lambda s: f"{s['clipped_utterances']}"),
        ("clipped samples", lambda s: f"{100 * s['clipped_share']:.3f} %"),
        ("silence in the reference", lambda s: f"{100 * s['silence_share']:.1f} %"),
        ("dropped in formatting", lambda s: f"{s['dropped_in_formatting']}"),
    ]
    lines = ["# Corpus report", ""]
    lines += table_lines(["", *sets], [[title, *(show(figures) for figures in sets.values())] for title, show in rows])
    lines += [
        "",
        "SNR: whole utterance, reference against mixture minus reference. Clipping: samples of the mixture at",
    ]
    lines += ["full scale. Silence: frames of 20 ms at least 40 dB below the loudest one of the utterance."]
    if report["remarks"]:
        lines += ["", "## Remarks", "", *(f"- {remark}" for remark in report["remarks"])]
    return "\n".join(lines) + "\n"


def _median(figures: Optional[Dict[str, float]]) -> str:
    return "-" if figures is None else f"{figures['p50']:.1f} ({figures['min']:.1f} to {figures['max']:.1f})"


def plot_report(reports: Dict[str, List[UtteranceReport]], path: PathLike) -> None:
    """Histograms of length, SNR and level, one line per set; left out with a warning without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: matplotlib is not installed", path)
        return
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    quantities = {
        "length [s]": {name: [r.samples / r.fs for r in rs] for name, rs in reports.items()},
        "SNR [dB]": {name: [r.snr for r in rs if r.snr is not None] for name, rs in reports.items()},
        "RMS of the mixture [dBFS]": {name: [r.rms for r in rs] for name, rs in reports.items()},
    }
    for axes, (title, values) in zip(figure.subplots(1, len(quantities)), quantities.items(), strict=True):
        everything = [value for per_set in values.values() for value in per_set]
        if everything:
            bins = np.histogram_bin_edges(everything, bins=30)
            for name, per_set in values.items():
                if per_set:
                    weights = np.full(len(per_set), 100.0 / len(per_set))
                    axes.hist(per_set, bins=list(bins), weights=weights, histtype="step", label=name)
            axes.legend()
        axes.set_xlabel(title)
        axes.set_ylabel("utterances of the set [%]")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
