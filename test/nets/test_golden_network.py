"""DPDCRN against the golden vectors: features, mask, output and the gradient of the input."""

from pathlib import Path

import pytest
import torch
from golden import golden_files, load, relative_error
from golden.modules import SETS, network
from reference import network as reference

from i2srf_kd.nets.dpdcrn import mask_magnitude, mask_phase

FILES = golden_files("network")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 2e-7)], ids=["f32", "f64"])
def test_network_matches_golden(path: Path, dtype: torch.dtype, tolerance: float) -> None:
    golden = load(path)
    spectrum = golden["input__spectrogram"].to(dtype).requires_grad_()
    output = network(golden, path).to(dtype)(spectrum, return_features=True)
    actual = {
        "expected__mask_complex": output.mask,
        "expected__mask_magnitude": mask_magnitude(output.mask),
        "expected__output_spectrum": output.spectrum,
    }
    for ours, theirs in SETS.items():
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


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.endswith("_in2")], ids=lambda p: p.stem)
def test_plain_reference_matches_golden(path: Path) -> None:
    """What speed is compared with computes the same."""
    golden = load(path)
    found = reference.forward(network(golden, path), golden["input__spectrogram"].double())
    assert relative_error(found.detach(), golden["expected__output_spectrum"].double()) < 2e-7
