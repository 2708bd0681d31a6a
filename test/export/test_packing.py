"""Packed models: ESPnet's form, safe to read, and equal to the experiment wherever they are used."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from export.trained import make_experiment

from i2srf_kd import load_enhancer
from i2srf_kd.bin import pack
from i2srf_kd.inference.experiment import Experiment
from i2srf_kd.nets import DPDCRN
from i2srf_kd.system.errors import UserError
from i2srf_kd.training.checkpoint import load_weights


@pytest.fixture()
def experiment(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return make_experiment(tmp_path / "student", DPDCRN(8, 1, heads=2), sample_rate=16000)


def pack_it(experiment: Path, *options: str) -> Path:
    out = experiment.parent / "packed.zip"
    assert pack.main([str(experiment), "-o", str(out), *options]) == 0
    return out


def test_a_packed_model_enhances_as_the_experiment(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (experiment / "RESULTS.md").write_text("good\n")
    packed = pack_it(experiment, "--extra", str(experiment / "RESULTS.md"))
    assert "hf upload USER/packed" in capsys.readouterr().out
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        archive.extractall(experiment.parent / "unpacked")
    assert sorted(names)[:2] == ["README.md", "exp/student/RESULTS.md"] and "meta.yaml" in names
    noise = 0.1 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    expected = load_enhancer(experiment)(noise, 16000)
    for model in (packed, experiment.parent / "unpacked"):
        torch.testing.assert_close(load_enhancer(model)(noise, 16000), expected, rtol=0, atol=0)
        assert not any(name.startswith("distillation.") for name in load_weights(Experiment(model).weights()))
        with pytest.raises(UserError, match="1epoch cannot be chosen"):
            load_enhancer(model, weights="1epoch")


def test_links_and_other_folders_make_no_difference(experiment: Path, tmp_path: Path) -> None:
    os.replace(experiment, tmp_path / "elsewhere")
    experiment.symlink_to(tmp_path / "elsewhere")
    assert load_enhancer(pack_it(experiment)).fs == 16000


def rewritten(packed: Path, **members: str) -> Path:
    """The same zip with other members; None of its weights are compressed beyond measure unless asked for."""
    other = packed.with_name("other.zip")
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            key = Path(name).suffix[1:] if name != "meta.yaml" else "meta"
            if members.get(key) != "":
                new.writestr(name, members.get(key, old.read(name)))
    return other


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"meta": yaml.safe_dump({"yaml_files": {"train_config": "/etc/passwd"}, "files": {}})}, "points outside"),
        ({"meta": yaml.safe_dump({"yaml_files": {"train_config": "../../x"}, "files": {}})}, "points outside"),
        ({"meta": yaml.safe_dump({"yaml_files": {"asr_train_config": "x"}, "files": {}})}, "names no train_config"),
        ({"meta": "!!python/object/apply:os.system [exit]"}, "no model packed by ESPnet"),
        ({"meta": "- a list"}, "no model packed by ESPnet"),
        ({"meta": ""}, "no model packed by ESPnet"),
        ({"pth": ""}, "is incomplete"),
        ({"pth": "no weights"}, "no file of weights"),
        ({"pth": "0" * (1 << 25)}, "do not trust"),
    ],
)
def test_what_is_no_sound_packed_model_is_refused(members: dict, message: str, experiment: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_enhancer(rewritten(pack_it(experiment), **members))


def test_damage_and_other_zips_are_named(experiment: Path, tmp_path: Path) -> None:
    packed = pack_it(experiment)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 255
    packed.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_enhancer(packed)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match="no model packed by ESPnet"):
        load_enhancer(tmp_path / "text.zip")
    with pytest.raises(UserError, match="packed already"):
        pack.main([str(pack_it(experiment)), "-o", str(tmp_path / "again.zip")])
