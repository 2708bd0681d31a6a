"""Modules of the package with the parameters of a golden set, whose names differ from the package's."""

import re
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import torch

from golden import Golden
from i2srf_kd.distill import build_method
from i2srf_kd.distill.calibration import CalibratedSetLoss, CalibrationOptions
from i2srf_kd.distill.fusion import RecursiveFusion
from i2srf_kd.distill.method import DistillMethod, layout_of
from i2srf_kd.nets import DPDCRN

Parameters = Dict[str, torch.Tensor]  # by the name of the golden gradient
STREAMS = {"time": "time", "batch": "clips"}  # the published code's names to ours
SETS = {"encoder": "encoder", "dual_path": "middle", "decoder": "decoder"}
NETWORK_NAMES = [
    (r"^middle\.entry\.conv", "dual_path.entry.0"),
    (r"^middle\.entry\.prelu", "dual_path.entry.1"),
    (r"^middle\.exit\.prelu", "dual_path.exit.0"),
    (r"^middle\.exit\.conv", "dual_path.exit.1"),
    (r"^middle\.gain_(frequency|time)_branch", r"dual_path.gain_\1"),
    (r"^middle\.block(\d+)", r"dual_path.blocks.\1"),
    (r"dense\.layer(\d+)", r"dense.layers.\1"),
    (r"^decoder\.mask\.conv_transpose", "decoder.mask"),
    (r"conv_transpose", "conv"),
    (r"prelu", "act"),
    (r"act\.slope|(dual_path\.(?:entry|exit)\.\d)\.slope", lambda m: f"{m.group(1) or 'act'}.weight"),
    (r"\.scale$", ".weight"),
    (r"\.shift$", ".bias"),
    (r"attention\.(qkv|output)_(weight|bias)", r"attention.\1.\2"),
    (r"gru\.forward_input_(weight|bias)", r"gru.\1_ih_l0"),
    (r"gru\.forward_hidden_(weight|bias)", r"gru.\1_hh_l0"),
    (r"gru\.backward_input_(weight|bias)", r"gru.\1_ih_l0_reverse"),
    (r"gru\.backward_hidden_(weight|bias)", r"gru.\1_hh_l0_reverse"),
]


def numbered(golden: Golden, prefix: str) -> List[torch.Tensor]:
    """Tensors ``<prefix>0``, ``<prefix>1``, ... in order, as leaves that take a gradient."""
    count = sum(bool(re.fullmatch(re.escape(prefix) + r"\d+", key)) for key in golden)
    return [golden[f"{prefix}{i}"].clone().requires_grad_() for i in range(count)]


def features_of(golden: Golden, who: str) -> Dict[str, List[torch.Tensor]]:
    """Feature sets of the student or the teacher in a file of the total loss, by the package's names."""
    return {ours: numbered(golden, f"input__{who}_{theirs}_feature_") for ours, theirs in SETS.items()}


def calibration_parameter(name: str) -> str:
    """``time_query_0_hidden_weight`` to the name of our parameter."""
    stream, role, layer, part, kind = name.split("_")
    module = f"learned.{STREAMS[stream]}.{'queries' if role == 'query' else 'keys'}"
    return f"{module}.{layer}.{0 if part == 'hidden' else 2}.{kind}"


def fusion_parameter(name: str) -> str:
    """``step_1_reduce_conv_weight`` or ``final_norm_scale`` to the name of our parameter."""
    index = {"conv": 0, "norm": 1, "prelu": 2}
    kind = {"scale": "weight", "shift": "bias", "slope": "weight"}
    final = re.fullmatch(r"final_(conv|norm|prelu)_(\w+)", name)
    if final:
        return f"final.{index[final[1]]}.{kind.get(final[2], final[2])}"
    step, part, layer, value = re.fullmatch(r"step_(\d+)_(reduce|gate)_(conv|norm|prelu)_(\w+)", name).groups()
    if part == "gate":
        return f"gates.{int(step) - 1}.conv.{value}"
    return f"reduce.{step}.{'act' if layer == 'prelu' else layer}.{kind.get(value, value)}"


