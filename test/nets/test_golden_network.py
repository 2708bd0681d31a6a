"""DPDCRN against the golden vectors: features, mask, output and the gradient of the input."""

import re
from pathlib import Path
from typing import Dict

import pytest
import torch
from golden import GOLDEN_DIR, golden_files, load, relative_error
from reference import network as reference

from i2srf_kd.nets import DPDCRN
from i2srf_kd.nets.dpdcrn import mask_magnitude, mask_phase

FILES = golden_files("network")
RENAMES = [
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


def parameter_name(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def build(golden: Dict[str, torch.Tensor], path: Path) -> DPDCRN:
    channels, blocks, planes = map(int, re.search(r"c(\d+)_l(\d+)_in(\d+)", path.stem).groups())
    network = DPDCRN(channels=channels, blocks=blocks, input_channels=planes)
    state = {parameter_name(k[len("param__") :]): v for k, v in golden.items() if k.startswith("param__")}
    network.load_state_dict(state, strict=True)
    return network


@pytest.mark.skipif(not FILES, reason=f"no golden network files in {GOLDEN_DIR}: set I2SRF_GOLDEN_DIR")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 2e-7)], ids=["f32", "f64"])
def test_network_matches_golden(path: Path, dtype: torch.dtype, tolerance: float) -> None:
    golden = load(path)
    network = build(golden, path).to(dtype)
    spectrum = golden["input__spectrogram"].to(dtype).requires_grad_()
    output = network(spectrum, return_features=True)
    actual = {
        "expected__mask_complex": output.mask,
        "expected__mask_magnitude": mask_magnitude(output.mask),
        "expected__output_spectrum": output.spectrum,
    }
    for ours, theirs in (("encoder", "encoder"), ("dual_path", "middle"), ("decoder", "decoder")):
        for i, feature in enumerate(output.features[ours]):
            actual[f"expected__{theirs}_feature_{i}"] = feature
    expected_keys = {k for k in golden if k.startswith("expected__")} - {"expected__mask_phase"}
    assert set(actual) == expected_keys
    errors = {k: relative_error(v.detach(), golden[k].to(dtype)) for k, v in actual.items()}
    # A phase near +-pi may come out as its other end: compare on the circle.
    phases = mask_phase(output.mask).detach(), golden["expected__mask_phase"].to(dtype)
    distance = (torch.exp(1j * phases[0]) - torch.exp(1j * phases[1])).abs().max()
    errors["expected__mask_phase"] = float(distance) / torch.pi
    (output.spectrum * golden["input__cotangent"].to(dtype)).sum().backward()
    errors["grad__spectrogram"] = relative_error(spectrum.grad, golden["grad__spectrogram"].to(dtype))
    # The phase of a near-zero mask is ill-conditioned in float32; everything else keeps the tolerance.
    bad = {k: e for k, e in errors.items() if e > (tolerance if k != "expected__mask_phase" else 1e-3)}
    assert not bad, bad


@pytest.mark.skipif(not FILES, reason=f"no golden network files in {GOLDEN_DIR}: set I2SRF_GOLDEN_DIR")
@pytest.mark.parametrize("path", [p for p in FILES if p.stem.endswith("_in2")], ids=lambda p: p.stem)
def test_plain_reference_matches_golden(path: Path) -> None:
    """What speed is compared with computes the same."""
    golden = load(path)
    network = build(golden, path).double()
    found = reference.forward(network, golden["input__spectrogram"].double())
    assert relative_error(found.detach(), golden["expected__output_spectrum"].double()) < 2e-7
