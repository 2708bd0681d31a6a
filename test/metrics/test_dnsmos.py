"""The DNSMOS procedure with a stand-in model of the same interface."""

import numpy as np
import pytest

from i2srf_kd.metrics.dnsmos import DNSMOS
from i2srf_kd.system.errors import UserError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def _save_model(path, input_name="input_1"):
    """A model whose three outputs are the mean of the samples, twice it and three times it."""
    helper, double = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", [input_name], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "factors"], ["scores"]),
    ]
    factors = helper.make_tensor("factors", double, [1, 3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info(input_name, double, ["batch", 144160])],
        [helper.make_tensor_value_info("scores", double, ["batch", 3])],
        [factors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def test_polynomials_and_repetition_of_short_audio(tmp_path):
    scores = DNSMOS(_save_model(tmp_path / "m.onnx"))(np.full(5000, 0.5), 16000)
    assert scores["dnsmos_sig"] == pytest.approx(-0.08397278 * 0.25 + 1.22083953 * 0.5 + 0.0052439, abs=1e-6)
    assert scores["dnsmos_bak"] == pytest.approx(-0.13166888 + 1.60915514 - 0.39604546, abs=1e-6)
    assert scores["dnsmos_ovrl"] == pytest.approx(-0.06766283 * 2.25 + 1.11546468 * 1.5 + 0.04602535, abs=1e-6)


def test_segments_start_every_second(tmp_path):
    audio = np.repeat(np.arange(12) / 16, 16000)  # multiples of 1/16: their float32 sums are exact
    means = [np.mean(audio[s * 16000 : s * 16000 + 144160]) for s in range(3)]
    expected = np.mean([-0.08397278 * m**2 + 1.22083953 * m + 0.0052439 for m in means])
    scores = DNSMOS(_save_model(tmp_path / "m.onnx"))(audio, 16000)
    assert scores["dnsmos_sig"] == pytest.approx(expected, abs=1e-6)


def test_wrong_files_and_rates(tmp_path):
    with pytest.raises(UserError, match="absent.onnx: no such file"):
        DNSMOS(tmp_path / "absent.onnx")
    (tmp_path / "page.onnx").write_text("<html>")
    with pytest.raises(UserError, match="page.onnx: onnxruntime cannot load it"):
        DNSMOS(tmp_path / "page.onnx")
    with pytest.raises(UserError, match="not the P.835 model"):
        DNSMOS(_save_model(tmp_path / "other.onnx", "waveform"))
    with pytest.raises(ValueError, match="needs 16000 Hz but the audio has 8000 Hz"):
        DNSMOS(_save_model(tmp_path / "m.onnx"))(np.ones(10), 8000)
