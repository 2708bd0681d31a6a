"""Experiment folders and the enhancer made from them."""

import json
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from export.trained import make_experiment, make_network, save_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from waves import noise

from i2srf_kd.inference.enhancer import Enhancer, measure_complexity
from i2srf_kd.inference.experiment import Experiment
from i2srf_kd.inference.loading import load_enhancer, write_complexity
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.nets.presets import build_dpdcrn
from i2srf_kd.system.errors import UserError


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture
def experiment(tmp_path, network):
    return make_experiment(tmp_path / "exp", network)


@pytest.fixture(scope="module")
def enhancer(network):
    return Enhancer(WaveformDPDCRN(network))


# --- experiment ------------------------------------------------------------------------------------------------------


def test_default_weights_are_average_then_best_then_latest(experiment, network):
    order = ["latest.pth", "valid.compressed_spectrum.best.pth", "valid.compressed_spectrum.ave.pth"]
    save_weights(network, experiment / "valid.loss.ave.pth")  # of the second criterion, never the default
    for name in order:
        save_weights(network, experiment / name)
        assert Experiment(experiment).weights().name == name
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["best_model_criterion"].insert(0, ["train", "loss", "min"])  # as ESPnet does by default
    (experiment / "config.yaml").write_text(yaml.safe_dump(config))
    save_weights(network, experiment / "train.loss.ave.pth")
    assert Experiment(experiment).weights().name == order[-1]


def test_weights_by_name_with_or_without_suffix_and_folder(experiment, network, tmp_path):
    save_weights(network, experiment / "3epoch.pth")
    for name in ("3epoch", "3epoch.pth", str(experiment / "3epoch.pth")):
        assert Experiment(experiment).weights(name) == experiment / "3epoch.pth"
    with pytest.raises(UserError, match=r"no 7epoch.*there are 3epoch\.pth, latest\.pth"):
        Experiment(experiment).weights("7epoch")
    with pytest.raises(UserError, match="is not in"):
        Experiment(experiment).weights(str(tmp_path / "other" / "3epoch.pth"))


def test_no_weights_yet(experiment):
    (experiment / "latest.pth").unlink()
    with pytest.raises(UserError, match=r"compressed_spectrum\.ave\.pth or .* no \.pth files"):
        Experiment(experiment).weights()


def test_state_leaves_out_the_distillation(experiment, network):
    state = Experiment(experiment).network_state()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_missing_and_unexpected_keys_are_named(experiment, network):
    state = {f"separator.net.{key}": value for key, value in network.state_dict().items()}
    state["separator.net.renamed"] = state.pop("separator.net.dual_path.gain_time")
    torch.save(state, experiment / "latest.pth")
    with pytest.raises(UserError, match=r"latest\.pth.*dual_path\.gain_time.*separator\.net\.renamed"):
        Experiment(experiment).network_state()


def test_weights_of_another_size_are_named(experiment):
    save_weights(make_network(channels=16), experiment / "latest.pth")
    with pytest.raises(UserError, match=r"latest\.pth does not fit .*: separator\.net\."):
        Experiment(experiment).network()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"encoder_conf": {"n_fft": 512, "hop_length": 256, "window": "hamming"}}, "window 'hamming'"),
        ({"encoder_conf": {"n_fft": 512, "hop_length": 256, "win_length": 400}}, "win_length 400"),
        ({"decoder_conf": {"n_fft": 512, "hop_length": 128}}, "differ in hop_length"),
        ({"model_conf": {"normalize_variance_per_ch": True}}, "normalize_variance_per_ch"),
        ({"separator": "tcn"}, "'tcn' is not dpdcrn"),
    ],
)
def test_what_needs_espnet_is_told(tmp_path, network, change, words):
    folder = make_experiment(tmp_path / "exp", network, **change)
    assert words in Experiment(folder).why_not_portable()
    with pytest.raises(UserError, match="without ESPnet"):
        Experiment(folder).build_network()


