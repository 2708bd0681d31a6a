"""The report as one HTML file that needs nothing but itself: no network, no other file."""

import math
import re
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from i2srf_kd.metrics.table import MAIN, metric_named
from i2srf_kd.results.drawing import to_svg
from i2srf_kd.results.figures import (
    Picture,
    calibration,
    forest,
    gradient_share,
    learning_curves,
    loss_terms,
)
from i2srf_kd.results.listening import MAX_SECONDS, make_examples, systems_to_show
from i2srf_kd.results.media import PLOT_LEFT, PLOT_RIGHT
from i2srf_kd.results.model import Run, System
from i2srf_kd.results.study import Study
from i2srf_kd.results.table import cell_text, labels_of, mean_and_interval
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.markdown import MISSING
from i2srf_kd.system.provenance import scoring_record


class Cell(NamedTuple):
    """A cell of a table: what it says, what it is sorted by, and what is said in small letters."""

    text: str
    key: Any = ""
    detail: str = ""
    strong: bool = False


class Table(NamedTuple):
    """A sortable table; the first column heads its row."""

    name: str
    caption: str
    header: List[str]
    rows: List[List[Cell]]
    about: str = ""


def render(study: Study, num_examples: int, show: Sequence[str], audio_format: str) -> str:
    """The page.

    Args:
        study: what it is about.
        num_examples: number of utterances to listen to.
        show: systems to listen to; where empty: teacher, baseline and the best distilled one.
        audio_format: see :data:`~i2srf_kd.results.media.AUDIO_FORMATS`.

    Raises:
        UserError: a system that shall be heard has no audio, or jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise UserError("a report needs jinja2: pip install 'i2srf_kd[reports]'") from None
    loader = jinja2.PackageLoader("i2srf_kd.results", "templates")
    pages = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    pages.filters["svg"] = lambda picture: Markup(
        to_svg(picture.figure, f"{picture.title}. {picture.text}", slug(picture.name))
    )
    pages.filters["slug"] = slug
    shown = systems_to_show(study, show)
    page = pages.get_template("report.html.j2").render(
        study=study,
        summary=summary(study),
        facts=facts(study),
        scores=score_table(study),
        differences=difference_tables(study),
        forests=_present(forest(study, metric) for metric in MAIN),
        curves=_present([learning_curves(study)]),
        gradients=_present([gradient_share(study)]),
        terms=loss_terms(study),
        calibrations=calibration(study),
        examples=make_examples(study, shown, num_examples, audio_format),
        max_seconds=MAX_SECONDS,
        lossy=audio_format != "flac",
        utterances=utterance_tables(study),
        trainings=training_table(study),
        commands=commands(study),
        environment=environment_rows(study),
        plot=(PLOT_LEFT, PLOT_RIGHT),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return _with_size(page)


def _present(pictures: Iterable[Optional[Picture]]) -> List[Picture]:
    return [picture for picture in pictures if picture is not None]


def slug(text: str) -> str:
    """A name that can be part of an id; different names give different ones."""
    return re.sub(r"[^A-Za-z0-9]", lambda sign: f"-{ord(sign[0]):x}-", text)


def _with_size(page: str) -> str:
    """State the file's size, which its own text is part of."""
    place = "@@SIZE@@"
    size = len(page.encode("utf-8")) / 1e6
    return page.replace(place, f"{size:.1f} MB" if size >= 0.95 else f"{1000 * size:.0f} kB")


# Text and tables ------------------------------------------------------------------------------------------------------


def _number(metric: str, score: Optional[Mapping[str, Any]], signed: bool = False) -> Cell:
    shown = mean_and_interval(metric, score, signed)
    if score is None or shown is None:
        return Cell(MISSING)
    clear = signed and (score["low"] > 0 or score["high"] < 0)
    return Cell(shown[0], score["mean"], shown[1], clear)


def summary(study: Study) -> str:
    """The comparison that a reader looks for first, in one sentence."""
    scores = {s.name: (s.differences.get(study.baseline or "") or {}).get(study.pesq) for s in study.cells}
    found = [(name, score) for name, score in scores.items() if score and score["mean"] is not None]
    if not found:
        return ""
    name, score = max(found, key=lambda entry: entry[1]["mean"])
    sure = ""
    if score["low"] <= 0 <= score["high"]:
        sure = " The interval contains zero: this is no evidence of a difference."
    if len(found) > 1:
        sure += " Chosen as the largest on this set, so it is biased upwards;"
        sure += " the interval does not account for the choice."
    which = f"the largest of {len(found)}, " if len(found) > 1 else ""
    difference = f"{metric_named(study.pesq).name} {cell_text(study.pesq, score, signed=True)}"
    return f"{name} against {study.baseline}, {which}{difference}.{sure}"


def facts(study: Study) -> List[str]:
    """What was measured, in a few words each."""
    scored = next((run for system in study.systems for run in system.scored), None)
    lines = [f"{len(study.cells)} student" + ("s" if len(study.cells) != 1 else "")]
    seeds = sorted({len(system.scored) for system in study.cells if system.scored})
    if seeds:
        numbers = "–".join(str(number) for number in dict.fromkeys((seeds[0], seeds[-1])))
        lines.append(f"{numbers} seed" + ("s" if seeds[-1] > 1 else ""))
    if scored is not None:
        seconds = math.fsum(row["seconds"] for row in scored.scores.values())
        kind = "validation set" if study.is_validation else "test set"
        lines.append(f"{kind} “{study.test_set}”: {len(scored.scores)} utterances, {seconds / 60:.1f} min")
    return lines


