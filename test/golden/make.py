"""Make the small golden set: PYTHONPATH=.:test python -m golden.make

Inputs and parameters are cut out of the large set, and ``test/reference`` computes what they give. Before anything is
written it must reproduce all of the large set, so that the small set holds the published arithmetic as well.
"""

from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterator

import torch
from reference import distillation
from reference import network as plain_network

from golden import LARGE_DIR, SMALL_DIR, Golden, check, load, save
from golden.modules import SETS, calibration, features_of, fusion, network, numbered, total_loss

# Sizes of the large set's axes and of the small one's.
CHANNELS = {2: 2, 8: 3, 12: 4, 16: 4}
BINS = {16: 3, 20: 3, 33: 5, 65: 9}
EMBEDDING = {3: 2, 4: 2, 6: 4, 8: 4, 9: 3, 10: 3, 18: 6, 20: 6}  # clips, frames and twice as many
CONVOLUTION = {1: 1, 2: 2, 3: 3, 8: 3, 16: 4, 12: 3, 24: 6}
CLIPS, FRAMES = 2, 3
CHAINS = ("student_decoder", "teacher_encoder")


def set_values(loss: torch.nn.Module, student: list, teacher: list) -> Golden:
    """What a layer set gives, by part."""
    values: Dict[str, torch.Tensor] = {}
    for stream, module in zip(distillation.STREAMS, (loss.time, loss.batch), strict=True):
        weights = distillation.calibration_weights(module, student, teacher, stream)
        pairs = [
            [distillation.pair_loss(ours, theirs, weights[..., i, j], stream) for j, theirs in enumerate(teacher)]
            for i, ours in enumerate(student)
        ]
        values[f"{stream}_weights"] = weights
        values[f"{stream}_pair_loss"] = torch.stack([torch.stack(row) for row in pairs])
        values[f"{stream}_loss"] = values[f"{stream}_pair_loss"].sum() / len(student)
    return {**values, "loss": values["time_loss"] + values["batch_loss"]}


def calibration_values(golden: Golden) -> Golden:
    student, teacher = numbered(golden, "input__student_feature_"), numbered(golden, "input__teacher_feature_")
    loss, gradients = calibration(golden)
    values = set_values(loss, student, [t.detach() for t in teacher])
    values["loss"].backward()
    result = {f"expected__{part}": value for part, value in values.items()}
    result |= {key: parameter.grad for key, parameter in gradients.items()}
    for who, features in (("student", student), ("teacher", teacher)):
        for i, feature in enumerate(features):
            for stream in distillation.STREAMS:
                result[f"expected__{who}_{stream}_rows_{i}"] = distillation.rows(feature, stream)
    result |= {f"grad__student_feature_{i}": feature.grad for i, feature in enumerate(student)}
    loss, _ = calibration(golden, attach_keys=True)
    distillation.set_loss(loss, [feature.detach() for feature in student], teacher).backward()
    return result | {f"grad_attached_keys__teacher_feature_{j}": feature.grad for j, feature in enumerate(teacher)}


def fusion_values(golden: Golden) -> Golden:
    result: Golden = {}
    for chain in {key.split("__")[1] for key in golden if key.endswith("__cotangent")}:
        features = numbered(golden, f"input__{chain}__feature_step_")
        module, gradients = fusion(golden, chain)
        output = distillation.fusion(module, features)
        (output * golden[f"input__{chain}__cotangent"]).sum().backward()
        result[f"expected__{chain}__output"] = output
        result |= {key: parameter.grad for key, parameter in gradients.items()}
        if chain.startswith("student"):
            result |= {f"grad__{chain}__feature_step_{k}": feature.grad for k, feature in enumerate(features)}
    return result


