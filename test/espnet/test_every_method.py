"""Every registered method, and methods combined: a few steps on the mini corpus, then the student without a teacher."""

import inspect
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import speech_task
import torch
import toy
import yaml
from places import CONF

from i2srf_kd import load_enhancer
from i2srf_kd.distill import method_class, method_names
from i2srf_kd.export.bundle import WEIGHTS, export_bundle
from i2srf_kd.nets.dpdcrn import DPDCRN

CONFIGS = CONF / "distill"
NARROW = {"middle_channels": 4, "embedding_size": 4}
NAMES = [name for name in method_names() if method_class(name).__module__.startswith("i2srf_kd.")]
COMBINED: Dict[str, Any] = {
    "method": [
        {"name": "i2srf_tfckd", "weight": 0.5, "conf": {"middle_channels": 4}},
        {"name": "response_waveform", "weight": 2.0},
        {"name": "dispatch"},
    ],
    "weight": 0.5,
}


def configuration(name: str) -> Dict[str, Any]:
    """The shipped configuration of a method, narrow and with a short first step."""
    if name == "combined":
        return COMBINED
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    known = inspect.signature(method_class(name)).parameters
    narrow = {option: value for option, value in NARROW.items() if option in known}
    config["method_conf"] = {**(config.get("method_conf") or {}), **narrow}
    if config.get("kd_only_steps"):
        config["kd_only_steps"] = 5
    return config


def valid_losses(output_dir: Path) -> List[Dict[str, Any]]:
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "valid"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "combined"])
def test_trains_and_leaves_nothing_behind(name: str, speech: Path, speech_teacher: Path, tmp_path: Path) -> None:
    teacher_files = {path.name: path.read_bytes() for path in speech_teacher.glob("*.pth")}
    exp, config = tmp_path / "exp", configuration(name)
    command = speech_task.arguments(speech, exp, distill=config, teacher=speech_teacher)
    assert speech_task.train_and_watch(command, tmp_path / "report.pth") == 0

    losses = valid_losses(exp)
    assert len(losses) == 3
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert losses[-1]["loss"] == pytest.approx(
        losses[-1]["compressed_spectrum"] + config["weight"] * losses[-1]["kd"], rel=1e-4
    )
    report = torch.load(tmp_path / "report.pth")
    assert report["teacher_same"] and not report["teacher_grads"]
    assert report["without_gradient"] == []
    assert teacher_files == {path.name: path.read_bytes() for path in speech_teacher.glob("*.pth")}

    bundle = export_bundle(exp, tmp_path / "export", onnx=False).path
    student = DPDCRN(8, 1, heads=2, n_fft=128).state_dict()
    exported = torch.load(bundle / WEIGHTS)
    assert exported.keys() == student.keys()
    trained = toy.weights(exp, "checkpoint.pth")
    assert (len(report["own"]) > 0) == any(key.startswith("distillation.") and "steps" not in key for key in trained)
    torch.save(student, tmp_path / "student.pth")
    assert (bundle / WEIGHTS).stat().st_size == pytest.approx((tmp_path / "student.pth").stat().st_size, rel=0.01)
    text = (bundle / "config.yaml").read_text()
    assert "teacher" not in text and "distill" not in text and str(speech_teacher) not in text
    noisy = 0.1 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    enhanced = load_enhancer(bundle)(noisy, 16000)
    assert enhanced.shape == noisy.shape and enhanced.isfinite().all()
    torch.testing.assert_close(enhanced, load_enhancer(exp)(noisy, 16000))


def test_the_list_covers_everything_that_is_registered() -> None:
    assert set(NAMES) <= {path.stem for path in CONFIGS.glob("*.yaml")} and len(NAMES) >= 15
