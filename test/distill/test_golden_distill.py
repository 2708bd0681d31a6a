"""Similarity, calibration, fusion and the whole loss against the golden vectors, in float64."""

import re
from pathlib import Path
from typing import Dict, List

import pytest
import torch
from golden import GOLDEN_DIR, golden_files, load, relative_error
from reference import distillation as reference

from i2srf_kd.distill import Side, build_method
from i2srf_kd.distill.calibration import CalibratedSetLoss, CalibrationOptions
from i2srf_kd.distill.fusion import RecursiveFusion
from i2srf_kd.distill.method import layout_of
from i2srf_kd.distill.similarity import layer_similarities

TOLERANCE = 1e-9
Golden = Dict[str, torch.Tensor]


def each(part: str):
    files = golden_files(part)
    missing = pytest.mark.skip(reason=f"no golden {part} files in {GOLDEN_DIR}: set I2SRF_GOLDEN_DIR")
    return pytest.mark.parametrize("path", files or [pytest.param(Path(part), marks=missing)], ids=lambda p: p.stem)


def numbered(golden: Golden, prefix: str) -> List[torch.Tensor]:
    """Tensors ``<prefix>0``, ``<prefix>1``, ... in order, as leaves that take a gradient."""
    count = sum(bool(re.fullmatch(re.escape(prefix) + r"\d+", key)) for key in golden)
    return [golden[f"{prefix}{i}"].clone().requires_grad_() for i in range(count)]


def check(actual: Dict[str, torch.Tensor], golden: Golden) -> None:
    errors = {key: relative_error(value.detach(), golden[key]) for key, value in actual.items()}
    bad = {key: error for key, error in errors.items() if not error <= TOLERANCE}
    assert errors and not bad, bad


def calibration_parameter(name: str) -> str:
    """``time_query_0_hidden_weight`` to the name of our parameter."""
    stream, role, layer, part, kind = name.split("_")
    return f"{stream}.{'queries' if role == 'query' else 'keys'}.{layer}.{0 if part == 'hidden' else 2}.{kind}"


def fusion_parameter(name: str) -> str:
    """``step_1_reduce_conv_weight`` or ``final_norm_scale`` to the name of our parameter."""
    index = {"conv": 0, "norm": 1, "prelu": 2}
    kind = {"scale": "weight", "shift": "bias", "slope": "weight"}
    final = re.fullmatch(r"final_(conv|norm|prelu)_(\w+)", name)
    if final:
        return f"final.{index[final[1]]}.{kind.get(final[2], final[2])}"
    step, part, layer, what = re.fullmatch(r"step_(\d+)_(reduce|gate)_(conv|norm|prelu)_(\w+)", name).groups()
    if part == "gate":
        return f"gates.{int(step) - 1}.conv.{what}"
    return f"reduce.{step}.{'act' if layer == 'prelu' else layer}.{kind.get(what, what)}"


def fixed_options(golden: Golden, prefix: str, batch: int, frames: int) -> Dict[str, object]:
    hidden = golden[f"param__{prefix}batch_query_0_hidden_weight"].shape[0]
    time_hidden = golden[f"param__{prefix}time_query_0_hidden_weight"].shape[0]
    return {
        "embedding": "fixed",
        "frames": frames,
        "batch_size": batch,
        "batch_expansion": hidden // batch,
        "time_expansion": time_hidden // frames,
    }


def load_golden(module: torch.nn.Module, golden: Golden, prefix: str, rename) -> Dict[str, torch.nn.Parameter]:
    """Load ``param__<prefix>*`` strictly; return golden gradient key -> parameter."""
    start = f"param__{prefix}"
    names = {key[len("param__") :]: rename(key[len(start) :]) for key in golden if key.startswith(start)}
    module.to(torch.float64)
    module.load_state_dict({ours: golden[f"param__{theirs}"] for theirs, ours in names.items()}, strict=True)
    parameters = dict(module.named_parameters())
    return {f"grad__{theirs}": parameters[ours] for theirs, ours in names.items()}


@each("calibration")
def test_calibration(path: Path) -> None:
    golden = load(path)
    student, teacher = numbered(golden, "input__student_feature_"), numbered(golden, "input__teacher_feature_")
    batch, _, frames, _ = student[0].shape
    options = CalibrationOptions(**fixed_options(golden, "", batch, frames))
    loss = CalibratedSetLoss(len(student), len(teacher), options)
    gradients = load_golden(loss, golden, "", calibration_parameter)
    result = loss(student, teacher)
    actual = {
        "expected__time_weights": result.time_weights,
        "expected__batch_weights": result.batch_weights,
        "expected__time_pair_loss": result.time_pair_loss,
        "expected__batch_pair_loss": result.batch_pair_loss,
        "expected__time_loss": result.time_loss,
        "expected__batch_loss": result.batch_loss,
        "expected__loss": result.loss,
    }
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
    check(actual, golden)


