"""Similarity, calibration, fusion and the whole loss against the golden vectors, in float64."""

from pathlib import Path
from typing import Dict

import pytest
import torch
from golden import check, golden_files, load
from golden.modules import SETS, STREAMS, calibration, features_of, fusion, numbered, total_loss
from reference import distillation as reference

from i2srf_kd.distill import Side
from i2srf_kd.distill.calibration import SetLoss
from i2srf_kd.distill.similarity import layer_similarities

TOLERANCE = 1e-9


def loss_parts(result: SetLoss) -> Dict[str, torch.Tensor]:
    """The parts of a layer set's loss under their published names."""
    parts = ("weights", "pair_loss", "loss")
    named = {f"{s}_{part}": getattr(result.streams[ours], part) for s, ours in STREAMS.items() for part in parts}
    return {**named, "loss": result.loss}


def each(part: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", golden_files(part), ids=lambda path: path.stem)


@each("calibration")
def test_calibration(path: Path) -> None:
    golden = load(path)
    student, teacher = numbered(golden, "input__student_feature_"), numbered(golden, "input__teacher_feature_")
    loss, gradients = calibration(golden)
    result = loss(student, teacher)
    actual = {f"expected__{part}": value for part, value in loss_parts(result).items()}
    for who, features in (("student", student), ("teacher", teacher)):
        for i, feature in enumerate(features):
            time, clips = layer_similarities(feature)
            actual[f"expected__{who}_time_rows_{i}"] = time.rows()
            actual[f"expected__{who}_batch_rows_{i}"] = clips.rows()
    assert set(actual) == {key for key in golden if key.startswith("expected__")}
    result.loss.backward()
    assert all(t.grad is None for t in teacher)
    actual |= {key: parameter.grad for key, parameter in gradients.items()}
    actual |= {f"grad__student_feature_{i}": f.grad for i, f in enumerate(student)}
    check(actual, golden, TOLERANCE)


@each("calibration")
def test_calibration_with_attached_keys(path: Path) -> None:
    golden = load(path)
    student, teacher = numbered(golden, "input__student_feature_"), numbered(golden, "input__teacher_feature_")
    loss, _ = calibration(golden, attach_keys=True)
    loss(student, teacher).loss.backward()
    check({f"grad_attached_keys__teacher_feature_{j}": f.grad for j, f in enumerate(teacher)}, golden, TOLERANCE)


@each("fusion")
def test_fusion(path: Path) -> None:
    golden = load(path)
    chains = sorted({key.split("__")[1] for key in golden if key.endswith("__output")})
    assert chains
    for chain in chains:
        features = numbered(golden, f"input__{chain}__feature_step_")
        if chain.startswith("teacher"):
            features = [f.detach() for f in features]
        module, gradients = fusion(golden, chain)
        output = module(features).output
        actual = {f"expected__{chain}__output": output}
        (output * golden[f"input__{chain}__cotangent"]).sum().backward()
        actual |= {key: parameter.grad for key, parameter in gradients.items()}
        if chain.startswith("student"):
            actual |= {f"grad__{chain}__feature_step_{k}": f.grad for k, f in enumerate(features)}
        assert set(actual) == {k for k in golden if k.startswith((f"expected__{chain}__", f"grad__{chain}__"))}
        check(actual, golden, TOLERANCE)


@each("total_loss")
def test_total_loss(path: Path) -> None:
    golden = load(path)
    sides = {who: features_of(golden, who) for who in ("student", "teacher")}
    method, gradients = total_loss(golden)
    terms = method(Side(sides["student"]), Side(sides["teacher"]))
    total = sum(terms.values())
    naive = reference.total_loss(method, sides["student"], sides["teacher"])
    check({"expected__total_loss": sum(naive.values())}, golden, TOLERANCE)
    for name, term in terms.items():
        torch.testing.assert_close(naive[name], term, rtol=1e-10, atol=0)
    actual = {
        "expected__total_loss": total,
        "expected__inter_loss": terms["inter"],
        "expected__intra_loss": sum(v for k, v in terms.items() if k.startswith("intra")),
    }
    for name, result in method.last.items():
        stage = "inter" if name == "inter" else SETS[name.removeprefix("intra_")]
        actual |= {f"expected__{stage}__{part}": value for part, value in loss_parts(result).items()}
    for who, module in (("student", method.student_fusion), ("teacher", method.teacher_fusion)):
        for stage, output in zip(SETS.values(), module(sides[who]), strict=True):
            actual[f"expected__{who}_{stage}_fusion_output"] = output
    assert set(actual) == {key for key in golden if key.startswith("expected__")}
    total.backward()
    actual |= {key: parameter.grad for key, parameter in gradients.items()}
    for ours, theirs in SETS.items():
        for i, feature in enumerate(sides["student"][ours]):
            actual[f"grad__student_{theirs}_feature_{i}"] = feature.grad
    assert {key for key in golden if key.startswith("grad__")} <= set(actual)
    assert all(f.grad is None for layers in sides["teacher"].values() for f in layers)
    check(actual, golden, TOLERANCE)