def test_wrong_options_of_the_network(tmp_path, network):
    folder = make_experiment(tmp_path / "exp", network, separator_conf={"preset": "dpdcrn_huge"})
    with pytest.raises(UserError, match=r"config\.yaml.*dpdcrn_huge"):
        Experiment(folder).network()


def test_preset_and_espnets_default_hop(tmp_path):
    net = build_dpdcrn("dpdcrn_tiny")
    conf = {"encoder_conf": {}, "decoder_conf": {}, "separator_conf": {"preset": "dpdcrn_tiny", "num_spk": 1}}
    experiment = Experiment(make_experiment(tmp_path / "exp", net, **conf))
    assert experiment.stft["hop_length"] == 128 and experiment.fs == 16000
    assert experiment.build_network().options.description() == {
        "channels": 16,
        "blocks": 1,
        "heads": 4,
        "input_channels": 2,
        "n_fft": 512,
        "ref_channel": 0,
    }


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "optim: adam"])
def test_config_that_is_none(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        Experiment(tmp_path)


def test_folder_without_config(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        Experiment(tmp_path)
    with pytest.raises(UserError, match="no such"):
        load_enhancer(tmp_path / "absent")


# --- waveforms -------------------------------------------------------------------------------------------------------


def test_equals_the_network_between_both_transforms(enhancer, network):
    wave = torch.from_numpy(noise(8192))
    spectrum = torch.stft(wave, 512, 256, window=torch.hann_window(512), return_complex=True).T
    with torch.no_grad():
        planes = network(torch.stack([spectrum.real, spectrum.imag])[None]).spectrum[0]
    enhanced = torch.complex(planes[0], planes[1]).T
    expected = torch.istft(enhanced, 512, 256, window=torch.hann_window(512), length=8192)
    torch.testing.assert_close(enhancer(wave, 16000), expected, atol=1e-6, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 3000), fs=st.sampled_from([8000, 16000, 22050, 44100, 48000]))
def test_any_length_and_rate_comes_back_as_long(enhancer, samples, fs):
    enhanced = enhancer(noise(samples), fs)
    assert enhanced.shape == (samples,) and enhanced.dtype == np.float32
    assert np.isfinite(enhanced).all()


@pytest.mark.parametrize("remainder", [0, 1, 128, 200, 250, 255])
def test_end_is_not_blown_up(enhancer, remainder):
    """The last samples must not be divided by the window's edge; without padding the factor exceeds 100."""
    wave = noise(20 * 256 + remainder)
    enhanced = enhancer(wave, 16000)
    assert np.abs(enhanced[-20:]).max() < 2 * np.abs(wave).max()


def test_silence_and_clipped_peaks_stay_finite(enhancer):
    assert np.abs(enhancer(np.zeros(5000, np.float32), 16000)).max() < 1e-4
    assert np.isfinite(enhancer(np.sign(noise(5000)), 16000)).all()


def test_kind_and_type_are_kept(enhancer):
    wave = noise(3000)
    as_array = enhancer(wave, 16000)
    assert enhancer(wave.astype(np.float64), 16000).dtype == np.float64
    tensor = enhancer(torch.from_numpy(wave).requires_grad_(), 16000)
    assert isinstance(tensor, torch.Tensor) and not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), as_array)
    np.testing.assert_array_equal(enhancer(wave[:, None], 16000), as_array)


def test_resampling_keeps_a_recordings_time_axis(network):
    """With a network that passes everything, a 48 kHz tone below 8 kHz comes back in place."""

    class PassThrough(torch.nn.Module):
        fs, num_mics = 16000, 1

        def enhance_window(self, speech):
            return speech

    tone = np.sin(2 * np.pi * 1000 * np.arange(48000) / 48000).astype(np.float32)
    found = Enhancer(PassThrough())(tone, 48000)
    np.testing.assert_allclose(found[2000:-2000], tone[2000:-2000], atol=1e-3)