def total_parameter(name: str) -> str:
    """``student_encoder_fusion__...`` or ``inter_calibration__...`` to the name of our parameter."""
    ours = {theirs: name for name, theirs in SETS.items()}
    fusion = re.fullmatch(r"(student|teacher)_(\w+?)_fusion__(\w+)", name)
    if fusion:
        return f"{fusion[1]}_fusion.chains.{ours[fusion[2]]}.{fusion_parameter(fusion[3])}"
    stage, rest = re.fullmatch(r"(\w+?)_calibration__(\w+)", name).groups()
    module = "inter_set" if stage == "inter" else f"intra.{ours[stage]}"
    return f"{module}.{calibration_parameter(rest)}"


def network_parameter(name: str) -> str:
    """``middle.block0.time_branch.gru.forward_input_weight`` to the name of our parameter."""
    for pattern, replacement in NETWORK_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _fixed_options(golden: Golden, prefix: str, feature: torch.Tensor) -> Dict[str, object]:
    batch, _, frames, _ = feature.shape
    return {
        "embedding": "fixed",
        "frames": frames,
        "batch_size": batch,
        "batch_expansion": golden[f"param__{prefix}batch_query_0_hidden_weight"].shape[0] // batch,
        "time_expansion": golden[f"param__{prefix}time_query_0_hidden_weight"].shape[0] // frames,
    }


def _load(module: torch.nn.Module, golden: Golden, prefix: str, rename: Callable[[str], str]) -> Parameters:
    """Load ``param__<prefix>*`` strictly into a module in float64."""
    start = f"param__{prefix}"
    names = {key[len("param__") :]: rename(key[len(start) :]) for key in golden if key.startswith(start)}
    module.to(torch.float64)
    module.load_state_dict({ours: golden[f"param__{theirs}"] for theirs, ours in names.items()}, strict=True)
    parameters = dict(module.named_parameters())
    return {f"grad__{theirs}": parameters[ours] for theirs, ours in names.items()}


def calibration(golden: Golden, attach_keys: bool = False) -> Tuple[CalibratedSetLoss, Parameters]:
    """The loss of one layer set."""
    student, teacher = (numbered(golden, f"input__{who}_feature_") for who in ("student", "teacher"))
    options = CalibrationOptions(**_fixed_options(golden, "", student[0]))
    loss = CalibratedSetLoss(len(student), len(teacher), options, attach_keys=attach_keys)
    return loss, _load(loss, golden, "", calibration_parameter)


def fusion(golden: Golden, chain: str) -> Tuple[RecursiveFusion, Parameters]:
    """The fusion of one chain."""
    features = numbered(golden, f"input__{chain}__feature_step_")
    final = golden[f"param__{chain}__final_conv_weight"]
    module = RecursiveFusion([f.shape[1] for f in features], final.shape[1], final.shape[0])
    return module, _load(module, golden, f"{chain}__", fusion_parameter)


def total_loss(golden: Golden) -> Tuple[DistillMethod, Parameters]:
    """The published method."""
    student, teacher = features_of(golden, "student"), features_of(golden, "teacher")
    method = build_method(
        "i2rf_tfckd",
        layout_of(student),
        layout_of(teacher),
        middle_channels=golden["param__student_encoder_fusion__final_conv_weight"].shape[1],
        calibration=_fixed_options(golden, "encoder_calibration__", student["encoder"][0]),
    )
    return method, _load(method, golden, "", total_parameter)


def network(golden: Golden, path: Path) -> DPDCRN:
    """DPDCRN, whose sizes are in the name of its file, in float64."""
    channels, blocks, planes = map(int, re.search(r"c(\d+)_l(\d+)_in(\d+)", path.stem).groups())
    n_fft = 2 * (golden["input__spectrogram"].shape[-1] - 1)
    module = DPDCRN(channels=channels, blocks=blocks, input_channels=planes, n_fft=n_fft)
    state = {key[len("param__") :]: value for key, value in golden.items() if key.startswith("param__")}
    module.load_state_dict({network_parameter(name): value for name, value in state.items()}, strict=True)
    return module.double()
