"""ONNX files against PyTorch, and the runtime without PyTorch."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from export.trained import SMALL, make_experiment, make_network
from waves import noise

from i2srf_kd.export import onnx as onnx_export
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.export.onnx import TOLERANCE, check_onnx, export_onnx
from i2srf_kd.export.onnx_runtime import NumpySTFT, OnnxEnhancer
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module", params=[1, 2], ids=["1 microphone", "2 microphones"])
def exported(request, tmp_path_factory):
    """An experiment and its export; with two microphones the variance is normalised too."""
    folder = tmp_path_factory.mktemp("onnx")
    network = make_network(num_mics=request.param)
    conf = {"normalize_variance": request.param == 2}
    experiment = make_experiment(folder / "exp", network, model_conf=conf)
    return experiment, export_bundle(experiment, folder / "model"), network


def test_error_is_measured_and_small(exported):
    _, report, network = exported
    assert 0 < report.onnx_error <= 1e-4
    assert f"{report.onnx_error:.1e} of the output's peak" in (report.path / "README.md").read_text()
    assert check_onnx(network, report.path / "model.onnx", frames=[3, 90]) <= 1e-4


def test_frames_and_batch_are_dynamic(exported):
    _, report, network = exported
    session = onnxruntime.InferenceSession(str(report.path / "model.onnx"))
    for batch, frames in ((1, 1), (1, 55), (3, 20)):
        mixture = noise(batch, network.input_channels, frames, 257)
        with torch.no_grad():
            expected = network(torch.from_numpy(mixture)).spectrum.numpy()
        np.testing.assert_allclose(session.run(None, {"mixture": mixture})[0], expected, atol=1e-4 * expected.max())


def test_file_is_valid_and_describes_itself(exported):
    _, report, network = exported
    model = onnx.load(str(report.path / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 17
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["weights_sha256"] == report.sha256
    assert (entries["fs"], entries["n_fft"], entries["hop_length"]) == ("16000", "512", "256")


@pytest.mark.parametrize("samples", [1, 300, 5000, 16000 + 255])
def test_runtime_equals_torch(exported, samples):
    experiment, report, network = exported
    mics = network.input_channels // 2
    wave = noise(samples, mics) if mics > 1 else noise(samples)
    expected = load_enhancer(experiment)(wave, 16000)
    found = OnnxEnhancer(report.path / "model.onnx", num_threads=1)(wave, 16000)
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("n_fft, hop, samples", [(512, 256, 5120), (512, 128, 3001), (320, 160, 400)])
def test_numpy_transforms_equal_torchs(n_fft, hop, samples):
    wave = noise(samples, 2)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    spectrum = torch.stft(torch.from_numpy(wave.T.astype(np.float64)), n_fft, hop, window=window, return_complex=True)
    expected = torch.view_as_real(spectrum).permute(0, 3, 2, 1).reshape(1, 4, -1, n_fft // 2 + 1)
    transform = NumpySTFT(n_fft, hop)
    planes = transform.forward(wave)
    np.testing.assert_allclose(planes, expected, atol=1e-5)
    altered = planes[:, :2] * np.linspace(0.5, 1, n_fft // 2 + 1, dtype=np.float32)
    complex_planes = torch.complex(*torch.from_numpy(altered[0].astype(np.float64))).T
    back = torch.istft(complex_planes, n_fft, hop, window=window, length=samples)
    np.testing.assert_allclose(transform.inverse(altered, samples), back, atol=1e-9)


def test_real_speech(exported, audio_dir):
    """Close to the float64 network, for random weights too; what a loaded export runs by default."""
    experiment, report, network = exported
    wave, fs = soundfile.read(sorted((audio_dir / "test" / "noisy").glob("*.wav"))[0], dtype="float32")
    mics = network.input_channels // 2
    wave = np.stack([wave] * mics, axis=1) if mics > 1 else wave
    found = load_enhancer(report.path)
    assert found.model.onnx is not None and load_enhancer(experiment).model.onnx is None
    exact = load_enhancer(report.path, runtime="torch")
    expected = exact.double().model.enhance_window(torch.from_numpy(wave)[None].double())[0].numpy()
    np.testing.assert_allclose(found(wave, fs), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("slope", [0.25, -0.5, 1.5])
def test_any_slope_of_the_activations(tmp_path, slope):
    network = make_network()
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.constant_(module.weight, slope)
    export_onnx(network, tmp_path / "model.onnx", {})
    # A form that does not hold for a slope is wrong by the order of the output; rounding differs between processors.
    assert check_onnx(network, tmp_path / "model.onnx", frames=[20]) < TOLERANCE


@pytest.fixture(scope="module")
def with_int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    experiment = make_experiment(folder / "exp", make_network(seed=3))
    return export_bundle(experiment, folder / "model", calibration=[noise(16000), noise(8000, seed=1)]).path


def test_int8_is_close_and_smaller(with_int8):
    wave = noise(16000, seed=2)
    found, expected = (load_enhancer(with_int8, runtime=name)(wave, 16000) for name in ("int8", "torch"))
    error = np.sum((found - expected) ** 2) / np.sum(expected**2)
    assert 1e-7 < error < 1e-2  # 20 dB, and it is not the float32 file
    model = onnx.load(str(with_int8 / "model_int8.onnx"))
    assert [node.op_type for node in model.graph.node].count("QLinearConv") == 8


def test_int8_file_does_what_its_form_says(with_int8, tmp_path):
    """onnxruntime rounds as the arithmetic written in PyTorch does, but for ties."""
    from i2srf_kd.export.int8 import calibrate, int8_form
    from i2srf_kd.export.onnx import export_int8_onnx

    network, spectrum = make_network(), torch.from_numpy(noise(1, 2, 60, 257))
    export_int8_onnx(network, tmp_path / "int8.onnx", {}, [spectrum])
    with torch.no_grad():
        form = int8_form(network, calibrate(network, [spectrum]))(spectrum).spectrum.numpy()
    found = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx")).run(None, {"mixture": spectrum.numpy()})[0]
    assert np.sum((found - form) ** 2) < 1e-3 * np.sum(form**2)


def test_int8_products_cannot_saturate_on_any_processor(with_int8):
    """Where there is no VNNI, onnxruntime adds two products of an activation and a weight in 16 bits."""
    model = onnx.load(str(with_int8 / "model_int8.onnx"))
    nodes = model.graph.node
    constants = {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    convolutions = [node for node in nodes if node.op_type == "QLinearConv"]
    weights = [onnx.numpy_helper.to_array(constants[node.input[3]]) for node in convolutions]
    assert len(weights) == 8 and all(weight.dtype == np.int8 for weight in weights)
    largest = max(np.abs(weight.astype(int)).max() for weight in weights)
    assert 2 * 255 * largest <= np.iinfo(np.int16).max
    assert all(np.abs(weight.astype(int)).max() > largest // 2 for weight in weights)  # the range is used


def test_runtimes_that_are_not_there(exported, with_int8, tmp_path):
    experiment, report, _ = exported
    with pytest.raises(UserError, match="has no model_int8.onnx: export the model with --int8"):
        load_enhancer(report.path, runtime="int8")
    with pytest.raises(UserError, match="has no model.onnx"):
        load_enhancer(experiment, runtime="onnx")
    with pytest.raises(UserError, match="choose one of auto, torch"):
        load_enhancer(report.path, runtime="tensorrt")
    moved = tmp_path / "moved"
    shutil.copytree(with_int8, moved)
    shutil.copyfile(report.path / "model.onnx", moved / "model.onnx")
    with pytest.raises(UserError, match="made of other weights"):
        load_enhancer(moved)


def test_int8_needs_onnx_and_a_model_that_is_not_causal(tmp_path):
    network = make_network(causal=True)
    causal = make_experiment(tmp_path / "exp", network, separator_conf={**SMALL, "causal": True})
    with pytest.raises(UserError, match="--int8 is for models that are not causal"):
        export_bundle(causal, tmp_path / "model", calibration=[noise(8000)])
    with pytest.raises(UserError, match="leave out --onnx false"):
        export_bundle(causal, tmp_path / "model", onnx=False, calibration=[noise(8000)])


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["i2srf_kd"] = None  # importing them fails, as where they are not installed
import numpy as np
from onnx_enhancer import OnnxEnhancer
wave = np.load(sys.argv[1])
np.save(sys.argv[2], OnnxEnhancer("model.onnx")(wave, 16000))
assert sys.modules["torch"] is sys.modules["i2srf_kd"] is None
"""


