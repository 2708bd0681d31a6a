"""The forest plot of an ablation: paired differences against the baseline with their intervals."""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

from i2srf_kd.files import atomic_path
from i2srf_kd.reports.results import COLUMNS, Column

_SHOWN = ("pesq_wb", "csig", "covl", "stoi", "ssnr", "si_sdr")
_COLOURS = {"clear": "C0", "unclear": "0.55"}


def forest_plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw one panel per score and one line per cell: mean paired difference and interval.

    Args:
        results: of :func:`i2srf_kd.ablation.collect.build`, with at least one difference.
        path: picture to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = _rows(results)
    metrics = [metric for metric in _SHOWN if metric in results["metrics"]] or list(results["metrics"])
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns + 1.0, lines * (0.26 * len(rows) + 1.3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        _panel(axis, metric, rows)
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_axis_off()
    level = round(100 * results["interval"]["level"])
    which = "validation set" if results["is_validation"] else "set"
    figure.suptitle(
        f"{results['title']}\npaired differences with {level} % intervals, {which} {results['set']}", fontsize=10
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _rows(results: Mapping[str, Any]) -> List[Tuple[str, Dict[str, Any]]]:
    """Label and differences of every line, those against the baseline first."""
    return [
        (f"{cell['name']} − {other}", cell["differences"][other])
        for other in [results["baseline"], *results["compare_with"]]
        for cell in results["cells"]
        if cell["differences"].get(other) and cell["name"] != results["baseline"]  # it is there the other way round
    ]


def _panel(axis: Any, metric: str, rows: List[Tuple[str, Dict[str, Any]]]) -> None:
    column = COLUMNS.get(metric, Column(metric, 3))
    for place, (_, differences) in enumerate(rows):
        value = differences[metric]
        if value["mean"] is None:
            continue
        low, mean, high = (column.scale * value[key] for key in ("low", "mean", "high"))
        colour = _COLOURS["clear" if low > 0 or high < 0 else "unclear"]
        axis.plot([low, high], [place, place], color=colour, linewidth=2)
        axis.plot([mean], [place], "o", color=colour, markersize=5)
    axis.axvline(0.0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(column.label, fontsize=10)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.3)
