"""Channel attention: identity at the start, what it does not depend on, and everything around the network with it."""

import numpy as np
import pytest
import torch
from export.trained import SMALL, make_experiment, make_network

from i2srf_kd.bin import complexity
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.export.onnx_runtime import OnnxEnhancer
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.nets import DPDCRN
from i2srf_kd.nets.front import ChannelAttention, ComplexMix, build_front
from i2srf_kd.system.errors import UserError

MICROPHONES = pytest.mark.parametrize("mics", [1, 2], ids=["1 microphone", "2 microphones"])


def trained(mics):
    """A front of 4 channels for each microphone that is no longer the identity."""
    front = ChannelAttention(4 * mics, mics).double()
    with torch.no_grad():
        front.gain.fill_(0.7)
        if mics > 1:
            front.group_gain.fill_(-0.4)
    return front


def mixture(mics, batch=2, frames=5, bins=9):
    return torch.randn(batch, 8 * mics, frames, bins, dtype=torch.float64)


def as_complex(planes):
    return torch.complex(planes[:, 0::2], planes[:, 1::2])


def as_planes(spectrum):
    return torch.stack([spectrum.real, spectrum.imag], dim=2).flatten(1, 2)


def mix(layer, spectrum):
    """What a ComplexMix does, in complex numbers: (..., channels) to (..., outputs)."""
    return spectrum @ torch.complex(layer.real, layer.imaginary).T


def attend_in_one_bin(front, x):
    """The front on one bin's complex channel vectors (groups, size), written with loops."""
    x, (groups, size), width = x.clone(), x.shape, front.width
    result = x.clone()
    for g in range(groups):
        direction = x[g] / x[g].abs().square().sum().sqrt()
        query, key = (mix(layer, direction).reshape(size, width) for layer in (front.query, front.key))
        value = mix(front.value, x[g])
        for i in range(size):
            match = torch.stack([(query[i] * key[j].conj()).sum().real for j in range(size)]) / width**0.5
            result[g, i] = x[g, i] + front.gain * (match.softmax(0) * value).sum()
    if groups == 1:
        return result
    x = result.clone()
    direction = x / x.abs().square().sum().sqrt()
    for g in range(groups):
        query = mix(front.group_query, direction[g])
        match = [(query * mix(front.group_key, direction[h]).conj()).sum().real for h in range(groups)]
        weights = (torch.stack(match) / width**0.5).softmax(0)
        result[g] = x[g] + front.group_gain * sum(weights[h] * mix(front.group_value, x[h]) for h in range(groups))
    return result


@MICROPHONES
def test_equals_the_definition_written_with_loops(mics):
    front, x = trained(mics), mixture(mics, batch=1, frames=2, bins=3)
    found = as_complex(front(x))
    for frame in range(2):
        for k in range(3):
            expected = attend_in_one_bin(front, as_complex(x)[0, :, frame, k].reshape(mics, 4))
            torch.testing.assert_close(found[0, :, frame, k].reshape(mics, 4), expected)


def test_complex_mix_is_a_product_with_a_complex_matrix():
    layer, x = ComplexMix(3, 5).double(), torch.randn(2, 6, 4, 7, dtype=torch.float64)
    expected = torch.einsum("oc,bctf->botf", torch.complex(layer.real, layer.imaginary), as_complex(x))
    torch.testing.assert_close(layer(x), as_planes(expected))


@MICROPHONES
def test_network_starts_as_the_one_without_front(mics):
    networks = []
    for front in (None, "channel_attention"):
        torch.manual_seed(0)
        conf = {"groups": mics} if front else None
        networks.append(DPDCRN(8, 1, 2, input_channels=8 * mics, n_fft=32, front=front, front_conf=conf))
    x = mixture(mics, bins=17).float()
    assert torch.equal(networks[0](x).spectrum, networks[1](x).spectrum)


@MICROPHONES
def test_gain_learns_first_and_then_everything(mics):
    front, x = ChannelAttention(4 * mics, mics).double(), mixture(mics)
    target = mixture(mics)
    gains = [p for name, p in front.named_parameters() if "gain" in name]
    (front(x) - target).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in gains)
    with torch.no_grad():
        for gain in gains:
            gain -= 0.1 * gain.grad
    front.zero_grad()
    (front(x) - target).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in front.parameters())


@MICROPHONES
def test_gradient(mics):
    x = mixture(mics, batch=1, frames=1, bins=2).requires_grad_()
    assert torch.autograd.gradcheck(trained(mics), (x,))


