"""Figures of trainings show the numbers that they were given."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from i2srf_kd.results import drawing

pytest.importorskip("matplotlib")


def lines(axis):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()]


def test_seeds_are_thin_and_their_mean_is_thick():
    curves = {"kd": [{1: 1.0, 2: 3.0}, {1: 2.0, 2: 5.0, 3: 9.0}], "student": [{1: 4.0, 2: 4.5}]}
    figure = drawing.curves_figure([drawing.Panel("loss", "loss", curves, level=(2.0, "here"))], ["student", "kd"])
    (axis,) = figure.axes
    drawn = lines(axis)
    assert drawn[2] == ([1, 2], [1.5, 4.0])  # the third epoch is not there for both
    widths = [line.get_linewidth() for line in axis.get_lines()]
    assert widths[0] == widths[1] < widths[2] == widths[3]
    assert axis.get_lines()[2].get_color() == axis.get_lines()[0].get_color() != axis.get_lines()[3].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kd", "student"]
    assert drawn[4][1] == [2.0, 2.0]


def test_systems_keep_apart_beyond_the_colours():
    styles = drawing.line_styles([str(i) for i in range(20)])
    assert len({str(style) for style in styles.values()}) == 20


def test_terms_are_stacked_to_the_total():
    figure = drawing.terms_figure({"task": {1: 1.0, 2: 0.5, 3: 0.1}, "kd": {1: 0.2, 2: 0.1}})
    left, right = figure.axes
    tops = [collection.get_paths()[0].vertices[:, 1].max() for collection in left.collections]
    assert tops == pytest.approx([1.0, 1.2])
    assert lines(right)[1] == ([1, 2], [0.2, 0.1]) and right.get_yscale() == "log"


def test_calibration_colours_say_how_far_from_an_equal_share():
    weights = np.array([[[0.25, 0.25, 0.25, 0.25]], [[0.0, 0.25, 0.125, 0.625]]])
    entry = drawing.CalibrationMap("intra dual path", "time", weights, ["S1"], ["T1", "T2", "T3", "T4"])
    figure = drawing.calibration_figure([entry], [0, 10])
    axis = figure.axes[0]
    cells = axis.collections[0].get_array().reshape(4, 2)
    np.testing.assert_allclose(cells, [[0, -1], [0, 0], [0, -0.5], [0, 0.5]])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["S1 ← T1", "S1 ← T2", "S1 ← T3", "S1 ← T4"]
    assert [text.get_text() for text in axis.texts] == ["0.00", "0.25", "0.12", "0.62"]


def test_forest_has_a_line_per_system():
    rows = [drawing.Estimate("better", 0.2, 0.1, 0.3, [0.15, 0.25]), drawing.Estimate("unclear", 0.1, -0.1, 0.3)]
    (axis,) = drawing.forest_figure(rows, "Δ PESQ").axes
    assert ([0.1, 0.3], [0, 0]) in lines(axis) and ([0.2], [0]) in lines(axis)
    assert axis.get_lines()[0].get_color() != axis.get_lines()[3].get_color()
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first one on top


def test_svg_is_well_formed_takes_the_page_colours_and_shares_no_id(tmp_path: Path):
    def figure():
        return drawing.forest_figure([drawing.Estimate("a <b>", 0.2, 0.1, 0.3)], "Δ")

    first, second = (drawing.to_svg(figure(), 'A "label" & more', prefix) for prefix in ("one", "two"))
    root = ElementTree.fromstring(first)
    assert root.get("role") == "img" and root.get("aria-label") == 'A "label" & more'
    assert "currentColor" in first and "var(--series-0" in first and drawing.INK not in first
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (first, second)]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    used = set(re.findall(r"url\(#([^)]+)\)", first)) | set(re.findall(r'href="#([^"]+)"', first))
    assert used and used <= set(ids[0])
    assert any("a <b>" in (node.text or "") for node in root.iter("{http://www.w3.org/2000/svg}text"))
    drawing.save_png(figure(), tmp_path / "forest.png")
    assert (tmp_path / "forest.png").read_bytes()[:4] == b"\x89PNG"
