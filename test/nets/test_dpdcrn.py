"""What a user relies on of the network: sizes, any length, independence of the batch, clear errors."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import REPOSITORY

from i2srf_kd.nets import DPDCRN, PRESETS, STFT, build_dpdcrn
from i2srf_kd.nets.dpdcrn import apply_mask
from i2srf_kd.nets.presets import network_from_options


@pytest.mark.parametrize("preset, parameters", [("dpdcrn_teacher", 3_218_118), ("dpdcrn_student", 595_494)])
def test_published_parameter_counts(preset: str, parameters: int) -> None:
    assert sum(p.numel() for p in build_dpdcrn(preset).parameters()) == parameters


@settings(max_examples=12, deadline=None)
@given(
    n_fft=st.integers(8, 80).map(lambda n: 2 * n),
    frames=st.integers(1, 9),
    mics=st.integers(1, 3),
    blocks=st.integers(1, 2),
)
def test_any_size_gives_the_input_size_back(n_fft: int, frames: int, mics: int, blocks: int) -> None:
    network = DPDCRN(8, blocks, input_channels=2 * mics, n_fft=n_fft).eval()
    output = network(torch.randn(2, 2 * mics, frames, n_fft // 2 + 1), return_features=True)
    assert output.spectrum.shape == output.mask.shape == (2, 2, frames, n_fft // 2 + 1)
    assert [len(output.features[name]) for name in DPDCRN.FEATURE_SETS] == [3, blocks, 3]
    seen = {name: [(layer.shape[1], layer.shape[3]) for layer in layers] for name, layers in output.features.items()}
    assert network.feature_shapes() == seen
    assert torch.isfinite(output.spectrum).all()


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    network = build_dpdcrn("dpdcrn_tiny").eval()
    batch = torch.randn(3, 2, 8, 257)
    together = network(batch).spectrum
    alone = torch.cat([network(clip[None]).spectrum for clip in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    order = [2, 0, 1]
    torch.testing.assert_close(network(batch[order]).spectrum, together[order], rtol=1e-4, atol=1e-5)


def test_mask_is_bounded_and_ref_channel_is_the_one_masked() -> None:
    network = DPDCRN(8, 1, input_channels=4, n_fft=64, ref_channel=1).eval()
    mixture = torch.randn(1, 4, 6, 33)
    enhanced = network(mixture).spectrum
    magnitude, reference = enhanced.norm(dim=1), (mixture[:, 2:].square().sum(1) + 1e-8).sqrt()
    assert (magnitude <= reference * (1 + 1e-5)).all()
    silent_reference = mixture.clone()
    silent_reference[:, 2:] = 0
    assert network(silent_reference).spectrum.abs().max() <= 1.01e-4


def test_mask_equals_the_published_form_through_angles() -> None:
    mask, reference = torch.randn(2, 2, 5, 7, dtype=torch.float64), torch.randn(2, 2, 5, 7, dtype=torch.float64)
    magnitude = torch.hypot(mask[:, 0], mask[:, 1])
    phase = torch.atan2(mask[:, 1] / (magnitude + 1e-8), mask[:, 0] / (magnitude + 1e-8))
    angle = torch.atan2(reference[:, 1], reference[:, 0]) + phase
    level = torch.tanh(magnitude) * (reference.square().sum(1) + 1e-8).sqrt()
    torch.testing.assert_close(apply_mask(mask, reference), torch.stack([level * angle.cos(), level * angle.sin()], 1))


def test_gradient_is_finite_for_silence_and_an_empty_mask() -> None:
    mask = torch.zeros(1, 2, 3, 4, requires_grad=True)
    reference = torch.zeros(1, 2, 3, 4, requires_grad=True)
    apply_mask(mask, reference).sum().backward()
    assert torch.isfinite(mask.grad).all() and torch.isfinite(reference.grad).all()


@pytest.mark.parametrize(
    "options, word",
    [
        ({"channels": 7}, "even"),
        ({"channels": 12}, "heads"),
        ({"blocks": 0}, "blocks"),
        ({"input_channels": 3}, "microphone"),
        ({"ref_channel": 1}, "ref_channel"),
        ({"n_fft": 511}, "n_fft"),
    ],
)
def test_bad_sizes_are_named(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DPDCRN(**{"channels": 8, **options})


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, 2, T, 257\), got \(1, 2, 5, 129\)"):
        build_dpdcrn("dpdcrn_tiny")(torch.zeros(1, 2, 5, 129))
    with pytest.raises(ValueError, match="no preset 'big'.*dpdcrn_teacher"):
        build_dpdcrn("big")


def test_options_override_the_preset() -> None:
    network = network_from_options(129, preset="dpdcrn_student", channels=16, num_mics=2)
    assert network.encoder.down1.conv.weight.shape[:2] == (16, 4) and network.bins == 129
    with pytest.raises(ValueError, match="separator_conf has no option chanels: .*did you mean channels"):
        network_from_options(129, chanels=16)
    with pytest.raises(ValueError, match="separator_conf: blocks must be a whole number, not 'two'"):
        network_from_options(129, preset="dpdcrn_student", blocks="two")
    published = {"dpdcrn_teacher", "dpdcrn_student"}
    ours = {"dpdcrn_small", "dpdcrn_tiny"}
    assert set(PRESETS) == published | ours | {f"dpdcrn_{size}_causal" for size in ("student", "small", "tiny")}


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(300, 4000), channels=st.integers(1, 3))
def test_stft_inverts(samples: int, channels: int) -> None:
    stft = STFT(512, 256)
    waveform = torch.randn(2, samples, channels, dtype=torch.float64)  # the last samples lie under a window near 0
    planes = stft(waveform)
    assert planes.shape == (2, 2 * channels, samples // 256 + 1, 257)
    for c in range(channels):
        torch.testing.assert_close(stft.inverse(planes[:, 2 * c : 2 * c + 2], samples), waveform[..., c])


def test_core_imports_without_espnet() -> None:
    code = (
        "import sys, i2srf_kd.nets, i2srf_kd.distill.distiller, i2srf_kd.losses.compressed_spectrum; "
        "assert not [m for m in sys.modules if m.startswith(('espnet', 'librosa'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_grus_run_in_the_precision_of_their_weights_under_autocast() -> None:
    network = DPDCRN(8, 2, n_fft=64)
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.GRU):
            module.register_forward_hook(lambda _, args, output: seen.append((args[0].dtype, output[0].dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(1, 2, 5, 33)).spectrum.sum().backward()
    assert seen == [(torch.float32, torch.float32)] * 4