@MICROPHONES
def test_scales_and_turns_with_the_mixture(mics):
    front, x = trained(mics), mixture(mics)
    torch.testing.assert_close(front(1e-3 * x), 1e-3 * front(x))
    turned = as_planes(as_complex(x) * torch.exp(torch.tensor(0.8j)))
    torch.testing.assert_close(as_complex(front(turned)), as_complex(front(x)) * torch.exp(torch.tensor(0.8j)))


def test_exchanging_microphones_exchanges_the_outputs():
    front, x = trained(2), mixture(2)
    torch.testing.assert_close(front(x.roll(8, dims=1)), front(x).roll(8, dims=1))
    assert not torch.allclose(front(x[:, torch.arange(16).roll(2)]), front(x).roll(2, dims=1))  # but not channels


@MICROPHONES
def test_bins_and_frames_do_not_see_each_other(mics):
    front, x = trained(mics), mixture(mics)
    other = x.clone()
    other[:, :, 2, 4] += 1
    changed = (front(other) != front(x)).any(1).nonzero()
    assert set(map(tuple, changed[:, 1:].tolist())) == {(2, 4)}


@MICROPHONES
def test_silence_gives_silence_and_finite_gradients(mics):
    x = torch.zeros(1, 8 * mics, 2, 3, dtype=torch.float64, requires_grad=True)
    result = trained(mics)(x)
    result.sum().backward()
    assert not result.any() and torch.isfinite(x.grad).all()


def test_mask_is_applied_to_the_unchanged_reference():
    torch.manual_seed(0)
    conf = {"groups": 2}
    network = DPDCRN(8, 1, 2, input_channels=16, n_fft=32, front="channel_attention", front_conf=conf).eval()
    with torch.no_grad():
        network.front.gain.fill_(5.0)
    x = mixture(2, bins=17).float()
    limit = (x[:, :2].square().sum(1) + 1e-8).sqrt()
    assert (network(x).spectrum.norm(dim=1) <= limit * (1 + 1e-5)).all()
    x[:, :2] = 0
    assert network(x).spectrum.abs().max() <= 1.01e-4


@pytest.mark.parametrize(
    "name, channels, conf, word",
    [
        ("beamformer", 4, {}, "no front 'beamformer': choose one of channel_attention"),
        ("channel_attention", 4, {"heads": 2}, "front_conf does not fit channel_attention: .*heads"),
        ("channel_attention", 8, {"groups": 3}, "8 channels cannot be split into 3 groups"),
        ("channel_attention", 2, {"groups": 2}, "leave one each"),
        ("channel_attention", 4, {"width": 0}, "width"),
        (None, 4, {"groups": 2}, "without front"),
    ],
)
def test_bad_options_are_named(name, channels, conf, word):
    with pytest.raises(ValueError, match=word):
        build_front(name, channels, conf)


@pytest.mark.parametrize("channels, groups", [(2, 1), (4, 1), (6, 1), (8, 2), (12, 3)])
def test_four_channels_are_one_microphone_unless_said_otherwise(channels, groups):
    assert build_front("channel_attention", channels).groups == groups
    assert build_front("channel_attention", 8, {"groups": 1}).groups == 1


def test_export_and_onnx_keep_the_front(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    front = {"front": "channel_attention", "front_conf": {"groups": 2}}
    network = make_network(num_mics=8, **front)
    with torch.no_grad():
        network.front.gain.fill_(0.7)
        network.front.group_gain.fill_(-0.4)
    experiment = make_experiment(tmp_path / "exp", network, separator_conf={**SMALL, "num_mics": 8, **front})
    report = export_bundle(experiment, tmp_path / "model")
    assert 0 < report.onnx_error <= 1e-4
    wave = np.random.default_rng(0).normal(0, 0.1, (3000, 8)).astype(np.float32)
    enhanced = load_enhancer(report.path, runtime="torch")(wave, 16000)
    np.testing.assert_array_equal(enhanced, load_enhancer(experiment)(wave, 16000))
    np.testing.assert_allclose(load_enhancer(report.path)(wave, 16000), enhanced, atol=1e-5)
    np.testing.assert_allclose(OnnxEnhancer(report.path / "model.onnx")(wave, 16000), enhanced, atol=1e-5)


def test_complexity_command_counts_the_front(capsys):
    options = ["--preset", "dpdcrn_tiny", "--num_mics", "8", "--seconds", "0.3"]
    complexity.main(options)
    complexity.main([*options, "--front", "channel_attention"])
    plain, front = (int(line.split("|")[4].replace(",", "")) for line in capsys.readouterr().out.splitlines()[2::3])
    assert front - plain == sum(p.numel() for p in ChannelAttention(8, 2).parameters()) == 386
    with pytest.raises(UserError, match="1 channels in 1 groups leave one each"):
        complexity.main(["--front", "channel_attention"])
