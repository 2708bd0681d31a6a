"""The result file of a recipe: one row per system, with intervals, complexity, paired differences and environment."""

import json
import math
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from i2srf_kd.metrics.bootstrap import CrossedBootstrap, paired_difference
from i2srf_kd.results.scores import LEVEL, RESAMPLES, SEED, read_csv
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

MIXTURE = "noisy"
"""Name of the system that is the unprocessed mixture; its row opens every table."""


class Column(NamedTuple):
    """How a metric is shown."""

    label: str
    decimals: int
    scale: float = 1.0
    higher_is_better: bool = True


COLUMNS: Dict[str, Column] = {
    "pesq_wb": Column("WB-PESQ", 3),
    "csig": Column("CSIG", 3),
    "cbak": Column("CBAK", 3),
    "covl": Column("COVL", 3),
    "ssnr": Column("SSNR [dB]", 2),
    "stoi": Column("STOI [%]", 2, 100.0),
    "estoi": Column("ESTOI [%]", 2, 100.0),
    "si_sdr": Column("SI-SDR [dB]", 2),
    "wer": Column("WER [%]", 2, 100.0, higher_is_better=False),
    "challenge": Column("challenge score", 3),
    "dnsmos_sig": Column("DNSMOS SIG", 3),
    "dnsmos_bak": Column("DNSMOS BAK", 3),
    "dnsmos_ovrl": Column("DNSMOS OVRL", 3),
}
_SCORED_WITH = ("si_sdr_zero_mean", "ref_channel", "asr_model")
_SEEDS_NOTE = [
    "Systems of several seeds: mean over seeds and utterances, both drawn with replacement, independently of each "
    "other, deviations of the seeds widened for their small number (Student's t)."
]
_PICTURES = (".png", ".svg")
_AUDIO = (".wav", ".flac", ".mp3", ".ogg")


class System(NamedTuple):
    """One scored system, trained with one seed or with several."""

    name: str
    summary: Dict[str, Any]
    scores: List[Dict[str, Any]]
    """Of the first seed, one line per utterance."""
    complexity: Optional[Dict[str, Any]]
    further_seeds: Tuple[List[Dict[str, Any]], ...] = ()
    """Scores of the other seeds on the same utterances, in any order of the lines."""

    @property
    def seeds(self) -> int:
        """Number of trainings."""
        return 1 + len(self.further_seeds)

    def values(self, metric: str, seeds: int) -> NDArray[np.float64]:
        """``(seeds, utterances)``, utterances as in ``scores``; a system of one seed stands for each of them."""
        tables = [{row["utt"]: row[metric] for row in table} for table in (self.scores, *self.further_seeds)]
        values = np.array([[table[row["utt"]] for row in self.scores] for table in tables])
        return np.repeat(values, seeds, axis=0) if len(values) == 1 else values


