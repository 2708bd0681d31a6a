"""Grid files: what they say, and that mistakes in them are named."""

from pathlib import Path

import pytest
import yaml
from places import VOICEBANK

from i2srf_kd.ablation.check import check_distill
from i2srf_kd.ablation.grid import override, read_grid
from i2srf_kd.distill import method_names
from i2srf_kd.system.errors import UserError

GRIDS = sorted((VOICEBANK / "conf" / "ablation").glob("*.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kd.yaml").write_text(
        "method: i2srf_tfckd\nmethod_conf: {inter: true, calibration: {time_stream: true}}\nweight: 1.0\n"
    )
    return tmp_path


def grid(folder: Path, text: str, check=None):
    (folder / "g.yaml").write_text(text)
    return read_grid("g.yaml", check)


HEAD = "baseline: plain\ncells:\n  plain: {distill: null}\n"


def test_cells_seeds_and_overrides(folder):
    result = grid(
        folder,
        "title: T\nseeds: [0, 3]\nbaseline: plain\ncompare_with: [full, plain]\noptions: {fs: 8000, check_md5: false}\n"
        "cells:\n  plain: {distill: null}\n  full: {distill: kd.yaml, seeds: [3]}\n"
        "  part: {distill: kd.yaml, student_args: --max_epoch 3,\n"
        "         overrides: {weight: 0.5, method_conf.inter: null,\n"
        "                     method_conf.calibration.frequency_stream: false}}\n",
    )
    assert (result.title, result.name, result.baseline, result.compare_with) == ("T", "g", "plain", ["full"])
    assert result.options == {"fs": "8000", "check_md5": "false"}
    plain, full, part = result.cells
    assert plain.distill is None and plain.seeds == (0, 3) and full.seeds == (3,)
    assert full.distill == yaml.safe_load(Path("kd.yaml").read_text())
    assert part.distill == {
        "method": "i2srf_tfckd",
        "method_conf": {"inter": None, "calibration": {"time_stream": True, "frequency_stream": False}},
        "weight": 0.5,
    }
    assert part.student_args == "--max_epoch 3"


def test_cross_makes_every_combination_and_keeps_types(folder):
    result = grid(
        folder,
        HEAD + "cross:\n  - name: '{part}-w{weight}'\n    over:\n      weight: [0.1, 1]\n"
        "      part: {intra: {method_conf.inter: false}, both: {}}\n"
        "    distill: {method: i2srf_tfckd, weight: '{weight}', kd_only_steps: 3}\n    overrides: '{part}'\n",
    )
    assert [cell.name for cell in result.cells] == ["plain", "intra-w0.1", "both-w0.1", "intra-w1", "both-w1"]
    assert result.cells[1].distill == {
        "method": "i2srf_tfckd", "weight": 0.1, "kd_only_steps": 3, "method_conf": {"inter": False}
    }  # fmt: skip
    assert result.cells[4].distill == {"method": "i2srf_tfckd", "weight": 1, "kd_only_steps": 3}


def test_modules_of_ones_own_stay_findable(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "own.py").write_text("")
    (folder / "sub" / "own.yaml").write_text("method: own\nimport: own.py\n")
    result = grid(folder, HEAD + "  own: {distill: sub/own.yaml}\n")
    assert result.cells[1].distill["import"] == [str(folder / "sub" / "own.py")]


def test_an_edited_module_of_ones_own_is_another_definition(folder):
    (folder / "own.py").write_text("# first\n")
    (folder / "own.yaml").write_text("method: own\nimport: own.py\n")
    plain, own = grid(folder, HEAD + "  own: {distill: own.yaml}\n").cells
    before = own.definition()
    assert "imported" not in plain.definition() and own.definition() == before
    (folder / "own.py").write_text("# second\n")
    assert own.definition() != before


@pytest.mark.parametrize(
    "text, message",
    [
        ("cell: {}\n", "a grid has no option cell: it has title"),
        ("baseline: a\n", "it has no cells"),
        ("cells: {a: {distill: null}}\n", "name the cell without a teacher"),
        ("baseline: b\ncells: {a: {distill: null}}\n", "there is no cell 'b'; there are a"),
        ("baseline: a\ncells: {a: {distill: kd.yaml}}\n", "baseline: cell a has a teacher"),
        (HEAD + "compare_with: [x]\n", "compare_with: there is no cell 'x'"),
        (HEAD + "  plain: {distill: kd.yaml}\n", "'plain' is given twice"),
        (HEAD + "  x: {distil: null}\n", "cell x has no option distil: it has distill"),
        (HEAD + "  x: {seeds: [1]}\n", "cell x: say what it distils"),
        (HEAD + "  x: {distill: absent.yaml}\n", "absent.yaml: No such file"),
        (HEAD + "  x: {distill: null}\n", "cells plain and x train the same"),
        (HEAD + "  x: {distill: null, overrides: {weight: 1}}\n", "overrides without distill"),
        (HEAD + "  x: {distill: kd.yaml, overrides: {weight.a: 1}}\n", "cell x: overrides: weight.a"),
        (HEAD + "  x: {distill: kd.yaml, student_config: no.yaml}\n", "student_config no.yaml: no such file"),
        (HEAD + "  a/b: {distill: kd.yaml}\n", "cell 'a/b': a name has letters"),
        (HEAD + "  logs: {distill: kd.yaml}\n", "cell 'logs'"),
        (HEAD + "seeds: [0, 0]\n", "seeds must be different whole numbers"),
        (HEAD + "seeds: 3\n", "seeds must be a list"),
        (HEAD + "options: {student_tag: x}\n", "options: student_tag cannot be given: each cell has its own"),
        (HEAD + "cross: [{name: x, over: {w: []}, distill: kd.yaml}]\n", "over: w needs a list"),
        (HEAD + "cross: [{name: 'x{v}', over: {w: [1]}, distill: kd.yaml}]\n", "over has no v; it has w"),
        (HEAD + "cross: [{name: x, over: {w: [1, 2]}, distill: kd.yaml}]\n", "cell x is there twice"),
        (HEAD + "cross: [{over: {w: [1]}, distill: kd.yaml}]\n", "needs name"),
        ("- a\n", "must hold options such as 'key: value'"),
        ("a: [\n", "no valid YAML"),
    ],
)
def test_mistakes_are_named(folder, text, message):
    with pytest.raises(UserError) as error:
        grid(folder, text)
    assert message in str(error.value) and "g.yaml" in str(error.value)


@pytest.mark.parametrize(
    "distill, message",
    [
        ("{method: i2srf}", "no distillation method 'i2srf'"),
        ("{method: spkd, wieght: 1}", "distill has no option wieght"),
        ("{method: spkd, method_conf: {set: [encoder]}}", "'spkd' has no option set"),
        ("{method: i2srf_tfckd, method_conf: {calibration: {time: true}}}", "calibration has no option time"),
        ("{method: i2srf_tfckd, method_conf: {intra: false, inter: false}}", "nothing to distil"),
        ("{method: spkd, weight: heavy}", "heavy"),
    ],
)
def test_distillations_that_cannot_be_built_are_named(folder, distill, message):
    with pytest.raises(UserError) as error:
        grid(folder, HEAD + f"  x: {{distill: {distill}}}\n", check_distill)
    assert "g.yaml: cell x: " in str(error.value) and message in str(error.value)


def test_selection(folder):
    whole = grid(folder, HEAD + "  x: {distill: kd.yaml, seeds: [1, 2]}\nseeds: [0, 1]\n")
    some = whole.select(["x"], [2])
    assert [(cell.name, cell.seeds) for cell in some.cells] == [("x", (2,))] and some.baseline == "plain"
    with pytest.raises(UserError, match="--cells y: g.yaml has no such cell; it has plain, x"):
        whole.select(["y"])
    with pytest.raises(UserError, match="--seeds 7"):
        whole.select([], [7])
    with pytest.raises(UserError, match="--seeds 7"):
        whole.select([], [0, 7])


def test_override_counts_into_lists():
    distill = {"method": [{"name": "spkd"}, {"name": "dfkd", "weight": 1}]}
    override(distill, "method.1.weight", 3)
    override(distill, "method.0.conf.sets", ["encoder"])
    assert distill == {"method": [{"name": "spkd", "conf": {"sets": ["encoder"]}}, {"name": "dfkd", "weight": 3}]}
    with pytest.raises(ValueError, match="2 does not count into a list of 2"):
        override(distill, "method.2.weight", 3)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids(path, monkeypatch):
    monkeypatch.chdir(VOICEBANK)
    result = read_grid(path, check_distill)
    assert len(result.cells) >= 2


def test_the_grid_of_methods_has_them_all(monkeypatch):
    monkeypatch.chdir(VOICEBANK)
    result = read_grid("conf/ablation/methods.yaml")
    shipped = {yaml.safe_load(file.read_text())["method"] for file in Path("conf/distill").glob("*.yaml")}
    assert {cell.distill["method"] for cell in result.cells if cell.distill} == shipped
    assert shipped <= set(method_names())