@each("calibration")
def test_calibration_with_attached_keys(path: Path) -> None:
    golden = load(path)
    student, teacher = numbered(golden, "input__student_feature_"), numbered(golden, "input__teacher_feature_")
    batch, _, frames, _ = student[0].shape
    options = CalibrationOptions(**fixed_options(golden, "", batch, frames))
    loss = CalibratedSetLoss(len(student), len(teacher), options, attach_keys=True)
    load_golden(loss, golden, "", calibration_parameter)
    loss(student, teacher).loss.backward()
    check({f"grad_attached_keys__teacher_feature_{j}": f.grad for j, f in enumerate(teacher)}, golden)


@each("fusion")
def test_fusion(path: Path) -> None:
    golden = load(path)
    chains = sorted({key.split("__")[1] for key in golden if key.endswith("__output")})
    assert chains
    for chain in chains:
        features = numbered(golden, f"input__{chain}__feature_step_")
        if chain.startswith("teacher"):
            features = [f.detach() for f in features]
        final = golden[f"param__{chain}__final_conv_weight"]
        fusion = RecursiveFusion([f.shape[1] for f in features], final.shape[1], final.shape[0])
        gradients = load_golden(fusion, golden, f"{chain}__", fusion_parameter)
        output = fusion(features).output
        actual = {f"expected__{chain}__output": output}
        (output * golden[f"input__{chain}__cotangent"]).sum().backward()
        actual |= {key: parameter.grad for key, parameter in gradients.items()}
        if chain.startswith("student"):
            actual |= {f"grad__{chain}__feature_step_{k}": f.grad for k, f in enumerate(features)}
        assert set(actual) == {k for k in golden if k.startswith((f"expected__{chain}__", f"grad__{chain}__"))}
        check(actual, golden)


SETS = {"encoder": "encoder", "dual_path": "middle", "decoder": "decoder"}


def total_parameter(name: str) -> str:
    fusion = re.fullmatch(r"(student|teacher)_(\w+?)_fusion__(\w+)", name)
    if fusion:
        ours = {theirs: ours for ours, theirs in SETS.items()}[fusion[2]]
        return f"{fusion[1]}_fusion.chains.{ours}.{fusion_parameter(fusion[3])}"
    stage, rest = re.fullmatch(r"(\w+?)_calibration__(\w+)", name).groups()
    ours = {theirs: f"intra.{ours}" for ours, theirs in SETS.items()} | {"inter": "inter_set"}
    return f"{ours[stage]}.{calibration_parameter(rest)}"


@each("total_loss")
def test_total_loss(path: Path) -> None:
    golden = load(path)
    sides = {
        who: {ours: numbered(golden, f"input__{who}_{theirs}_feature_") for ours, theirs in SETS.items()}
        for who in ("student", "teacher")
    }
    batch, _, frames, _ = sides["student"]["encoder"][0].shape
    method = build_method(
        "i2rf_tfckd",
        layout_of(sides["student"]),
        layout_of(sides["teacher"]),
        middle_channels=golden["param__student_encoder_fusion__final_conv_weight"].shape[1],
        calibration=fixed_options(golden, "encoder_calibration__", batch, frames),
    )
    gradients = load_golden(method, golden, "", total_parameter)
    terms = method(Side(sides["student"]), Side(sides["teacher"]))
    total = sum(terms.values())
    naive = reference.total_loss(method, sides["student"], sides["teacher"])
    check({"expected__total_loss": sum(naive.values())}, golden)
    for name, term in terms.items():
        torch.testing.assert_close(naive[name], term, rtol=1e-10, atol=0)
    actual = {
        "expected__total_loss": total,
        "expected__inter_loss": terms["inter"],
        "expected__intra_loss": sum(v for k, v in terms.items() if k.startswith("intra")),
    }
    for name, result in method.last.items():
        stage = "inter" if name == "inter" else SETS[name.removeprefix("intra_")]
        for part in SET_PARTS:
            actual[f"expected__{stage}__{part}"] = getattr(result, part)
    for who, fusion in (("student", method.student_fusion), ("teacher", method.teacher_fusion)):
        for stage, output in zip(SETS.values(), fusion(sides[who]), strict=True):
            actual[f"expected__{who}_{stage}_fusion_output"] = output
    assert set(actual) == {key for key in golden if key.startswith("expected__")}
    total.backward()
    actual |= {key: parameter.grad for key, parameter in gradients.items()}
    for ours, theirs in SETS.items():
        for i, feature in enumerate(sides["student"][ours]):
            actual[f"grad__student_{theirs}_feature_{i}"] = feature.grad
    assert {key for key in golden if key.startswith("grad__")} <= set(actual)
    assert all(f.grad is None for layers in sides["teacher"].values() for f in layers)
    check(actual, golden)


SET_PARTS = (
    "time_weights",
    "batch_weights",
    "time_pair_loss",
    "batch_pair_loss",
    "time_loss",
    "batch_loss",
    "loss",
)