def score_table(study: Study) -> Table:
    """Means with intervals, size and cost of every system."""
    header = ["system", *labels_of(study.metrics)]
    gaps = any(system.gap_closed for system in study.systems)
    costs = any(system.relative_cost is not None for system in study.systems)
    header += ([f"gap closed, {metric_named(study.pesq).name}"] if gaps else []) + (["time per step"] if costs else [])
    header += ["parameters", "GMAC/s"]
    rows = []
    for system in study.systems:
        row = [_name(system), *(_number(metric, system.metrics.get(metric)) for metric in study.metrics)]
        row += [_gap(system, study.pesq)] if gaps else []
        if costs:
            cost = system.relative_cost
            row.append(Cell(MISSING) if cost is None else Cell(f"{cost:.2f}×", cost))
        rows.append([*row, *_complexity(system)])
    interval = f" with {study.interval}" if study.interval else ""
    return Table("scores", f"Mean over utterances and seeds{interval}.", header, rows)


def _name(system: System) -> Cell:
    total, done = len(system.runs), len(system.scored)
    detail = f"{done} seeds" if done > 1 else ""
    return Cell(system.name, system.name, detail if done == total else f"{done} of {total} seeds finished")


def _gap(system: System, metric: str) -> Cell:
    gap = system.gap_closed.get(metric) or {}
    if gap.get("share") is None:
        return Cell(MISSING)
    return Cell(f"{100 * gap['share']:.0f} %", gap["share"], f"[{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]")


def _complexity(system: System) -> List[Cell]:
    values = system.complexity or {}
    parameters, macs = values.get("parameters"), values.get("gmacs_per_second_with_recurrent")
    return [
        Cell(MISSING) if parameters is None else Cell(f"{parameters:,}", parameters),
        Cell(MISSING) if macs is None else Cell(f"{macs:.2f}", macs),
    ]


def difference_tables(study: Study) -> List[Table]:
    """Paired differences to every system that others are compared with."""
    others = dict.fromkeys(name for system in study.cells for name in system.differences)
    tables = []
    for other in others:
        rows = [
            [Cell(s.name, s.name), *(_number(m, s.differences[other].get(m), signed=True) for m in study.metrics)]
            for s in study.cells
            if s.name != other and s.differences.get(other)
        ]
        header = ["system", *(f"Δ {label}" for label in labels_of(study.metrics))]
        caption = f"Paired differences to {other}; bold where the interval leaves out zero."
        tables.append(Table(f"differences-{slug(other)}", caption, header, rows, other))
    return tables


def utterance_tables(study: Study) -> List[Table]:
    """Scores of every utterance, mean over the seeds, one table per metric."""
    systems = [system for system in study.systems if system.scored]
    if not systems:
        return []
    utterances = sorted(set().union(*(run.scores for system in systems for run in system.scored)))
    tables = []
    for metric in [name for name in MAIN if name in study.metrics]:
        rows = []
        for utt in utterances:
            rows.append([Cell(utt, utt), *(_utterance_cell(system, utt, metric) for system in systems)])
        header = ["utterance", *(system.name for system in systems)]
        tables.append(Table(f"utterances-{metric}", f"{metric_named(metric).label} of every utterance", header, rows))
    return tables


def _utterance_cell(system: System, utt: str, metric: str) -> Cell:
    rows = [run.scores[utt] for run in system.scored if utt in run.scores]
    values = [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
    if not values:
        return Cell(MISSING)
    mean = math.fsum(values) / len(values)
    return Cell(metric_named(metric).text(mean), mean)


def training_table(study: Study) -> Table:
    """How long each training took, where, and from which commit."""
    header = ["training", "seed", "epochs", "steps", "hours", "s per step", "processor", "torch", "commit"]
    rows = [_training_row(system, run) for system in study.systems for run in system.trained]
    return Table("trainings", "Trainings; hours are those of training and validation epochs.", header, rows)


def _training_row(system: System, run: Run) -> List[Cell]:
    epochs = len({line["epoch"] for line in run.metrics if line["phase"] == "train"})
    steps, seconds, hours = (run.times[name] for name in ("steps", "seconds_per_step", "hours"))
    start = run.starts[-1] if run.starts else {}
    device = ", ".join(dict.fromkeys(start.get("gpus") or [])) or start.get("cpu") or MISSING
    commit = start.get("git_hash") or MISSING
    short = commit[:10] + (" (changed)" if commit.endswith("-dirty") else "")
    return [
        Cell(system.name, system.name),
        Cell(MISSING if run.seed is None else str(run.seed), run.seed or 0),
        Cell(str(epochs), epochs),
        Cell(f"{steps:,}", steps),
        Cell(f"{hours:.2f}", hours),
        Cell(MISSING) if seconds is None else Cell(f"{seconds:.2f}", seconds),
        Cell(device, device),
        Cell(str((start.get("versions") or {}).get("torch", MISSING))),
        Cell(short, commit),
    ]


def commands(study: Study) -> List[Dict[str, str]]:
    """What was run, by title."""
    entries = [{"title": "All of it", "text": study.command}] if study.command else []
    for system in study.systems:
        for run in system.trained:
            if run.starts:
                seed = "" if run.seed is None else f", seed {run.seed}"
                folder = run.starts[-1].get("working_directory", "")
                text = f"cd {folder}\n{run.starts[-1].get('command', '')}"
                entries.append({"title": f"{system.name}{seed}", "text": text})
    return entries


def environment_rows(study: Study) -> List[List[str]]:
    """Where the scores were collected (or, without a record of it, where this page was made)."""
    record = study.environment or scoring_record()
    names = {"git_hash": "commit", "git_commit_date": "date of the commit", "git_dirty": "uncommitted changes"}
    rows = []
    for key, value in record.items():
        if value is None or isinstance(value, (dict, list)):
            continue
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        rows.append([names.get(key, key), text])
    return rows
