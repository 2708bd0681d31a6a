"""The result file of a recipe: one row per system, with intervals, complexity, paired differences and environment."""

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

from i2srf_kd.metrics.table import in_order, metric_named
from i2srf_kd.results.comparison import compare, order_systems
from i2srf_kd.results.files import read_json
from i2srf_kd.results.model import System
from i2srf_kd.results.scores import RESAMPLES
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, write_text
from i2srf_kd.system.markdown import MISSING, Column, named_values, table_lines
from i2srf_kd.system.provenance import scoring_record

_SEEDS_NOTE = [
    "Systems of several seeds: mean over seeds and utterances, both drawn with replacement, independently of each "
    "other, deviations of the seeds widened for their small number (Student's t)."
]
_COMPLEXITY = (
    Column("parameters", "parameters", "{:,}"),
    Column("gmacs_per_second", "GMAC/s without recurrent layers", "{:.2f}"),
    Column("gmacs_per_second_with_recurrent", "GMAC/s with recurrent layers", "{:.2f}"),
)
_COST_NOTES = [
    "GMAC/s with recurrent layers: attention is included; Fourier transforms, norms, activations and element-wise "
    "products are not.",
    "Real-time factor: time over length of the audio, from waveform to waveform; one thread in CPU time (median of "
    "the turns), more in elapsed time (shortest turn), which other programs on the machine lengthen. Peak memory: "
    "above what the process held before the run, so without weights and libraries.",
]
_PICTURES = (".png", ".svg")
_AUDIO = (".wav", ".flac", ".mp3", ".ogg")


def read_costs(path: PathLike) -> Tuple[Dict[str, Dict[str, Any]], str]:
    """Costs by network, and in words how they were measured, as ``python tools/bench models --json`` wrote them.

    Raises:
        UserError: the file is absent or of another part.
    """
    content = read_json(path)
    if content.get("part") != "models":
        raise UserError(f"{path}: not written by python tools/bench models --json")
    return {row["name"]: row for row in content["rows"]}, f"Costs: {named_values(content['conditions'])}."


def build(
    title: str,
    systems: Sequence[System],
    comparisons: Sequence[Tuple[str, str]] = (),
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    costs: Optional[Tuple[Mapping[str, Dict[str, Any]], str]] = None,
) -> Dict[str, Any]:
    """Gather everything the result file says, ready for JSON.

    Args:
        title: of the file, usually the corpus.
        systems: one of them called ``noisy``.
        comparisons: pairs of names whose paired difference is shown, first minus second.
        notes: remarks on how to read the table, such as the validation split.
        commands: commands that lead to these results.
        costs: of :func:`read_costs`, also of networks that were not scored.

    Raises:
        UserError: systems that cannot be compared.
    """
    ordered = order_systems(systems)
    by_name = {system.name: system for system in ordered}
    rows = {system.name: _row(system) for system in ordered}
    if costs is not None:
        notes = [costs[1], *_COST_NOTES, *notes]
        for name, cost in costs[0].items():
            row = rows.setdefault(name, {"name": name, "metrics": {}, "complexity": None})
            row["complexity"] = {**(row["complexity"] or {}), **cost}
    return {
        "title": title,
        "environment": scoring_record(),
        "commands": list(commands),
        "notes": list(notes),
        "systems": list(rows.values()),
        "differences": [compare(by_name[a], by_name[b]) for a, b in dict.fromkeys(comparisons)],
    }


def _row(system: System) -> Dict[str, Any]:
    """A system for JSON: how it was scored, its scores and what it costs."""
    seeds = {"seeds": len(system.runs)} if len(system.runs) > 1 else {}
    row = {"name": system.name, **system.runs[0].summary, "metrics": system.metrics, **seeds}
    return {**row, "complexity": system.complexity}


def mean_and_interval(name: str, score: Optional[Mapping[str, Any]], signed: bool = False) -> Optional[Tuple[str, str]]:
    """A score and its interval as tables show them; None where it is undefined."""
    if not score or score["mean"] is None:
        return None
    mean, low, high = (metric_named(name).text(score[key], signed) for key in ("mean", "low", "high"))
    mark = f" ({score['n_nan']} undefined)" if score["n_nan"] else ""
    return mean, f"[{low}, {high}]{mark}"