def _read_json(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score the system first (python -m i2srf_kd.bin.score)") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def read_system(name: str, scored: PathLike, experiment: Optional[PathLike] = None) -> System:
    """Read a folder that ``bin/score.py`` wrote and, where there is one, ``complexity.json`` of the experiment.

    Raises:
        UserError: a file is absent or malformed.
    """
    scored = Path(scored)
    summary = _read_json(scored / "summary.json")
    if "metrics" not in summary:
        raise UserError(f"{scored / 'summary.json'}: holds no metrics; score the system again")
    complexity = None
    if experiment is not None:
        if not Path(experiment).is_dir():
            raise UserError(f"system {name}: {experiment} is no folder; give NAME=SCORED_DIR:EXPERIMENT_DIR")
        file = Path(experiment) / "complexity.json"
        complexity = _read_json(file) if file.is_file() else None
    return System(name, summary, read_csv(scored / "scores.csv"), complexity)


def read_seeds(name: str, scored: Sequence[PathLike], experiment: Optional[PathLike] = None) -> System:
    """Read a system that was trained with several seeds, each scored into a folder of its own.

    Means and intervals are then over seeds and utterances (:class:`~i2srf_kd.metrics.bootstrap.CrossedBootstrap`).

    Raises:
        UserError: a file is absent or malformed, or the seeds were not scored alike.
    """
    systems = [read_system(name, folder, experiment) for folder in scored]
    first = systems[0]
    for folder, other in zip(scored[1:], systems[1:], strict=True):
        if {row["utt"] for row in other.scores} != {row["utt"] for row in first.scores}:
            raise UserError(f"system {name}: {folder} was scored on other utterances than {scored[0]}")
        if any(other.summary.get(key) != first.summary.get(key) for key in _SCORED_WITH) or (
            other.summary["metrics"].keys() != first.summary["metrics"].keys()
        ):
            raise UserError(f"system {name}: {folder} was scored otherwise than {scored[0]}: score it again")
    if len(systems) == 1:
        return first
    system = first._replace(further_seeds=tuple(other.scores for other in systems[1:]))
    metrics = {metric: _crossed(system.values(metric, len(systems))) for metric in first.summary["metrics"]}
    return system._replace(summary={**first.summary, "metrics": metrics, "seeds": len(systems)})


def _crossed(values: NDArray[np.float64]) -> Dict[str, Any]:
    """Mean and interval of scores ``(seeds, utterances)``; what is undefined becomes null."""
    seeds, utterances = values.shape
    bootstrap = CrossedBootstrap(seeds, utterances, LEVEL, RESAMPLES, SEED)
    return {k: None if math.isnan(v) else v for k, v in bootstrap.mean(values)._asdict().items()}


def order_systems(systems: Sequence[System]) -> List[System]:
    """Put the mixture first and check that all were scored alike on the same utterances.

    Raises:
        UserError: no mixture, a name twice, or systems that cannot be compared.
    """
    names = [system.name for system in systems]
    if MIXTURE not in names:
        raise UserError(
            f"no system called {MIXTURE}: score the mixtures too (ENHANCED_SCP = REF_DATA_DIR/wav.scp) and give "
            f"--system {MIXTURE}=SCORED_DIR; scores mean little without that row"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"system {repeated[0]} is given twice")
    ordered = sorted(systems, key=lambda system: system.name != MIXTURE)
    utterances = {row["utt"] for row in ordered[0].scores}
    for system in ordered[1:]:
        odd = utterances ^ {row["utt"] for row in system.scores}
        if odd:
            raise UserError(
                f"system {system.name} was scored on other utterances than {MIXTURE} ({len(odd)} differ, such as "
                f"{min(odd)}): a table compares systems on one set"
            )
        for key in _SCORED_WITH:
            if system.summary.get(key) != ordered[0].summary.get(key):
                raise UserError(f"system {system.name} was scored with another {key} than {MIXTURE}: score it again")
    return ordered


def parse_comparison(text: str, names: Sequence[str]) -> Tuple[str, str]:
    """Split ``A-B`` into two known systems, whose names may hold hyphens themselves.

    Raises:
        UserError: not two known names, or more than one way to read it.
    """
    splits = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "-"]
    known = [split for split in splits if split[0] in names and split[1] in names]
    if len(known) != 1:
        reason = "can be read in several ways" if known else "does not name two systems"
        raise UserError(f"--compare {text}: {reason}; expected A-B of {', '.join(names)}")
    return known[0]


