"""Exported folders."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from export.trained import make_experiment, make_network
from waves import noise

from i2srf_kd.bin import export
from i2srf_kd.export import bundle
from i2srf_kd.export.bundle import export_bundle, is_bundle
from i2srf_kd.export.packing import pack_experiment
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import DiskFull, UserError
from i2srf_kd.system.fingerprints import sha256_of


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return make_experiment(
        tmp_path_factory.mktemp("exp") / "student", make_network(), model_conf={"normalize_variance": True}
    )


@pytest.fixture(scope="module")
def _exported_once(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    return export_bundle(experiment, folder, onnx=False, training_data="a corpus, CC BY 4.0")


@pytest.fixture
def exported(_exported_once, tmp_path):
    return _exported_once._replace(path=shutil.copytree(_exported_once.path, tmp_path / "model"))


def test_sounds_as_the_experiment(experiment, exported):
    wave = noise(5000)
    assert is_bundle(exported.path) and not is_bundle(experiment)
    for path in (exported.path, exported.path / "weights.pth"):
        np.testing.assert_array_equal(load_enhancer(path)(wave, 44100), load_enhancer(experiment)(wave, 44100))


def test_holds_the_network_and_nothing_of_training(exported):
    state = torch.load(exported.path / "weights.pth", weights_only=True)
    assert state.keys() == make_network().state_dict().keys()
    config = yaml.safe_load((exported.path / "config.yaml").read_text())
    assert config["weights_sha256"] == exported.sha256 == sha256_of(exported.path / "weights.pth")
    assert sorted(p.name for p in exported.path.iterdir()) == [
        "README.md",
        "complexity.json",
        "config.yaml",
        "weights.pth",
    ]


def test_model_card_shows_scores_as_tables_do(tmp_path, capsys):
    experiment = make_experiment(tmp_path / "exp", make_network())
    scores = {"pesq_wb": {"mean": 2.34567}, "stoi": {"mean": 0.98765}}
    (experiment / "scored_test").mkdir()
    (experiment / "scored_test/summary.json").write_text(json.dumps({"utterances": 7, "metrics": scores}))
    words = [str(experiment), "-o", str(tmp_path / "out"), "--onnx", "false"]
    assert export.main([*words, "--scored", str(experiment / "scored_test")]) == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "over 7 utterances of `test`" in card and "| WB-PESQ ↑ | STOI [%] ↑ |\n|---|---|\n| 2.346 | 98.77 |" in card
    with pytest.raises(UserError, match="give a folder that bin.score wrote"):
        export.main([*words, "--scored", str(tmp_path)])


def test_model_card_states_the_facts(exported):
    card = (exported.path / "README.md").read_text()
    for fact in (
        exported.sha256,
        f"{exported.complexity.parameters:,}",
        "a corpus, CC BY 4.0",
        "student/latest.pth",
        "8 channels, 1 dual-path block(s), 2 attention heads",
        "load_enhancer(",
        "arXiv 2506.13127",
    ):
        assert fact in card
    assert "onnx" not in card and "{" not in card


_ALONE = """
import sys
import numpy as np
from i2srf_kd import load_enhancer
enhancer = load_enhancer(sys.argv[1])
np.save(sys.argv[2], enhancer(np.load(sys.argv[3]), 16000))
foreign = [m for m in sys.modules if m.split(".")[0] in ("espnet2", "espnet") or m.startswith("i2srf_kd.distill")]
assert not foreign, foreign
"""


def test_needs_neither_espnet_nor_teacher_nor_distillation(experiment, exported, tmp_path, repository):
    moved = tmp_path / "elsewhere"
    shutil.copytree(exported.path, moved)
    np.save(tmp_path / "in.npy", noise(5000))
    arguments = [str(moved), str(tmp_path / "out.npy"), str(tmp_path / "in.npy")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, "-c", _ALONE, *arguments], check=True, cwd=tmp_path, env=environment)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), load_enhancer(experiment)(noise(5000), 16000), atol=1e-6)


def test_replaces_an_older_export_as_a_whole(experiment, exported):
    (exported.path / "model.onnx").write_text("left over")
    again = export_bundle(experiment, exported.path, onnx=False)
    assert again.sha256 == exported.sha256
    assert not (exported.path / "model.onnx").exists()
    assert [p.name for p in exported.path.parent.iterdir()] == ["model"]


def test_other_folders_are_not_replaced(experiment, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        export_bundle(experiment, tmp_path / "thesis", onnx=False)
    with pytest.raises(UserError, match="is no folder"):
        export_bundle(experiment, tmp_path / "thesis" / "chapter1.txt", onnx=False)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_a_failed_export_leaves_the_older_one(experiment, exported, monkeypatch):
    def fail(*_):
        raise UserError("on purpose")

    monkeypatch.setattr(bundle, "model_card", fail)
    with pytest.raises(UserError, match="on purpose"):
        export_bundle(experiment, exported.path, onnx=False)
    assert load_enhancer(exported.path).fs == 16000
    assert [p.name for p in exported.path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("most", [0, 2000])
def test_a_full_disk_is_named_and_nothing_is_left(experiment, tmp_path, most):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(DiskFull, match="cannot write .*out: .*free space"):
            export_bundle(experiment, tmp_path / "out", onnx=False)
        with pytest.raises(DiskFull, match="cannot write .*out.zip: .*free space"):
            pack_experiment(experiment, tmp_path / "out.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def _alter_config(folder, **changes):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: torch.save(make_network(seed=9).state_dict(), f / "weights.pth"), r"weights\.pth is not the file"),
        (lambda f: (f / "weights.pth").write_bytes(b""), r"weights\.pth is empty"),
        (lambda f: (f / "weights.pth").unlink(), r"weights\.pth"),
        (lambda f: _alter_config(f, version=99), "version 99"),
        (lambda f: _alter_config(f, network={"channels": 7}), "was altered"),
        (lambda f: _alter_config(f, network={"channels": 16, "blocks": 1, "heads": 2}), "does not fit"),
    ],
)
def test_damaged_folders(exported, damage, words):
    damage(exported.path)
    with pytest.raises(UserError, match=words):
        load_enhancer(exported.path)


def test_weights_cannot_be_chosen(exported):
    with pytest.raises(UserError, match="cannot be chosen"):
        load_enhancer(exported.path, weights="latest")


def test_what_cannot_be_exported(tmp_path):
    folder = make_experiment(tmp_path / "exp", make_network(), separator="tcn")
    with pytest.raises(UserError, match="'tcn' is not dpdcrn"):
        export_bundle(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()
