"""How figures are drawn: curves of several runs, loss terms, calibration weights, intervals.

Every function returns a matplotlib figure: :func:`save_png` writes a picture, :func:`to_svg` text for a page, whose
colours follow the page's own (dark or light). matplotlib is imported only when one is drawn.
"""

import html
import io
import itertools
import re
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.system.files import PathLike, atomic_path

# Okabe and Ito's colours, distinguishable with any colour vision; yellow is left out: too bright on white.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES: Tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
INK, FAINT = "#1b1f24", "#8b929c"
_STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "i2srf_kd",
}

_LEAST_SHARE = 0.75  # of its width, to which a drawing may shrink

Curve = Mapping[float, float]


class Panel(NamedTuple):
    """One diagram of :func:`curves_figure`.

    Attributes:
        title: what is shown.
        unit: label of the vertical axis.
        curves: name of a system to one curve (place to value) per seed.
        level: a value that is marked by a horizontal line, with its name.
        log: logarithmic vertical axis.
    """

    title: str
    unit: str
    curves: Mapping[str, Sequence[Curve]]
    level: Optional[Tuple[float, str]] = None
    log: bool = False


class Estimate(NamedTuple):
    """A mean with its interval, and the means of the seeds that it is made of."""

    label: str
    mean: float
    low: float
    high: float
    seeds: Sequence[float] = ()


def new_figure(
    rows: int, columns: int, size: Tuple[float, float], heights: Optional[Sequence[float]] = None
) -> Tuple[Any, Any]:
    """A figure that needs no display and leaves no trace in pyplot's global state; heights are relative."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, height_ratios=heights)


def save_figure(figure: Any, path: PathLike) -> None:
    """Write a picture; its suffix chooses the format."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def line_styles(names: Sequence[str]) -> Dict[str, Dict[str, Any]]:
    """Colour and dashes for each name; the first six differ in colour, further ones in dashes as well."""
    looks = itertools.product(_DASHES, SERIES)
    return {name: {"color": color, "linestyle": dash} for name, (dash, color) in zip(names, itertools.cycle(looks))}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over the seeds at the places that all of them have."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return {place: float(np.mean([curve[place] for curve in curves])) for place in shared}


