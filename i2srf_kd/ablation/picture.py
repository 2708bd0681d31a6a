"""The forest plot of an ablation: paired differences against the baseline with their intervals."""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from i2srf_kd.metrics.table import MAIN, metric_named
from i2srf_kd.results.drawing import Estimate, forest_panels, save_png


def forest_plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw one panel per score and one line per cell: mean paired difference and interval.

    Args:
        results: of :func:`i2srf_kd.ablation.collect.build`, with at least one difference.
        path: picture to write.
    """
    rows = _rows(results)
    metrics = [metric for metric in MAIN if metric in results["metrics"]] or list(results["metrics"])
    panels = {
        metric_named(metric).label: [_estimate(label, row[metric], metric) for label, row in rows] for metric in metrics
    }
    level = round(100 * results["interval"]["level"])
    which = "validation set" if results["is_validation"] else "set"
    title = f"{results['title']}\npaired differences with {level} % intervals, {which} {results['set']}"
    save_png(forest_panels(panels, title, [label for label, _ in rows]), path)


def _rows(results: Mapping[str, Any]) -> List[Tuple[str, Dict[str, Any]]]:
    """Label and differences of every line, those against the baseline first."""
    return [
        (f"{cell['name']} − {other}", cell["differences"][other])
        for other in [results["baseline"], *results["compare_with"]]
        for cell in results["cells"]
        if cell["differences"].get(other) and cell["name"] != results["baseline"]  # it is there the other way round
    ]


def _estimate(label: str, value: Mapping[str, Any], metric: str) -> Optional[Estimate]:
    if value["mean"] is None:
        return None
    scale = metric_named(metric).scale
    return Estimate(label, *(scale * value[key] for key in ("mean", "low", "high")))