def test_exported_folder_works_without_torch_and_without_the_package(exported, tmp_path, monkeypatch):
    experiment, report, network = exported
    wave = noise(4000, network.input_channels // 2)
    np.save(tmp_path / "in.npy", wave)
    (tmp_path / "run.py").write_text(_WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(report.path))
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    subprocess.run(command, check=True, cwd=report.path)
    expected = load_enhancer(experiment)(wave, 16000)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4 * np.abs(expected).max())


def test_wrong_inputs(exported, tmp_path):
    _, report, network = exported
    enhancer = OnnxEnhancer(report.path / "model.onnx")
    mics = network.input_channels // 2
    with pytest.raises(UserError, match="works at 16000 Hz, the waveform has 8000"):
        enhancer(noise(100, mics), 8000)
    with pytest.raises(UserError, match="floating-point"):
        enhancer(np.zeros((100, mics), np.int16), 16000)
    with pytest.raises(UserError, match="NaN"):
        enhancer(np.full((100, mics), np.nan), 16000)
    if mics > 1:
        with pytest.raises(UserError, match="needs 2 microphones"):
            enhancer(noise(100), 16000)
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"model\.onnx: not a readable ONNX model"):
        OnnxEnhancer(tmp_path / "model.onnx")


def test_file_without_description(exported, tmp_path):
    _, report, _ = exported
    model = onnx.load(str(report.path / "model.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match="lacks the entry 'fs'"):
        OnnxEnhancer(tmp_path / "model.onnx")


def test_a_file_that_disagrees_is_refused(tmp_path, monkeypatch):
    """Weights that are not those of the network must be noticed, and nothing be left behind."""
    experiment = make_experiment(tmp_path / "exp", make_network())
    other = make_network(seed=5)
    monkeypatch.setattr("i2srf_kd.export.bundle.export_onnx", lambda _, path, info: export_onnx(other, path, info))
    with pytest.raises(UserError, match="the ONNX file differs"):
        export_bundle(experiment, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["exp"]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "surely_not_installed"))
    with pytest.raises(UserError, match="needs surely_not_installed.*--onnx false"):
        export_onnx(make_network(), tmp_path / "model.onnx", {})