def curves_figure(panels: Sequence[Panel], names: Sequence[str], places: str = "epoch") -> Any:
    """Curves of several systems, side by side: seeds as thin lines, their mean as a thick one.

    Args:
        panels: the diagrams.
        names: every system that may occur, in an order that decides on the colours.
        places: label of the horizontal axis.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    styles = line_styles(names)
    handles: Dict[str, Any] = {}
    with _style():
        figure, axes = new_figure(rows, columns, (1.2 + 3.5 * columns, 2.9 * rows + 0.5))
        for axis, panel in itertools.zip_longest(axes.flat, panels):
            if panel is None:
                axis.set_axis_off()
                continue
            _draw_panel(axis, panel, styles, handles)
            axis.set_xlabel(places)
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=min(4, len(handles)))
    return figure


def _draw_panel(axis: Any, panel: Panel, styles: Mapping[str, Dict[str, Any]], handles: Dict[str, Any]) -> None:
    for name, curves in panel.curves.items():
        if len(curves) > 1:
            for curve in curves:
                axis.plot(*_sorted(curve), linewidth=0.7, alpha=0.45, **styles[name])
        mean = mean_curve(curves)
        if mean:
            marker = "o" if len(mean) <= 12 else None
            (handles[name],) = axis.plot(*_sorted(mean), linewidth=2, marker=marker, markersize=3, **styles[name])
    if panel.level is not None:
        value, label = panel.level
        axis.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
        axis.annotate(
            label, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", fontsize=8,
        )  # fmt: skip
    if panel.log:
        axis.set_yscale("log")
    axis.set_title(panel.title)
    axis.set_ylabel(panel.unit)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _sorted(curve: Curve) -> Tuple[List[float], List[float]]:
    places = sorted(curve)
    return places, [curve[place] for place in places]


def terms_figure(terms: Mapping[str, Curve], unit: str = "loss") -> Any:
    """Terms of a loss over the epochs: stacked to the total, and each on a logarithmic axis.

    Args:
        terms: name to a curve, weighted as it enters the loss. Places that not all of them have are left out.
        unit: label of the vertical axes.
    """
    epochs = sorted(set.intersection(*(set(curve) for curve in terms.values())))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in terms.values()])
    styles = line_styles(list(terms))
    with _style():
        figure, axes = new_figure(1, 2, (8.2, 3.4))
        left, right = axes[0]
        colors = [style["color"] for style in styles.values()]
        left.stackplot(epochs, np.maximum(values, 0), colors=colors, alpha=0.85, linewidth=0)
        left.set_title("stacked")
        lines = []
        for name, row in zip(terms, values, strict=True):
            lines += right.plot(epochs, np.where(row > 0, row, np.nan), linewidth=1.8, **styles[name])
        right.set_yscale("log")
        right.set_title("each, logarithmic axis")
        for axis in (left, right):
            axis.set_xlabel("epoch")
            axis.set_ylabel(unit)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.margins(x=0)
        figure.legend(lines, list(terms), loc="outside lower left", ncols=min(3, len(terms)))
    return figure


class CalibrationMap(NamedTuple):
    """Weights of one layer set in one stream over the training.

    Attributes:
        title: name of the set.
        stream: ``time`` or ``frequency``.
        weights: ``(places, Ns, Nt)``, rows that sum to 1.
        students, teachers: names of the layers.
    """

    title: str
    stream: str
    weights: np.ndarray
    students: Sequence[str]
    teachers: Sequence[str]


def calibration_figure(maps: Sequence[CalibrationMap], places: Sequence[float], unit: str = "training step") -> Any:
    """Which teacher layer teaches which student layer, over the training.

    One diagram per set (rows) and stream (columns); in it one line of cells per pair of layers. Colours tell how far
    a weight has gone from an equal share towards none or all, on one scale for the whole figure; the number at the
    right is the last weight.
    """
    titles = list(dict.fromkeys(entry.title for entry in maps))
    streams = list(dict.fromkeys(entry.stream for entry in maps))
    pairs = {title: max(m.weights[0].size for m in maps if m.title == title) for title in titles}
    shifts = {id(m): _shift(m.weights) for m in maps}
    limit = max(0.05, *(float(np.abs(shift).max()) for shift in shifts.values()))
    with _style():
        height = sum(0.17 * count + 0.5 for count in pairs.values()) + 1.1
        figure, axes = new_figure(len(titles), len(streams), (1.0 + 3.9 * len(streams), height), list(pairs.values()))
        image = None
        for axis in axes.flat:
            axis.set_axis_off()
        for entry in maps:
            axis = axes[titles.index(entry.title), streams.index(entry.stream)]
            axis.set_axis_on()
            image = _draw_map(axis, entry, shifts[id(entry)], places, limit)
            if entry.title == titles[-1]:
                axis.set_xlabel(unit)
        bar = figure.colorbar(image, ax=list(axes.flat), location="bottom", shrink=0.6, aspect=40, pad=0.01)
        way = "" if limit > 0.995 else f"{limit:.0%} of the way to "
        bar.set_ticks([-limit, 0, limit], labels=[f"{way}none", "equal share", f"{way}all"])
        bar.outline.set_visible(False)
        bar.ax.grid(False)
    return figure


def _diverging() -> Any:
    """Purple, white, orange, without the darkest ends, which a dark page would swallow."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    colors = matplotlib.colormaps["PuOr_r"](np.linspace(0.12, 0.88, 65))
    return LinearSegmentedColormap.from_list("shares", list(colors))


def _shift(weights: np.ndarray) -> np.ndarray:
    """How far weights are from an equal share: -1 none, 0 equal, 1 all."""
    equal = 1 / weights.shape[-1]
    return np.where(weights < equal, weights / equal - 1, (weights - equal) / (1 - equal))