@pytest.mark.parametrize("samples", [1, 7])
def test_short_inputs_are_padded_for_other_models(samples):
    class NeedsContext(torch.nn.Module):
        fs, num_mics = 16000, 1

        def enhance_window(self, speech):
            assert speech.shape[1] >= 1600
            return 2 * speech

    wave = noise(samples)
    np.testing.assert_array_equal(Enhancer(NeedsContext())(wave, 16000), 2 * wave)


def test_variance_normalisation_makes_it_scale_equivariant(network):
    normalising = Enhancer(WaveformDPDCRN(network, normalize_variance=True))
    wave = noise(6000)
    np.testing.assert_allclose(normalising(1000 * wave, 16000), 1000 * normalising(wave, 16000), rtol=1e-3, atol=1e-3)
    scaled = Enhancer(WaveformDPDCRN(network))(wave / wave.std(ddof=1), 16000) * wave.std(ddof=1)
    np.testing.assert_allclose(normalising(wave, 16000), scaled, atol=1e-5)
    assert np.isfinite(normalising(np.zeros(3000, np.float32), 16000)).all()


def test_several_microphones():
    network = make_network(num_mics=2)
    enhancer = Enhancer(WaveformDPDCRN(network))
    wave = noise(4000, 3)
    enhanced = enhancer(wave, 16000)
    assert enhanced.shape == (4000,)
    np.testing.assert_array_equal(enhanced, enhancer(wave[:, :2], 16000))  # the first microphones are used
    assert np.abs(enhanced - enhancer(wave[:, 1:], 16000)).max() > 1e-3
    with pytest.raises(UserError, match="needs 2 microphones, the waveform has 1"):
        enhancer(wave[:, 0], 16000)


def test_long_recordings_are_done_in_windows(enhancer):
    wave = noise(16000 * 3)
    whole = enhancer(wave, 16000)
    windowed = enhancer(wave, 16000, window_seconds=1.28, overlap_seconds=0.32)
    window = round(1.28 * 16000)
    first = enhancer(wave[:window], 16000)
    np.testing.assert_array_equal(windowed[: round(0.96 * 16000)], first[: round(0.96 * 16000)])
    assert whole.shape == windowed.shape and np.abs(whole - windowed).max() > 0


@pytest.mark.parametrize(
    "wave, words",
    [
        (np.zeros(0, np.float32), "not empty"),
        (np.zeros((2, 3, 4), np.float32), "expected"),
        (np.zeros((2, 3000), np.float32), "transpose"),
        (np.zeros(100, np.int16), "floating point"),
        (np.array([0, 0, np.nan, 0], np.float32), "sample 2"),
    ],
)
def test_bad_waveforms(enhancer, wave, words):
    with pytest.raises(UserError, match=words):
        enhancer(wave, 16000)


def test_bad_windows(enhancer):
    with pytest.raises(UserError, match="window_seconds 0"):
        enhancer(noise(100), 16000, window_seconds=0)
    with pytest.raises(UserError, match="overlap_seconds 3"):
        enhancer(noise(100), 16000, window_seconds=4, overlap_seconds=3)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_load_folder_or_file(experiment, network):
    other = make_network(seed=1)
    save_weights(other, experiment / "2epoch.pth")
    wave = noise(3000)
    expected = {name: Enhancer(WaveformDPDCRN(net))(wave, 16000) for name, net in (("a", network), ("b", other))}
    np.testing.assert_array_equal(load_enhancer(experiment)(wave, 16000), expected["a"])
    np.testing.assert_array_equal(load_enhancer(experiment / "2epoch.pth")(wave, 16000), expected["b"])
    np.testing.assert_array_equal(load_enhancer(experiment, weights="2epoch")(wave, 16000), expected["b"])


def test_normalisation_and_rate_come_from_the_configuration(tmp_path, network):
    folder = make_experiment(tmp_path / "exp", network, model_conf={"normalize_variance": True}, sample_rate=8000)
    enhancer = load_enhancer(folder)
    assert enhancer.fs == 8000 and enhancer.model.normalize_variance


