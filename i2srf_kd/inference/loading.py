"""From the folder of a trained model to the model that a user holds."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import torch

from i2srf_kd import models
from i2srf_kd.audio.level import kept_share
from i2srf_kd.export.bundle import is_bundle, load_bundle_model
from i2srf_kd.export.runtimes import WHOLE, onnx_file
from i2srf_kd.inference.enhancer import Enhancer, measure_complexity
from i2srf_kd.inference.experiment import Experiment, split_model_path
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, write_text


def check_device(device: str) -> torch.device:
    """A device by name.

    Raises:
        UserError: torch does not know it, or it is not in this machine.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: no such device; use cpu or cuda") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise UserError(f"--device {device}: torch sees {count} GPUs on this machine; use --device cpu")
    return chosen


def load_enhancer(
    path: PathLike = models.DEFAULT,
    device: str = "cpu",
    weights: Optional[str] = None,
    runtime: str = "auto",
    strength: float = 1.0,
    max_attenuation_db: Optional[float] = None,
) -> Enhancer:
    """Load a trained model for use.

    Args:
        path: an experiment folder, a file of weights in one, a model packed by ESPnet (zip or folder), a folder that
            ``i2srf_kd.bin.export`` wrote, or the name of a model that comes with the package
            (:func:`i2srf_kd.models.names`).
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        weights: name of a file of weights in an experiment folder (default: :meth:`Experiment.weights`).
        runtime: ``torch``; ``onnx`` or ``int8`` for the files of an exported folder, with as many threads as torch has
            at that time; ``auto``: ``onnx`` on the CPU where the folder has it and onnxruntime is installed, else
            ``torch``.
        strength, max_attenuation_db: how much of the mixture stays, see :func:`i2srf_kd.audio.level.kept_share`.

    Raises:
        UserError: something is absent, damaged or does not fit together.
    """
    kept = kept_share(strength, max_attenuation_db)
    chosen = check_device(device)
    folder, name = split_model_path(path)
    if is_bundle(folder):
        if weights is not None:
            raise UserError(f"{folder} is an exported model with one file of weights; {weights} cannot be chosen")
        model: Any = load_bundle_model(folder, runtime, device)
    else:
        onnx_file(folder, runtime, device, weights or name, WHOLE)  # which an experiment has not
        model = _load_from_experiment(Experiment(folder), weights or name, device)
    enhancer = Enhancer(model).to(chosen).eval()
    enhancer.kept = kept
    return enhancer


def _load_from_experiment(experiment: Experiment, weights: Optional[str], device: str) -> Any:
    if experiment.why_not_portable() is None:
        return WaveformDPDCRN(
            experiment.network(weights), experiment.fs, experiment.stft["hop_length"], experiment.normalize_variance
        )
    try:
        loading = import_module("i2srf_kd.espnet.loading")
    except ImportError as error:
        raise UserError(
            f"{experiment.path} needs ESPnet ({experiment.why_not_portable()}), which cannot be imported ({error}); "
            "install it with pip install i2srf_kd[espnet]"
        ) from None
    path = experiment.path if weights is None else experiment.weights(weights)
    return loading.load_enhancer_from_experiment(path, device)


def write_complexity(model: PathLike, out_dir: Path) -> None:
    """Write ``complexity.json``, with the fields of :class:`i2srf_kd.metrics.complexity.Complexity` as keys.

    Args:
        model: as for :func:`load_enhancer`.
        out_dir: where to write.
    """
    result = measure_complexity(load_enhancer(model, runtime="torch"))._asdict()
    write_text(out_dir / "complexity.json", json.dumps(result, indent=2) + "\n")