def cell_text(name: str, score: Optional[Mapping[str, Any]], signed: bool = False) -> str:
    """A score with its interval in one cell."""
    return " ".join(mean_and_interval(name, score, signed) or [MISSING])


def score_cells(metrics: Sequence[str], scores: Optional[Mapping[str, Any]], signed: bool = False) -> List[str]:
    """A row's cells of some metrics."""
    return [cell_text(metric, (scores or {}).get(metric), signed) for metric in metrics]


def labels_of(metrics: Sequence[str]) -> List[str]:
    """Headings of the columns of scores."""
    return [metric_named(metric).label for metric in metrics]


def difference_lines(differences: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> List[str]:
    """Lines of a table of what :func:`~i2srf_kd.results.comparison.compare` returned."""
    rows = [[one["name"], *score_cells(metrics, one["metrics"], signed=True)] for one in differences]
    return table_lines(["difference", *labels_of(metrics)], rows)


def environment_lines(record: Dict[str, Any]) -> List[str]:
    """What :func:`~i2srf_kd.system.provenance.scoring_record` gathered, as a Markdown list."""
    commit = record["git_hash"] or "no git repository"
    state = " (with uncommitted changes)" if record["git_dirty"] else ""
    lines = [
        f"- date: `{record['date']}`",
        f"- python version: `{record['python']}`",
        f"- espnet version: `{record['espnet']}`",
        f"- pytorch version: `{record['torch']}`",
        f"- pesq version: `{record['pesq']}`, pystoi version: `{record['pystoi']}`",
        f"- platform: `{record['platform']}`",
        f"- Git hash: `{commit}`{state}",
    ]
    return lines + ([f"  - Commit date: `{record['git_commit_date']}`"] if record["git_commit_date"] else [])


def _asr_lines(summary: Dict[str, Any]) -> List[str]:
    """How WER was measured, or why it was not although it was asked for."""
    if summary.get("asr_model"):
        return [
            f"WER: `{summary['asr_model']}`, greedy; its reference is what the model hears in the clean speech. "
            f"Utterances in which it hears nothing are skipped ({summary['metrics']['wer']['n_nan']}). Challenge "
            "score: (STOI + 1 - WER) / 2, each clipped to [0, 1]."
        ]
    if summary.get("asr_missing"):
        return [f"WER and the challenge score are not in the table: {summary['asr_missing']}."]
    return []


def _score_lines(results: Dict[str, Any]) -> List[str]:
    systems = results["systems"]
    metrics = in_order(name for system in systems for name in system["metrics"])
    first = systems[0]
    seeds = max(system.get("seeds", 1) for system in systems)
    costs = _cost_columns(systems)
    rows = [
        [system["name"] if seeds == 1 else f"{system['name']} ({system.get('seeds', 1)})"]
        + score_cells(metrics, system["metrics"])
        + [column.text(system["complexity"] or {}) for column in costs]
        for system in systems
    ]
    header = ["system" if seeds == 1 else "system (seeds)", *labels_of(metrics), *(column.title for column in costs)]
    lines = [
        "## Scores",
        "",
        f"{first['utterances']} utterances, {first['seconds'] / 60:.1f} min. Mean [95 % interval] by percentile "
        f"bootstrap over utterances ({RESAMPLES} resamples).",
        *(_SEEDS_NOTE if seeds > 1 else []),
        *_metric_notes(metrics, first.get("fs")),
        *(["GMAC/s: multiply-accumulates per second of audio."] if costs else []),
        *_asr_lines(first),
        "",
        *table_lines(header, rows),
    ]
    if results["differences"]:
        lines += [
            "",
            "### Paired differences",
            "",
            "Mean difference per utterance [95 % interval], utterances"
            + (" and seeds resampled as pairs." if seeds > 1 else " resampled as pairs."),
            "",
            *difference_lines(results["differences"], metrics),
        ]
    return lines


def _cost_columns(systems: Sequence[Mapping[str, Any]]) -> List[Column]:
    """Those of the complexity, and of what was measured of any system."""
    keys = {key for system in systems for key in system["complexity"] or {}}
    threads = sorted(int(key.removeprefix("rtf_")) for key in keys if key.startswith("rtf_"))
    measured = [Column(f"rtf_{n}", f"real-time factor, {n} thread{'s' * (n > 1)}", "{:.4f}") for n in threads]
    return [*_COMPLEXITY, *measured, *([Column("peak_mb", "peak memory [MB]", "{:.0f}")] if threads else [])]


def _metric_notes(metrics: Sequence[str], fs: Optional[int]) -> List[str]:
    """How the scores in the table are made, where that is not plain; tables of older versions tell no rate."""
    notes = []
    if "pesq_nb" in metrics:
        notes.append(f"NB-PESQ: audio at {fs} Hz has no WB-PESQ, and no CSIG, CBAK and COVL, which are made of it")
    if "csig" in metrics:
        notes.append("CSIG, CBAK and COVL are computed at int16 scale with WB-PESQ")
    copied = [metric_named(name) for name in metrics if fs and (metric_named(name).rate or fs) < fs]
    if copied:
        names = ", ".join(f"{metric.name} ({metric.rate} Hz)" for metric in copied)
        notes.append(f"copies of the audio ({fs} Hz) at a lower rate are scored by {names}")
    if "si_sdr" in metrics:
        notes.append("for SI-SDR the mean is not removed")
    text = "; ".join(notes)
    return [f"{text[0].upper()}{text[1:]}."] if notes else []


def find_media(folder: PathLike) -> Tuple[List[Path], List[Path]]:
    """Pictures and audio files below a folder, sorted.

    Raises:
        UserError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--pictures {folder}: no such folder")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    pictures, audio = ([file for file in files if file.suffix.lower() in kinds] for kinds in (_PICTURES, _AUDIO))
    return pictures, audio


def _link(file: Path, base: Path) -> str:
    return quote(Path(os.path.relpath(file.resolve(), base.resolve())).as_posix())


def _media_lines(pictures: Sequence[Path], audio: Sequence[Path], base: Path) -> List[str]:
    lines: List[str] = []
    if pictures:
        lines += ["", "## Pictures"]
        for picture in pictures:
            lines += ["", f"![{picture.stem}]({_link(picture, base)})"]
    if audio:
        lines += ["", "## Audio", ""] + [f"- [{file.name}]({_link(file, base)})" for file in audio]
    return lines


def to_markdown(
    results: Dict[str, Any], base: PathLike = ".", pictures: Sequence[Path] = (), audio: Sequence[Path] = ()
) -> str:
    """Render what :func:`build` gathered.

    Args:
        results: of :func:`build`.
        base: folder the file will lie in; links are relative to it.
        pictures: shown below the tables.
        audio: linked below the tables.
    """
    lines = [
        "<!-- Generated by python -m i2srf_kd.bin.results -->",
        f"# {results['title']}",
        "",
        "## Environment",
        "",
        *environment_lines(results["environment"]),
        "",
        *_score_lines(results),
    ]
    if results["notes"]:
        lines += ["", "## Notes", ""] + [f"- {note}" for note in results["notes"]]
    if results["commands"]:
        lines += ["", "## Commands", "", "```sh", *results["commands"], "```"]
    return "\n".join(lines + _media_lines(pictures, audio, Path(base))) + "\n"


def json_beside(out: Path) -> Path:
    """The JSON file beside a table: its name in small letters.

    Raises:
        UserError: both have the same name.
    """
    file = out.with_name(out.stem.lower() + ".json")
    if file == out:
        raise UserError(f"--out {out}: give the name of a Markdown file; the JSON file is written beside it")
    return file


def write(out: Path, text: str, content: Mapping[str, Any]) -> None:
    """Write a table as Markdown, and its content as JSON beside it."""
    write_text(out, text)
    write_text(json_beside(out), json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