def compare(first: System, second: System) -> Dict[str, Any]:
    """Paired differences of two systems in every metric that both have.

    Seeds are paired as well, in the order they were given; a system of one seed is compared with each of the other's.

    Raises:
        UserError: different numbers of seeds.
    """
    seeds = max(first.seeds, second.seeds)
    if {first.seeds, second.seeds} - {1, seeds}:
        raise UserError(
            f"{first.name} has {first.seeds} seeds, {second.name} {second.seeds}: a paired difference needs the same"
        )
    order = {row["utt"]: place for place, row in enumerate(second.scores)}
    places = [order[row["utt"]] for row in first.scores]
    metrics = {}
    for metric in _metrics([first, second]):
        if metric in first.summary["metrics"] and metric in second.summary["metrics"]:
            a, b = first.values(metric, seeds), second.values(metric, seeds)[:, places]
            metrics[metric] = _difference(a, b)
    return {"name": f"{first.name} - {second.name}", "metrics": metrics}


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> Dict[str, Any]:
    if len(a) > 1:
        return _crossed(a - b)
    values = paired_difference(a[0], b[0], LEVEL, RESAMPLES, SEED)._asdict()
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _metrics(systems: Sequence[System]) -> List[str]:
    """Metrics of any of the systems in the order of the columns."""
    present = {metric for system in systems for metric in system.summary["metrics"]}
    return [metric for metric in COLUMNS if metric in present] + sorted(present - COLUMNS.keys())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(repository: Path, *arguments: str) -> Optional[str]:
    command = ["git", "-C", str(repository), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment(repository: Optional[PathLike] = None) -> Dict[str, Any]:
    """Versions, platform and commit of the code; the repository is the one this file lies in unless given."""
    folder = Path(repository or Path(__file__).parent)
    commit = _git(folder, "rev-parse", "HEAD")
    return {
        "date": datetime.now(timezone.utc).strftime("%a %b %d %H:%M:%S UTC %Y"),
        "python": sys.version.replace("\n", " "),
        "espnet": _version("espnet"),
        "torch": _version("torch"),
        "pesq": _version("pesq"),
        "pystoi": _version("pystoi"),
        "platform": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "git_hash": commit,
        "git_commit_date": _git(folder, "log", "-1", "--format=%cI") if commit else None,
        "git_dirty": bool(_git(folder, "status", "--porcelain")) if commit else None,
    }


def build(
    title: str,
    systems: Sequence[System],
    comparisons: Sequence[Tuple[str, str]] = (),
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Dict[str, Any]:
    """Gather everything the result file says, ready for JSON.

    Args:
        title: of the file, usually the corpus.
        systems: one of them called ``noisy``.
        comparisons: pairs of names whose paired difference is shown, first minus second.
        notes: remarks on how to read the table, such as the validation split.
        commands: commands that lead to these results.

    Raises:
        UserError: systems that cannot be compared or are not known.
    """
    ordered = order_systems(systems)
    by_name = {system.name: system for system in ordered}
    for name in (name for pair in comparisons for name in pair):
        if name not in by_name:
            raise UserError(f"{name} is not among the systems {', '.join(by_name)}")
    return {
        "title": title,
        "environment": environment(),
        "commands": list(commands),
        "notes": list(notes),
        "systems": [{"name": system.name, **system.summary, "complexity": system.complexity} for system in ordered],
        "differences": [compare(by_name[a], by_name[b]) for a, b in dict.fromkeys(comparisons)],
    }


def cell_text(metric: str, value: Optional[Dict[str, Any]], signed: bool = False) -> str:
    """A score with its interval, as tables show it."""
    if value is None or value["mean"] is None:
        return "–"
    column = COLUMNS.get(metric, Column(metric, 3))
    form = f"{{:{'+' if signed else ''}.{column.decimals}f}}"
    mean, low, high = (form.format(column.scale * value[key]) for key in ("mean", "low", "high"))
    mark = f" ({value['n_nan']} undefined)" if value["n_nan"] else ""
    return f"{mean} [{low}, {high}]{mark}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of a Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines]


def _complexity_cells(complexity: Optional[Dict[str, Any]]) -> List[str]:
    complexity = complexity or {}
    parameters = complexity.get("parameters")
    macs = (complexity.get("gmacs_per_second"), complexity.get("gmacs_per_second_with_recurrent"))
    cells = ["–" if parameters is None else f"{parameters:,}"]
    return cells + ["–" if value is None else f"{value:.2f}" for value in macs]


def environment_lines(record: Dict[str, Any]) -> List[str]:
    """What :func:`environment` gathered, as a Markdown list."""
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
    metrics = [m for m in COLUMNS if any(m in system["metrics"] for system in systems)]
    metrics += sorted({m for system in systems for m in system["metrics"]} - set(metrics))
    labels = [COLUMNS[m].label if m in COLUMNS else m for m in metrics]
    first = systems[0]
    seeds = max(system.get("seeds", 1) for system in systems)
    rows = [
        [system["name"] if seeds == 1 else f"{system['name']} ({system.get('seeds', 1)})"]
        + [cell_text(metric, system["metrics"].get(metric)) for metric in metrics]
        + _complexity_cells(system["complexity"])
        for system in systems
    ]
    complexity = ["parameters", "GMAC/s without recurrent layers", "GMAC/s with recurrent layers"]
    mean_removed = "removed" if first.get("si_sdr_zero_mean") else "not removed"
    lines = [
        "## Scores",
        "",
        f"{first['utterances']} utterances, {first['seconds'] / 60:.1f} min. Mean [95 % interval] by percentile "
        f"bootstrap over utterances ({RESAMPLES} resamples).",
        *(_SEEDS_NOTE if seeds > 1 else []),
        "CSIG, CBAK and COVL are computed at int16 scale with WB-PESQ; for SI-SDR the mean is "
        f"{mean_removed}. GMAC/s: multiply-accumulates per second of audio.",
        *_asr_lines(first),
        "",
        *table_lines(["system" if seeds == 1 else "system (seeds)", *labels, *complexity], rows),
    ]
    if results["differences"]:
        rows = [
            [difference["name"]]
            + [cell_text(metric, difference["metrics"].get(metric), signed=True) for metric in metrics]
            for difference in results["differences"]
        ]
        lines += [
            "",
            "### Paired differences",
            "",
            "Mean difference per utterance [95 % interval], utterances"
            + (" and seeds resampled as pairs." if seeds > 1 else " resampled as pairs."),
            "",
            *table_lines(["difference", *labels], rows),
        ]
    return lines


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