@pytest.mark.parametrize(
    "config, fs, in_doubt",
    [
        ({"distill": {}, "sample_rate": 8000, "encoder_conf": {"default_fs": 16000}}, 8000, False),
        ({"sample_rate": 48000}, 48000, False),
        ({"sample_rate": 8000, "encoder_conf": {"default_fs": 16000}}, 16000, False),
        ({"encoder_conf": {"default_fs": 8000}}, 8000, False),
        ({"sample_rate": 8000}, 8000, True),
        ({}, 16000, True),
    ],
)
def test_rate_that_a_training_did_not_check_is_told(tmp_path, network, caplog, config, fs, in_doubt):
    """A training of this package states its rate; that of ESPnet writes 8000 where nobody gave one."""
    assert Experiment(make_experiment(tmp_path / "exp", network, **config)).fs == fs
    assert ("if it was trained on another rate, write that one as sample_rate" in caplog.text) == in_doubt


def test_another_separator_goes_through_espnet(tmp_path, network, monkeypatch):
    folder = make_experiment(tmp_path / "exp", network, separator="tcn")

    class Window(torch.nn.Module):
        fs, num_mics = 8000, 1

        def enhance_window(self, speech):
            return -speech

    calls = []
    loading = types.ModuleType("loading")
    loading.load_enhancer_from_experiment = lambda path, device: calls.append((path, device)) or Window()
    monkeypatch.setitem(sys.modules, "i2srf_kd.espnet.loading", loading)
    wave = noise(4000)
    np.testing.assert_array_equal(load_enhancer(folder)(wave, 8000), -wave)
    load_enhancer(folder / "latest.pth")
    assert calls == [(folder, "cpu"), (folder / "latest.pth", "cpu")]


@pytest.mark.slow
@pytest.mark.parametrize("num_mics", [1, 2])
def test_equals_espnet_at_inference(tmp_path, num_mics):
    """ESPnet's encoder, separator and decoder on whole hops, where its inverse STFT needs no padding."""
    pytest.importorskip("espnet2")
    from i2srf_kd.espnet.loading import load_enhancer_from_experiment

    network = make_network(num_mics=num_mics)
    folder = make_experiment(tmp_path / "exp", network, model_conf={"normalize_variance": True})
    wave = torch.from_numpy(noise(40 * 256, num_mics) if num_mics > 1 else noise(40 * 256))
    expected = load_enhancer_from_experiment(folder).enhance_window(wave[None])[0]
    torch.testing.assert_close(load_enhancer(folder)(wave, 16000), expected, atol=1e-6, rtol=1e-4)


def test_another_separator_without_espnet(tmp_path, network, monkeypatch):
    folder = make_experiment(tmp_path / "exp", network, separator="tcn")
    monkeypatch.setitem(sys.modules, "i2srf_kd.espnet.loading", None)
    with pytest.raises(UserError, match="needs ESPnet.*'tcn'"):
        load_enhancer(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(experiment):
    with pytest.raises(UserError, match="--device cuda: torch sees 0 GPUs"):
        load_enhancer(experiment, "cuda")
    with pytest.raises(UserError, match="no such device"):
        load_enhancer(experiment, "tpu9")


@pytest.mark.parametrize("preset, parameters, gmacs", [("student", 595494, 2.4), ("teacher", 3218118, 13.3)])
def test_complexity_of_the_published_networks(preset, parameters, gmacs):
    """The published MACs are met with the GRUs counted."""
    result = measure_complexity(Enhancer(WaveformDPDCRN(build_dpdcrn(f"dpdcrn_{preset}"))), seconds=2.0)
    assert result.parameters == parameters
    assert result.gmacs_per_second_with_recurrent == pytest.approx(gmacs, abs=0.05)
    assert result.gmacs_per_second < result.gmacs_per_second_with_recurrent


def test_complexity_file(experiment, tmp_path, network):
    write_complexity(experiment, tmp_path / "other")
    result = json.loads((tmp_path / "other" / "complexity.json").read_text())
    assert result["parameters"] == sum(p.numel() for p in network.parameters())
    assert result.keys() == {"parameters", "gmacs_per_second", "gmacs_per_second_with_recurrent", "seconds"}