def _draw_map(axis: Any, entry: CalibrationMap, shifts: np.ndarray, places: Sequence[float], limit: float) -> Any:
    _, students, teachers = entry.weights.shape
    edges = _edges(places)
    image = axis.pcolormesh(
        edges, np.arange(students * teachers + 1), shifts.reshape(len(places), -1).T,
        cmap=_diverging(), vmin=-limit, vmax=limit, rasterized=True,
    )  # fmt: skip
    axis.invert_yaxis()
    axis.grid(False)
    names = [f"{s} ← {t}" for s in entry.students for t in entry.teachers]
    axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7.5)
    axis.tick_params(axis="y", length=0)
    for border in range(teachers, students * teachers, teachers):
        axis.axhline(border, color=FAINT, linewidth=0.8)
    for row, weight in enumerate(entry.weights[-1].ravel()):
        axis.annotate(
            f"{weight:.2f}", (1, row + 0.5), xycoords=("axes fraction", "data"), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=7.5, annotation_clip=False,
        )  # fmt: skip
    axis.set_title(f"{entry.title}, {entry.stream} stream")
    axis.xaxis.get_major_locator().set_params(integer=True)
    return image


def _edges(places: Sequence[float]) -> np.ndarray:
    """Borders of cells around the places."""
    centres = np.asarray(places, dtype=float)
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


def forest_figure(estimates: Sequence[Estimate], unit: str) -> Any:
    """Differences with their intervals, one line per system; dots are seeds, the vertical line is no difference."""
    with _style():
        figure, axes = new_figure(1, 1, (7.4, 1.0 + 0.38 * len(estimates)))
        axis = axes[0, 0]
        _draw_estimates(axis, estimates)
        for row, estimate in enumerate(estimates):
            axis.annotate(
                f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]", (1, row),
                xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points", va="center",
                fontsize=8.5, annotation_clip=False,
            )  # fmt: skip
        axis.set_xlabel(unit)
    return figure


def forest_panels(panels: Mapping[str, Sequence[Optional[Estimate]]], title: str, labels: Sequence[str]) -> Any:
    """Forest plots beside one another, one per score, with the same lines.

    Args:
        panels: title of a panel to its estimates; None leaves a line empty.
        title: of the figure.
        labels: of the lines.
    """
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    with _style():
        figure, axes = new_figure(lines, columns, (4.2 * columns + 1.0, lines * (0.26 * len(labels) + 1.3)))
        for place, axis in enumerate(axes.flat):
            axis.set_visible(place < len(panels))
        for place, (axis, (name, estimates)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
            _draw_estimates(axis, estimates)
            axis.set_yticks(range(len(labels)), labels if place % columns == 0 else [""] * len(labels))
            axis.set_title(name)
        figure.suptitle(title, fontsize=10)
    return figure


def _draw_estimates(axis: Any, estimates: Sequence[Optional[Estimate]]) -> None:
    """One line per estimate, grey where the interval holds zero."""
    for row, estimate in enumerate(estimates):
        if estimate is None:
            continue
        clear = estimate.low > 0 or estimate.high < 0
        color = SERIES[0] if clear else FAINT
        axis.plot([estimate.low, estimate.high], [row, row], color=color, linewidth=2.4, solid_capstyle="butt")
        axis.plot(list(estimate.seeds), [row] * len(estimate.seeds), "|", color=color, markersize=11, alpha=0.8)
        axis.plot([estimate.mean], [row], "o", color=color, markersize=6)
    axis.axvline(0, color=INK, linewidth=0.9)
    axis.set_yticks(range(len(estimates)), ["" if estimate is None else estimate.label for estimate in estimates])
    axis.set_ylim(len(estimates) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")


def save_png(figure: Any, path: PathLike) -> None:
    """Write a picture on white."""
    with _style():
        save_figure(figure, path)


def to_svg(figure: Any, label: str, prefix: str) -> str:
    """An ``<svg>`` element for a page.

    Text and colours of the series take the page's ``currentColor`` and ``--series-0`` ... ``--series-5``.

    Args:
        figure: of this module.
        label: what the figure shows, for those who cannot see it.
        prefix: makes the element's ids unique on the page.
    """
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, dpi=96, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace(INK, "currentColor")
    for number, color in enumerate(SERIES):
        svg = svg.replace(color, f"var(--series-{number}, {color})")
    svg = re.sub(r"font: ([\d.]+)px '[^;\"]*", r"font: \1px var(--sans, sans-serif)", svg)
    # On a narrow screen it shrinks as long as its text can be read, and then it scrolls.
    least = f"min-width: {_LEAST_SHARE * figure.get_figwidth():.1f}in"
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}" style="{least}"', 1).strip()
