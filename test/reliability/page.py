"""The fault table as Markdown, between two marks of a page."""

import re
from pathlib import Path
from typing import Any, Dict, List, Sequence

from reliability.faults import KINDS
from reliability.trial import Outcome

from i2srf_kd.system.files import write_text

# Where the trials ran, and Python lies, is of no interest: paths begin with the last folder but one.
_FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+(?=[\w.+-]+/[\w.+-]+)")
BEGIN, END = "<!-- begin fault table -->", "<!-- end fault table -->"


def table(outcomes: Sequence[Outcome], record: Dict[str, Any]) -> str:
    """Summary and one row per fault.

    Args:
        outcomes: in the order in which they were tried.
        record: ``commands``, ``commit``, ``date``, ``machine``.
    """
    good = sum(outcome.good for outcome in outcomes)
    same = sum(outcome.same for outcome in outcomes)
    lines = [
        f"{len(outcomes)} faults: {same} ended with the result of the undisturbed run, {good} without any complaint.",
        "",
        f"At commit {record['commit']}, {record['date']}, {record['machine']}:",
        "",
        "```sh",
        *(re.sub(r" --work \S+", "", command) for command in record["commands"]),
        "```",
        "",
        "| stage | fault | moment and end of the disturbed run | done a second time | same result | complaints |",
        "|---|---|---|---|---|---|",
    ]
    names = list(KINDS)
    for outcome in sorted(outcomes, key=lambda o: (o.stage, names.index(o.kind))):
        cells = [
            str(outcome.stage), KINDS[outcome.kind].title, outcome.remark, outcome.lost,
            "yes" if outcome.same else "**no**", _cell(outcome.problems),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(problems: List[str]) -> str:
    text = " ".join("; ".join(problems).split())
    text = _FOLDERS.sub("", text)
    return (text[:200] + "..." if len(text) > 200 else text).replace("|", "\\|") or "none"


def write(page: Path, text: str) -> None:
    """Replace what is between the marks."""
    content = page.read_text(encoding="utf-8")
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_text(page, f"{before}{BEGIN}\n{text}\n{END}{after}")
