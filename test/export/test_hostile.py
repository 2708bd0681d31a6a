"""Folders made by somebody who means harm: using a model runs nothing of them, and reads nothing outside."""

import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import soundfile
import torch
import yaml
from export.trained import make_experiment, make_network

from i2srf_kd.bin import corpus_stats, enhance, enhance_set, examples, export, report, score
from i2srf_kd.export.bundle import ONNX_CODE, export_bundle
from i2srf_kd.export.onnx import missing_packages
from i2srf_kd.export.onnx_runtime import OnnxNetwork
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.fingerprints import sha256_of
from i2srf_kd.training.checkpoint import CHECKPOINT, load_training_state, load_weights

needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason="onnx or onnxruntime is not installed")


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture()
def experiment(tmp_path: Path) -> Path:
    return make_experiment(tmp_path / "exp", make_network())


@pytest.fixture()
def harm(tmp_path: Path) -> Path:
    """What hostile code makes when it runs."""
    return tmp_path / "harm"


def change_config(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


@pytest.mark.parametrize("load", [load_weights, lambda path: load_enhancer(path.parent)], ids=["file", "folder"])
def test_weights_run_nothing(experiment: Path, harm: Path, load: Callable) -> None:
    torch.save({"model": Touch(harm)}, experiment / "latest.pth")
    with pytest.raises(UserError, match="latest.pth is no file of weights"):
        load(experiment / "latest.pth")
    assert not harm.exists()


def test_training_states_run_nothing(tmp_path: Path, harm: Path) -> None:
    torch.save({"model": Touch(harm)}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="cannot resume"):
        load_training_state(tmp_path)
    assert not harm.exists()


def test_exported_weights_run_nothing(experiment: Path, tmp_path: Path, harm: Path) -> None:
    folder = export_bundle(experiment, tmp_path / "model", onnx=False).path
    before = sha256_of(folder / "weights.pth")
    torch.save(Touch(harm), folder / "weights.pth")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(before, sha256_of(folder / "weights.pth")))
    with pytest.raises(UserError, match="weights.pth is no file of weights"):
        load_enhancer(folder)
    assert not harm.exists()


def test_configurations_run_nothing(experiment: Path, harm: Path) -> None:
    with (experiment / "config.yaml").open("a") as file:
        file.write(f"harm: !!python/object/apply:os.mkdir ['{harm}']\n")
    with pytest.raises(UserError, match="config.yaml"):
        load_enhancer(experiment)
    assert not harm.exists()


def test_methods_of_the_training_are_not_imported_by_use(experiment: Path, tmp_path: Path, harm: Path) -> None:
    (experiment / "own.py").write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    entries = [str(experiment / "own.py"), "own.py"]
    change_config(experiment, distill={"method": "own", "import": entries}, **{"import": entries})
    soundfile.write(tmp_path / "x.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    data, enhanced = tmp_path / "data", experiment / "enhanced_test"
    data.mkdir()
    for table in ("wav", "spk1"):
        (data / f"{table}.scp").write_text(f"x {tmp_path / 'x.wav'}\n")
    assert enhance.main([str(experiment), str(tmp_path / "x.wav"), "-o", str(tmp_path / "out")]) == 0
    assert enhance_set.main([str(experiment), str(data), str(enhanced)]) == 0
    metrics = ["--metrics", "si_sdr"]
    assert score.main([str(data), str(enhanced / "wav.scp"), str(experiment / "scored_test"), *metrics]) == 0
    assert export.main([str(experiment), "-o", str(tmp_path / "model"), "--onnx", "false"]) == 0
    (experiment / "metrics.jsonl").write_text('{"epoch": 1, "phase": "train", "loss": 1.0}\n')
    assert report.main([str(experiment), "-o", str(tmp_path / "report.html")]) == 0
    load_enhancer(experiment)
    assert not harm.exists()


@pytest.mark.parametrize(
    "command",
    [
        lambda model, data, out: enhance_set.main([str(model), str(data), out]),
        lambda model, data, out: score.main([str(data), str(data / "wav.scp"), out, "--metrics", "si_sdr"]),
        lambda model, data, out: corpus_stats.main(
            ["--dump_dir", str(data.parent), "--sets", "data", "--out_dir", out]
        ),
        lambda model, data, out: examples.main([str(data), "-o", out]),
    ],
    ids=["enhance_set", "score", "corpus_stats", "examples"],
)
def test_commands_in_tables_are_run_by_formatting_alone(
    experiment: Path, tmp_path: Path, harm: Path, command: Callable
) -> None:
    (tmp_path / "data").mkdir()
    for table in ("wav", "spk1"):
        (tmp_path / "data" / f"{table}.scp").write_text(f"utt mkdir '{harm}' |\n")
    with pytest.raises(UserError, match="commands"):
        command(experiment, tmp_path / "data", str(tmp_path / "out"))
    assert not harm.exists()


@needs_onnx
def test_programs_in_an_exported_folder_are_not_run(experiment: Path, tmp_path: Path, harm: Path) -> None:
    folder = export_bundle(experiment, tmp_path / "model", onnx=True).path
    assert (folder / ONNX_CODE).exists()
    for name in (ONNX_CODE, "onnx_stream.py", "spectral_stream.py", "onnxruntime.py", "__init__.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    assert load_enhancer(folder, runtime="onnx")(np.zeros(1000, np.float32), 16000).shape == (1000,)
    assert not harm.exists()


@needs_onnx
@pytest.mark.parametrize("place", ["../secret.bin", "{absolute}", "link.bin"])
def test_onnx_files_read_nothing_outside(tmp_path: Path, place: str) -> None:
    import onnx

    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to("../secret.bin")
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place.format(absolute=tmp_path / "secret.bin")), ("length", "16")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in ("mixture", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["mixture", "w"], ["y"])], "graph", ends[:1], ends[1:], [weight]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="model.onnx: not a readable ONNX model .*xternal data"):
        OnnxNetwork(tmp_path / "model" / "model.onnx")
