"""One table of cost and quality: networks of the same training, and peers with weights of their own.

Costs come from ``bench models --json`` and from what :mod:`i2srf_kd.bench.peers` recorded, scores from
``python -m i2srf_kd.bin.score``.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from i2srf_kd.bench.report import Column
from i2srf_kd.results import results
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

SCORES = ("pesq_wb", "stoi", "si_sdr")
_COST = (
    Column("parameters", "parameters", "{:,}"),
    Column("gmacs_per_second_with_recurrent", "GMAC/s", "{:.2f}"),
    Column("peak_mb", "peak memory [MB]", "{:.0f}"),
)
HOW_TO_READ = [
    "GMAC/s: multiply-accumulates per second of audio, recurrent layers and attention included; Fourier transforms, "
    "norms, activations and element-wise products are not.",
    "Real-time factor: time over length of the audio, from waveform to waveform; one thread in CPU time (median of "
    "the turns), more in elapsed time (shortest turn), which other programs on the machine lengthen. Peak memory: "
    "above what the process held before the run, so without weights and libraries.",
]
PEERS_NOTE = (
    "Peers come with weights of their own, trained on other data, and run in one thread, at their own rate; resampling "
    "is not counted. They are timed over the whole set, in a process of their own, not in turns with the networks."
)
Cost = Dict[str, Any]


def read_json(path: PathLike) -> Dict[str, Any]:
    """A JSON object from a file; UserError where there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def read_costs(path: PathLike) -> Tuple[Dict[str, Cost], Dict[str, Any]]:
    """Rows by network, and conditions, of ``bench models --json``.

    Raises:
        UserError: the file is absent or of another part.
    """
    content = read_json(path)
    if content.get("part") != "models":
        raise UserError(f"{path}: not written by python -m i2srf_kd.bin.bench models --json")
    return {row["name"]: row for row in content["rows"]}, content["conditions"]


def cost_of_peer(record: Mapping[str, Any]) -> Cost:
    """A peer's record as a row of costs."""
    return {"rtf_1": record["real_time_factor"], "peak_mb": record["peak_mb"]}


def rows_of(content: Mapping[str, Any], costs: Mapping[str, Cost]) -> List[Dict[str, Any]]:
    """One row per system: the mixture, what was scored, then what has a cost alone.

    Args:
        content: of :func:`i2srf_kd.results.results.build`.
        costs: by system.
    """
    scored = [{"name": s["name"], "metrics": s["metrics"], **_of(costs, s["name"])} for s in content["systems"]]
    names = {row["name"] for row in scored}
    return scored + [{"metrics": {}, **costs[name], "name": name} for name in costs if name not in names]


def _of(costs: Mapping[str, Cost], name: str) -> Cost:
    return {key: value for key, value in costs.get(name, {}).items() if key != "name"}


def thread_counts(costs: Mapping[str, Cost]) -> List[int]:
    """Numbers of threads that anything was timed with."""
    prefix = "rtf_"
    return sorted({int(key[len(prefix) :]) for cost in costs.values() for key in cost if key.startswith(prefix)})


def main_table(rows: Sequence[Mapping[str, Any]], threads: Sequence[int]) -> List[str]:
    """Lines of the Markdown table; what was not measured is a dash."""
    parameters, macs, memory = _COST
    factors = [Column(f"rtf_{n}", f"real-time factor, {n} thread{'s' * (n > 1)}", "{:.4f}") for n in threads]
    columns = [parameters, macs, *factors, memory]
    header = ["system", *(column.title for column in columns), *(results.COLUMNS[m].label for m in SCORES)]
    lines = []
    for row in rows:
        cells = [_cell(row.get(column.key), column.form) for column in columns]
        lines.append([row["name"], *cells, *(results.cell_text(m, row["metrics"].get(m)) for m in SCORES)])
    return results.table_lines(header, lines)


def _cell(value: Optional[Any], form: str) -> str:
    return "–" if value is None else form.format(value)


def differences_table(differences: Sequence[Mapping[str, Any]]) -> List[str]:
    """Lines of a Markdown table of paired differences."""
    header = ["difference", *(results.COLUMNS[metric].label for metric in SCORES)]
    rows = [
        [difference["name"], *(results.cell_text(m, difference["metrics"].get(m), signed=True) for m in SCORES)]
        for difference in differences
    ]
    return results.table_lines(header, rows)


def peers_table(peers: Sequence[Mapping[str, Any]]) -> List[str]:
    """Lines of a Markdown table of what the peers are."""
    header = ["peer", "package", "what", "licence", "rate [Hz]", "delay taken out [samples]"]
    keys = ("peer", "package", "what", "licence", "fs", "delay")
    return results.table_lines(header, [[str(peer[key]) for key in keys] for peer in peers])


def to_markdown(content: Mapping[str, Any]) -> str:
    """Render what :func:`build` gathered."""
    rows, first = content["rows"], content["systems"][0]
    conditions = ", ".join(f"{key} {_short(value)}" for key, value in content["conditions"].items())
    lines = [
        "<!-- Generated by python -m i2srf_kd.bin.side_by_side -->",
        f"# {content['title']}",
        "",
        f"{first['utterances']} utterances, {first['seconds'] / 60:.1f} min. Scores: mean [95 % interval], percentile "
        "bootstrap over utterances.",
        *([f"Cost: {conditions}."] if conditions else []),
        "",
        *main_table(rows, thread_counts({row["name"]: row for row in rows})),
    ]
    if content["differences"]:
        lines += ["", "Paired differences per utterance:", "", *differences_table(content["differences"])]
    if content["peers"]:
        lines += ["", *peers_table(content["peers"])]
    notes = [*HOW_TO_READ, *([PEERS_NOTE] if content["peers"] else []), *content["notes"]]
    lines += ["", *(f"- {note}" for note in notes)]
    if content["commands"]:
        lines += ["", "```sh", *content["commands"], "```"]
    return "\n".join([*lines, "", *results.environment_lines(content["environment"])]) + "\n"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def build(
    title: str,
    systems: Sequence[results.System],
    costs: Mapping[str, Cost],
    conditions: Mapping[str, Any],
    peers: Sequence[Mapping[str, Any]] = (),
    comparisons: Sequence[Tuple[str, str]] = (),
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Dict[str, Any]:
    """Everything the table says, ready for JSON.

    Args:
        title: heading.
        systems: networks and peers that were scored; one of them is called ``noisy``.
        costs: by system, also of networks that were not scored.
        conditions: under which the costs were measured.
        peers: records of the peers among the systems.
        comparisons: pairs of names whose paired difference is shown.
        notes, commands: shown below the table.

    Raises:
        UserError: systems that cannot be compared.
    """
    content = results.build(title, systems, comparisons, notes, commands)
    all_costs = {**costs, **{str(peer["peer"]): cost_of_peer(peer) for peer in peers}}
    rows = rows_of(content, all_costs)
    return {**content, "rows": rows, "conditions": dict(conditions), "peers": list(peers)}
