"""The exported folder of a causal model, and its streaming ONNX file without PyTorch."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from export.trained import SMALL, make_experiment, make_network
from waves import noise

from i2srf_kd.export import onnx_stream
from i2srf_kd.export.bundle import export_bundle
from i2srf_kd.export.onnx import check_stream_onnx, export_stream_onnx
from i2srf_kd.export.onnx_stream import OnnxStep, OnnxStreamingEnhancer, OnnxStreamNetwork
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CAUSAL = {"causal": True, "attention_window": 12}
STREAM_FILES = {"model_stream.onnx", "onnx_stream.py", "spectral_stream.py"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A causal model for two microphones and its export."""
    folder = tmp_path_factory.mktemp("stream")
    network = make_network(num_mics=2, **CAUSAL)
    experiment = make_experiment(folder / "exp", network, separator_conf={**SMALL, "num_mics": 2, **CAUSAL})
    return experiment, export_bundle(experiment, folder / "model"), network


def test_folder_of_a_causal_model(exported):
    experiment, report, network = exported
    assert {path.name for path in report.path.iterdir()} >= STREAM_FILES
    assert yaml.safe_load((report.path / "config.yaml").read_text())["network"]["attention_window"] == 12
    card = (report.path / "README.md").read_text()
    assert "causal: 512 samples (32 ms)" in card and "OnnxStreamingEnhancer" in card and "{" not in card
    assert 0 < check_stream_onnx(network, report.path / "model_stream.onnx") <= report.onnx_error <= 1e-4
    wave = noise(3000, 2)
    expected = load_enhancer(experiment)(wave, 16000)
    np.testing.assert_array_equal(load_enhancer(report.path, runtime="torch")(wave, 16000), expected)
    np.testing.assert_allclose(load_enhancer(report.path)(wave, 16000), expected, rtol=0, atol=1e-6)


def test_a_loaded_export_streams_with_onnxruntime(exported):
    report = exported[1]
    enhancer = load_enhancer(report.path)
    assert isinstance(enhancer.stream(), OnnxStreamingEnhancer)
    assert not isinstance(load_enhancer(report.path, runtime="torch").stream(), OnnxStreamingEnhancer)


def test_single_frames_have_a_session_whose_length_is_known(exported):
    network = OnnxStreamNetwork(exported[1].path / "model_stream.onnx")
    sizes = {frames: network.session(frames).get_inputs()[0].shape for frames in (1, 2)}
    assert sizes[1] == [1, 4, 1, 257] and sizes[2] == [1, 4, "frames", 257]
    assert network.session(1) is network.session(1)


def test_streams_side_by_side_share_the_network(exported, monkeypatch):
    path, loads = exported[1].path / "model_stream.onnx", []
    plain = onnx_stream._load
    monkeypatch.setattr(onnx_stream, "_load", lambda *args, **options: loads.append(args) or plain(*args, **options))
    wave = noise(1000, 2)
    expected = OnnxStreamingEnhancer(path)(wave)
    found = OnnxStreamingEnhancer(path, streams=3)(np.tile(wave, 3))
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=1))
    assert len(loads) == 4


def test_state_has_fixed_shapes_in_the_file(exported):
    _, report, _ = exported
    graph = onnx.load(str(report.path / "model_stream.onnx")).graph

    def shapes(entries, prefix):
        found = {}
        for entry in entries:
            if entry.name.startswith(prefix):
                found[entry.name[len(prefix) :]] = [d.dim_value for d in entry.type.tensor_type.shape.dim]
        return found

    before, after = shapes(graph.input, "state_"), shapes(graph.output, "next_state_")
    assert before == after and all(0 not in shape for shape in before.values())


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["i2srf_kd"] = None  # importing them fails, as where they are not installed
import numpy as np
from onnx_stream import OnnxStreamingEnhancer
stream, wave = OnnxStreamingEnhancer("model_stream.onnx"), np.load(sys.argv[1])
np.save(sys.argv[2], np.concatenate([*(stream(wave[i : i + 100]) for i in range(0, len(wave), 100)), stream.flush()]))
"""


def test_exported_folder_streams_without_torch_and_without_the_package(exported, tmp_path, monkeypatch):
    experiment, report, _ = exported
    wave = noise(4000, 2)
    np.save(tmp_path / "in.npy", wave)
    (tmp_path / "run.py").write_text(_WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(report.path))
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    subprocess.run(command, check=True, cwd=report.path)
    expected = load_enhancer(experiment)(wave, 16000)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=0, atol=1e-5)


def test_wrong_files(exported, tmp_path):
    _, report, network = exported
    with pytest.raises(UserError, match="has no state.*model_stream.onnx"):
        OnnxStep(report.path / "model.onnx")
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(UserError, match="not a readable ONNX model"):
        OnnxStreamingEnhancer(tmp_path / "model.onnx")
    export_stream_onnx(network, tmp_path / "bare.onnx", {"fs": 16000})
    with pytest.raises(UserError, match="lacks the entry 'n_fft'"):
        OnnxStreamingEnhancer(tmp_path / "bare.onnx")


def test_a_model_that_normalises_recordings_has_no_stream(tmp_path):
    experiment = make_experiment(
        tmp_path / "exp",
        make_network(**CAUSAL),
        separator_conf={**SMALL, **CAUSAL},
        model_conf={"normalize_variance": True},
    )
    report = export_bundle(experiment, tmp_path / "model")
    assert not STREAM_FILES & {path.name for path in report.path.iterdir()}
