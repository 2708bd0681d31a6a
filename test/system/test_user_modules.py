"""Modules of a user that register methods."""

import sys
from pathlib import Path

import pytest

from i2srf_kd.distill import LayerShape, method_class
from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.method import registered_by
from i2srf_kd.system.user_modules import absolute_entries, import_modules, imported_files, module_entries, module_files

METHOD = """
import torch
from i2srf_kd.distill import DistillMethod, register_method

@register_method("{name}")
class {cls}(DistillMethod):
    def forward(self, student, teacher, reference=None):
        return {{"zero": torch.zeros(())}}
"""
LAYOUT = {"encoder": [LayerShape(2, 3)]}


def test_entries() -> None:
    assert (
        module_entries(None) == [] and module_entries("a.b") == ["a.b"] and module_entries(["a", "b.py"])[1] == "b.py"
    )
    for bad in (3, {"a": 1}, ["a", 2], [""]):
        with pytest.raises(ValueError, match="import must name modules"):
            module_entries(bad)


def test_files_are_looked_for_in_turn(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "m.py").write_text("")
    found = absolute_entries(["m.py", "os.path"], [tmp_path / "first", tmp_path / "second"])
    assert found == [str(tmp_path / "second" / "m.py"), "os.path"]
    with pytest.raises(ValueError, match="import: n.py does not exist.*second/n.py"):
        absolute_entries("n.py", [tmp_path / "second"])


def test_a_file_is_one_module_and_equal_names_are_two(tmp_path: Path) -> None:
    for name in ("user_one", "user_two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "method.py").write_text(METHOD.format(name=name, cls="Mine"))
    paths = [str(tmp_path / name / "method.py") for name in ("user_one", "user_two")]
    first, second = import_modules(paths)
    assert import_modules(paths) == [first, second] and first is not second
    assert [registered_by(module) for module in (first, second)] == [["user_one"], ["user_two"]]


def test_a_package_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "user_package"
    package.mkdir()
    (package / "__init__.py").write_text("from user_package import inner\n")
    (package / "inner.py").write_text(METHOD.format(name="user_inner", cls="Inner"))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"import": "user_package", "method": "user_inner"}
    assert Distiller(config, LAYOUT, LAYOUT).names == ["user_inner"]
    assert registered_by(sys.modules["user_package"]) == ["user_inner"]


def test_files_of_modules_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("own.py", "some_package/__init__.py", "some_package/inner/__init__.py", "some_package/inner/deep.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "some_package"
    assert module_files("some_package.inner.deep") == [package / "inner/deep.py"]
    assert module_files("some_package.inner") == [package / "inner/__init__.py", package / "inner/deep.py"]
    assert module_files(["json", "no_such.module", "some_package.none", str(tmp_path / "gone.py")]) == []
    (tmp_path / "kd.yaml").write_text("distill:\n  import: [own.py, some_package.inner.deep]\n")
    assert imported_files(tmp_path / "kd.yaml") == [tmp_path / "own.py", package / "inner/deep.py"]


def test_a_method_of_the_package_is_not_replaced(tmp_path: Path) -> None:
    ours = method_class("spkd")
    (tmp_path / "thief.py").write_text(METHOD.format(name="spkd", cls=ours.__name__))
    with pytest.raises(ValueError, match="'spkd' is already i2srf_kd.distill.methods.similarity_preserving"):
        import_modules(str(tmp_path / "thief.py"))
    assert method_class("spkd") is ours