def total_loss_values(golden: Golden) -> Golden:
    student = features_of(golden, "student")
    teacher = {name: [f.detach() for f in layers] for name, layers in features_of(golden, "teacher").items()}
    method, gradients = total_loss(golden)
    ours = distillation.representatives(method.student_fusion.chains, student)
    theirs = distillation.representatives(method.teacher_fusion.chains, teacher)
    result: Golden = {}
    for who, outputs in (("student", ours), ("teacher", theirs)):
        for stage, output in zip(SETS.values(), outputs, strict=True):
            result[f"expected__{who}_{stage}_fusion_output"] = output
    sets = {SETS[name]: set_values(loss, student[name], teacher[name]) for name, loss in method.intra.items()}
    for stage, values in {**sets, "inter": set_values(method.inter_set, ours, theirs)}.items():
        result |= {f"expected__{stage}__{part}": value for part, value in values.items()}
    result["expected__intra_loss"] = sum(values["loss"] for values in sets.values())
    result["expected__inter_loss"] = result["expected__inter__loss"]
    result["expected__total_loss"] = result["expected__intra_loss"] + result["expected__inter_loss"]
    result["expected__total_loss"].backward()
    result |= {key: parameter.grad for key, parameter in gradients.items()}
    for name, stage in SETS.items():
        result |= {f"grad__student_{stage}_feature_{i}": feature.grad for i, feature in enumerate(student[name])}
    return result


def network_values(golden: Golden, path: Path) -> Golden:
    """Computed in float64, kept in float32 as in the large set."""
    spectrum = golden["input__spectrogram"].double().requires_grad_()
    module = network(golden, path)
    features = plain_network.features(module, spectrum)
    mask = features["decoder"][-1]
    output = plain_network.apply_mask(mask, spectrum)
    (output * golden["input__cotangent"]).sum().backward()
    result = {
        "expected__mask_complex": mask,
        "expected__mask_magnitude": torch.tanh(mask.square().sum(1).sqrt()),
        "expected__mask_phase": torch.atan2(mask[:, 1], mask[:, 0]),
        "expected__output_spectrum": output,
        "grad__spectrogram": spectrum.grad,
    }
    for name, stage in SETS.items():
        result |= {f"expected__{stage}_feature_{i}": feature for i, feature in enumerate(features[name])}
    return {key: value.float() for key, value in result.items()}


def cut(golden: Golden, part: str) -> Iterator[tuple]:
    """Inputs and parameters at the small sizes."""
    for key, value in golden.items():
        if part == "fusion" and not any(f"__{chain}__" in key for chain in CHAINS):
            continue
        if key.startswith("input__") and part == "network":
            shape = [1, value.shape[1], 5, 33]
        elif key.startswith("input__"):
            shape = [CLIPS, CHANNELS[value.shape[1]], FRAMES, BINS[value.shape[3]]]
        elif key.startswith("param__") and part == "network":
            shape = list(value.shape)
        elif key.startswith("param__"):
            sizes = EMBEDDING if "_query_" in key or "_key_" in key else CONVOLUTION
            shape = [sizes[size] for size in value.shape]
        else:
            continue
        yield key, value[tuple(slice(size) for size in shape)].contiguous()


def make(name: str, part: str, compute: Callable[[Golden], Golden], tolerance: float) -> None:
    large = load(LARGE_DIR / f"public_{name}.npz")
    found = compute(large)
    required = {key for key in large if not key.startswith(("input__", "param__"))}
    assert required <= set(found), required - set(found)
    check({key: value for key, value in found.items() if key in required}, large, tolerance)
    small = dict(cut(large, part))
    save(SMALL_DIR / f"small_{name}.npz", {**small, **compute(small)})


if __name__ == "__main__":
    make("calibration", "calibration", calibration_values, 1e-9)
    make("fusion", "fusion", fusion_values, 1e-9)
    make("total_loss", "total_loss", total_loss_values, 1e-9)
    network_file = "network_c8_l1_in2"
    make(network_file, "network", partial(network_values, path=Path(f"public_{network_file}.npz")), 2e-7)
    print(sum(path.stat().st_size for path in SMALL_DIR.glob("*.npz")), "bytes in", SMALL_DIR)
