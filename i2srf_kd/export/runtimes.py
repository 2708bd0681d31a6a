"""Which of an exported folder's files runs: in PyTorch, in onnxruntime, or there with 8-bit convolutions."""

import importlib.util
from pathlib import Path
from typing import Mapping, Optional

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

ONNX, STREAM_ONNX, INT8_ONNX = "model.onnx", "model_stream.onnx", "model_int8.onnx"
RUNTIMES = ("auto", "torch", "onnx", "int8")
WHOLE: Mapping[str, str] = {"onnx": ONNX, "int8": INT8_ONNX}
"""Files for recordings in one piece, by runtime."""
STREAM: Mapping[str, str] = {"onnx": STREAM_ONNX}
"""Files for streams, by runtime."""

_REMEDY = {
    ONNX: "export the model with --onnx true",
    STREAM_ONNX: "export a causal model",
    INT8_ONNX: "export the model with --int8 DATA_DIR",
}


def has_onnxruntime() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def onnx_file(
    model: PathLike, runtime: str, device: str, weights: Optional[str], files: Mapping[str, str]
) -> Optional[Path]:
    """The ONNX file to run, or None for PyTorch.

    Args:
        model: an exported folder; any other path has no such files.
        runtime: one of :data:`RUNTIMES`; ``auto``: ``onnx`` on the CPU where the folder has the file and onnxruntime is
            installed. It never chooses ``int8``, whose output differs.
        device: where the model is to run.
        weights: name of a file of weights, which only PyTorch can choose.
        files: :data:`WHOLE` or :data:`STREAM`.

    Raises:
        UserError: the runtime that was asked for is not available.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"--runtime {runtime}: choose one of {', '.join(RUNTIMES)}")
    if runtime == "torch":
        return None
    if runtime == "auto":
        file = Path(model) / files["onnx"]
        return file if file.is_file() and device == "cpu" and weights is None and has_onnxruntime() else None
    if runtime not in files:
        raise UserError(f"--runtime {runtime} cannot run on a stream: leave out --stream, or give --runtime onnx")
    file = Path(model) / files[runtime]
    if not file.is_file():
        raise UserError(f"{model} has no {file.name}: {_REMEDY[file.name]}, or give --runtime torch")
    if device != "cpu" or weights is not None:
        raise UserError(
            f"--runtime {runtime} knows neither --device nor --model_file: leave them out, or give --runtime torch"
        )
    if not has_onnxruntime():
        raise UserError(f"--runtime {runtime} needs onnxruntime: pip install onnxruntime, or give --runtime torch")
    return file


def check_weights(file: Path, made_of: Optional[str], checksum: Optional[str]) -> None:
    """Raise UserError for an ONNX file that was made of other weights than those beside it.

    Args:
        made_of: SHA-256 of the weights by the file's metadata.
        checksum: the same by the folder's configuration.
    """
    if made_of != checksum:
        raise UserError(f"{file} was made of other weights than {file.parent / 'weights.pth'}: export the model again")
