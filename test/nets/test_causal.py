"""The causal network: it looks at the past only, limited where it says so, and is the published one otherwise."""

import pytest
import torch
from export.trained import make_network

from i2srf_kd.nets import STFT, build_dpdcrn
from i2srf_kd.nets.causal import FrameNorm, attention_mask
from i2srf_kd.nets.presets import network_from_options

FRAMES, CHANGED = 40, 23


@pytest.fixture(scope="module")
def network():
    return make_network(num_mics=2, n_fft=64, blocks=2, causal=True, attention_window=7)


@torch.no_grad()
def test_no_frame_depends_on_a_later_one(network):
    spectrum = torch.randn(2, 4, FRAMES, 33)
    changed = spectrum.clone()
    changed[:, :, CHANGED:] = 1e3 * torch.randn(2, 4, FRAMES - CHANGED, 33)
    before, after = (network(x, return_features=True) for x in (spectrum, changed))
    assert torch.equal(after.spectrum[:, :, :CHANGED], before.spectrum[:, :, :CHANGED])
    assert not torch.equal(after.spectrum[:, :, CHANGED], before.spectrum[:, :, CHANGED])
    for name, features in before.features.items():
        for ours, theirs in zip(features, after.features[name], strict=True):
            assert torch.equal(ours[:, :, :CHANGED], theirs[:, :, :CHANGED]), name


@torch.no_grad()
def test_the_published_network_does_depend_on_later_frames():
    """Else the test above would prove nothing."""
    network = make_network(n_fft=64)
    spectrum = torch.randn(1, 2, FRAMES, 33)
    changed = spectrum.clone()
    changed[:, :, -1] += 1
    assert not torch.equal(network(changed).spectrum[:, :, 0], network(spectrum).spectrum[:, :, 0])


@torch.no_grad()
@pytest.mark.parametrize("changed", [3000, 4095, 4096])
def test_no_sample_depends_on_one_a_window_later(changed):
    """Through the STFT and back: what comes ``n_fft`` or more samples later does not matter, exactly."""
    stft, network = STFT(512, 256), make_network(causal=True, attention_window=9)
    waves = torch.randn(1, 8192).repeat(2, 1)
    waves[1, changed:] = 0.5
    one, other = (stft.inverse(network(stft(wave[None])).spectrum, 8192)[0] for wave in waves)
    first = int((one != other).nonzero()[0])
    assert changed - 511 <= first <= changed


@torch.no_grad()
def test_attention_forgets_what_is_older_than_its_window():
    """With the GRU and the dilated past switched off, a frame sees ``attention_window`` frames and no more."""
    network = make_network(n_fft=64, causal=True, attention_window=5)
    for name, parameter in network.named_parameters():
        if "gru_projection" in name or (".dense." in name and "conv.weight" in name):
            (parameter[:, :, 0] if parameter.dim() == 4 else parameter).zero_()
    spectrum = torch.randn(1, 2, FRAMES, 33)
    changed = spectrum.clone()
    changed[:, :, CHANGED] += 3
    before, after = network(spectrum).spectrum, network(changed).spectrum
    differs = [not torch.equal(before[:, :, t], after[:, :, t]) for t in range(FRAMES)]
    assert [t for t in range(FRAMES) if differs[t]] == list(range(CHANGED, CHANGED + 5))


def test_mask_row_by_row():
    mask = attention_mask(torch.zeros(1, 1, 4, 1), window=2)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert mask.int().tolist() == expected


def test_frame_norm_is_the_layer_norm_of_a_frame():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    norm = FrameNorm(3, eps=1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    frame = x[1, :, 2]
    expected = (frame - frame.mean()) / (frame.var(correction=0) + 1e-3).sqrt()
    expected = expected * norm.weight[:, None] + norm.bias[:, None]
    torch.testing.assert_close(norm(x)[1, :, 2], expected)


def test_silence_is_finite_and_has_a_gradient():
    network = make_network(n_fft=64, causal=True)
    spectrum = torch.zeros(1, 2, 9, 33, requires_grad=True)
    output = network(spectrum).spectrum
    output.sum().backward()
    assert torch.isfinite(output).all() and torch.isfinite(spectrum.grad).all()


@pytest.mark.parametrize("size", ["student", "small", "tiny"])
def test_same_parameters_as_the_published_network(size):
    causal, published = build_dpdcrn(f"dpdcrn_{size}_causal"), build_dpdcrn(f"dpdcrn_{size}")
    shapes = {name: value.shape for name, value in published.state_dict().items()}
    assert {name: value.shape for name, value in causal.state_dict().items()} == shapes
    assert causal.causal and not published.causal


def test_options():
    network = network_from_options(33, channels=8, heads=2, causal=True, attention_window=10)
    assert network.options.causal and network.options.attention_window == 10
    assert "causal" not in network_from_options(33, preset="dpdcrn_tiny_causal", causal=False).options.description()
    with pytest.raises(ValueError, match="attention_window must be at least 2 frames, not 1"):
        make_network(causal=True, attention_window=1)
