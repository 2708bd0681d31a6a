"""The command that exports a model."""

import importlib.util
import json

import pytest
from export.trained import make_experiment, make_network, save_weights

from i2srf_kd.bin.export import main
from i2srf_kd.export import onnx as onnx_export
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError

has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


@pytest.fixture
def experiment(tmp_path):
    return make_experiment(tmp_path / "exp", make_network())


@pytest.mark.skipif(not has_onnx, reason="onnx and onnxruntime are not installed")
def test_writes_everything_and_says_what(experiment, tmp_path, capsys):
    out = experiment / "export"
    licence = ["--training_data", "a corpus", "--licence", "CC BY 4.0"]
    for _ in range(2):  # again: replaced
        assert main([str(experiment), "-o", str(out), *licence]) == 0
    files = {"README.md", "complexity.json", "config.yaml", "model.onnx", "onnx_enhancer.py", "weights.pth"}
    assert {path.name for path in out.iterdir()} == files
    printed = capsys.readouterr().out
    assert "differs from PyTorch by at most" in printed and "GMAC/s" in printed
    assert "| CC BY 4.0 |" in (out / "README.md").read_text()
    assert json.loads((experiment / "complexity.json").read_text())["parameters"] > 0
    assert load_enhancer(out).fs == 16000


def test_chosen_weights(experiment, tmp_path):
    save_weights(make_network(seed=2), experiment / "4epoch.pth")
    options = ["-o", str(tmp_path / "out"), "--onnx", "false"]
    main([str(experiment), *options, "--model_file", "4epoch"])
    assert "exp/4epoch.pth" in (tmp_path / "out" / "README.md").read_text()
    main([str(experiment / "4epoch.pth"), *options])
    assert "exp/4epoch.pth" in (tmp_path / "out" / "README.md").read_text()
    main([str(experiment), *options])
    assert "exp/latest.pth" in (tmp_path / "out" / "README.md").read_text()


def test_without_onnx_installed(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("surely_not_installed",))
    assert main([str(experiment), "-o", str(tmp_path / "out")]) == 0
    assert "no model.onnx: surely_not_installed not installed" in capsys.readouterr().out
    with pytest.raises(UserError, match="pip install surely_not_installed"):
        main([str(experiment), "-o", str(tmp_path / "out"), "--onnx", "true"])


def test_an_export_is_not_exported_again(experiment, tmp_path):
    main([str(experiment), "-o", str(tmp_path / "out"), "--onnx", "false"])
    with pytest.raises(UserError, match="is an exported model already"):
        main([str(tmp_path / "out"), "-o", str(tmp_path / "again")])
