"""Tables of scores, one line per utterance, and their summaries."""

import csv
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from i2srf_kd.metrics.bootstrap import CrossedBootstrap
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, atomic_path, write_text

LEVEL = 0.95
RESAMPLES = 10000
SEED = 0


def write_csv(path: PathLike, rows: Sequence[Dict[str, Any]], columns: Sequence[str]) -> None:
    """Write scores in full precision."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["utt", "seconds", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: PathLike) -> List[Dict[str, Any]]:
    """Read what :func:`write_csv` wrote.

    Raises:
        UserError: no such file, or not a table of scores.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; score the system first (python -m i2srf_kd.bin.score)")
    with open(path, newline="", encoding="utf-8-sig") as file:  # a table program may have marked it
        try:
            return [
                {name: value if name == "utt" else float(value) for name, value in row.items()}
                for row in csv.DictReader(file, strict=True)
            ]
        except (TypeError, ValueError, csv.Error) as error:
            raise UserError(f"{path}: not a complete table of scores ({error}); score again") from error


def finite(values: Mapping[str, Any]) -> Dict[str, Any]:
    """Values for JSON: those that are not finite become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def summarise(rows: Sequence[Dict[str, Any]], columns: Sequence[str]) -> Dict[str, Any]:
    """Mean, interval and counts per metric. An undefined mean is null."""
    bootstrap = CrossedBootstrap(1, len(rows), LEVEL, RESAMPLES, SEED)
    metrics = {name: finite(bootstrap.mean([[row[name] for row in rows]])._asdict()) for name in columns}
    return {
        "utterances": len(rows),
        "seconds": math.fsum(row["seconds"] for row in rows),
        "interval": {"level": LEVEL, "method": "percentile bootstrap over utterances", "resamples": RESAMPLES},
        "metrics": metrics,
    }


def write_scores(
    folder: PathLike, rows: Sequence[Dict[str, Any]], columns: Sequence[str], **how: Any
) -> Dict[str, Any]:
    """Write ``scores.csv`` and ``summary.json``: how it was scored, and the means. Returns the summary."""
    write_csv(Path(folder) / "scores.csv", rows, columns)
    summary = {**summarise(rows, columns), **how}
    write_text(Path(folder) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary
