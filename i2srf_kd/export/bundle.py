"""A trained model as a folder of its own, to be copied and given away.

    config.yaml        network, STFT, sampling rate, normalisation, checksum of the weights
    weights.pth        plain tensors, loaded without running code from the file
    model.onnx         the network for other runtimes; onnx_enhancer.py beside it needs numpy and onnxruntime only
    model_int8.onnx    the network with 8-bit convolutions, if asked for
    model_stream.onnx  one step of it with its state, of a causal model; onnx_stream.py and spectral_stream.py run it
    complexity.json    parameters and MACs
    README.md          model card

Neither ESPnet nor a teacher nor the distillation is needed to use it.
"""

import contextlib
import json
import shutil
import uuid
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
import yaml

from i2srf_kd import __version__
from i2srf_kd.audio import spectral_stream
from i2srf_kd.export import onnx_runtime, onnx_stream
from i2srf_kd.export.model_card import model_card
from i2srf_kd.export.onnx import (
    TOLERANCE,
    check_onnx,
    check_stream_onnx,
    export_int8_onnx,
    export_onnx,
    export_stream_onnx,
)
from i2srf_kd.export.runtimes import INT8_ONNX, ONNX, STREAM_ONNX, WHOLE, check_weights, onnx_file
from i2srf_kd.inference.enhancer import Enhancer, measure_complexity
from i2srf_kd.inference.experiment import CONFIG, EXPORTED, EXPORTED_WEIGHTS, Experiment, split_model_path
from i2srf_kd.inference.waveform import OnnxFunction, WaveformDPDCRN
from i2srf_kd.metrics.complexity import Complexity
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, write_text
from i2srf_kd.system.fingerprints import sha256_of
from i2srf_kd.training.checkpoint import check_key_coverage, load_weights, torch_writing

FORMAT, WEIGHTS = EXPORTED, EXPORTED_WEIGHTS
VERSION = 1
ONNX_CODE = "onnx_enhancer.py"
CALIBRATION_UTTERANCES, CALIBRATION_SECONDS = 32, 10.0
"""Of an utterance, its beginning."""


class ExportReport(NamedTuple):
    """What was exported."""

    path: Path
    weights: Path
    sha256: str
    complexity: Complexity
    onnx_error: Optional[float]
    """Largest error of the ONNX files relative to the peak, without the 8-bit one; None without ONNX."""


def is_bundle(folder: PathLike) -> bool:
    """Whether a folder was written by :func:`export_bundle`."""
    config = Path(folder) / CONFIG
    return config.is_file() and read_yaml(config).get("format") == FORMAT


def export_bundle(
    model: PathLike,
    out_dir: PathLike,
    weights: Optional[str] = None,
    onnx: bool = True,
    training_data: str = "not stated",
    licence: str = "not stated",
    calibration: Sequence[np.ndarray] = (),
    scores: str = "",
) -> ExportReport:
    """Write the folder; an older export of the same name is replaced as a whole once the new one is complete.

    Args:
        model: experiment folder, or a file of weights in one.
        out_dir: folder to be written.
        weights: name of a file of weights (default: :meth:`Experiment.weights`).
        onnx: also write and check ``model.onnx`` and, for a causal model, ``model_stream.onnx``.
        training_data: line for the model card.
        licence: of the weights, line for the model card.
        calibration: mixtures ``(samples,)`` or ``(samples, microphones)`` at the model's rate. Where there are any,
            also write ``model_int8.onnx``, with ranges of activations that are measured on them.
        scores: section of the model card, see :func:`i2srf_kd.export.model_card.scores_section`.

    Raises:
        UserError: the model cannot be exported, ``out_dir`` is something else, or the ONNX file does not agree.
    """
    folder, name = split_model_path(model)
    experiment = Experiment(folder)
    chosen = experiment.weights(weights or name)
    network = experiment.network(chosen.name)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "network": network.options.description(),
        "hop_length": int(experiment.stft["hop_length"]),
        "fs": experiment.fs,
        "normalize_variance": experiment.normalize_variance,
    }
    error = None
    if calibration and not onnx:
        raise UserError("an 8-bit model is an ONNX file: leave out --onnx false, and install onnx and onnxruntime")
    with _replaced_folder(Path(out_dir)) as temporary, torch_writing(Path(out_dir)):
        torch.save(network.state_dict(), temporary / WEIGHTS)
        config["weights_sha256"] = sha256_of(temporary / WEIGHTS)
        write_text(temporary / CONFIG, yaml.safe_dump(config, sort_keys=False))
        complexity = measure_complexity(Enhancer(load_bundle_model(temporary)))
        write_text(temporary / "complexity.json", json.dumps(complexity._asdict(), indent=2) + "\n")
        if onnx:
            error = _write_onnx(network, config, temporary)
            if calibration:
                _write_int8(network, config, temporary, calibration)
        facts = {"training_data": training_data, "licence": licence, "source": f"{folder.name}/{chosen.name}"}
        facts["scores"] = scores
        write_text(temporary / "README.md", model_card(config, complexity, error, _can_stream(config), facts))
    return ExportReport(Path(out_dir), chosen, str(config["weights_sha256"]), complexity, error)


def _write_int8(network: DPDCRN, config: Dict[str, Any], folder: Path, calibration: Sequence[np.ndarray]) -> None:
    model = WaveformDPDCRN(network, config["fs"], config["hop_length"], config["normalize_variance"]).eval()
    spectra: List[torch.Tensor] = []

    def listen(planes: np.ndarray) -> np.ndarray:
        spectra.append(torch.from_numpy(planes))
        return planes[:, :2]

    model.onnx = listen
    for wave in calibration:
        Enhancer(model).enhance_array(wave, model.fs)
    export_int8_onnx(network, folder / INT8_ONNX, _metadata(network, config), spectra)


def _metadata(network: DPDCRN, config: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "fs": config["fs"],
        "num_mics": network.input_channels // 2,
        "ref_channel": network.ref_channel,
        "n_fft": config["network"]["n_fft"],
        "hop_length": config["hop_length"],
        "normalize_variance": config["normalize_variance"],
        "weights_sha256": config["weights_sha256"],
    }


def _write_onnx(network: DPDCRN, config: Dict[str, Any], folder: Path) -> float:
    metadata = _metadata(network, config)
    export_onnx(network, folder / ONNX, metadata)
    error = check_onnx(network, folder / ONNX)
    sources = {ONNX_CODE: onnx_runtime}
    if _can_stream(config):
        export_stream_onnx(network, folder / STREAM_ONNX, metadata)
        error = max(error, check_stream_onnx(network, folder / STREAM_ONNX))
        sources.update({"onnx_stream.py": onnx_stream, "spectral_stream.py": spectral_stream})
    if not error <= TOLERANCE:
        raise UserError(
            f"the ONNX file differs from the network by {error:.1e} of its peak, more than {TOLERANCE:.0e}: "
            "use other versions of torch, onnx and onnxruntime, or give --onnx false"
        )
    for name, module in sources.items():
        shutil.copyfile(str(module.__file__), folder / name)
    return error


def _can_stream(config: Dict[str, Any]) -> bool:
    return bool(config["network"].get("causal")) and not config["normalize_variance"]


@contextlib.contextmanager
def _replaced_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder; when all went well it takes the place of ``target``."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target} exists and is no folder: choose another one")
    if target.is_dir() and any(target.iterdir()) and not is_bundle(target):
        raise UserError(f"{target} holds something else than an exported model: choose another folder")
    mark = uuid.uuid4().hex[:8]
    new, old = (target.with_name(f".{target.name}.{mark}.{kind}") for kind in ("new", "old"))
    new.mkdir(parents=True)
    try:
        yield new
        if target.is_dir():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.is_dir() and not target.exists():
            old.rename(target)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_bundle_model(folder: PathLike, runtime: str = "torch", device: str = "cpu") -> WaveformDPDCRN:
    """Load an exported model.

    Args:
        folder: as :func:`export_bundle` wrote it.
        runtime: see :func:`i2srf_kd.export.runtimes.onnx_file`.
        device: where the model will be.

    Raises:
        UserError: the folder is no bundle, of a newer kind, incomplete or damaged.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        raise UserError(f"{folder} is no exported model: its {CONFIG} lacks 'format: {FORMAT}'")
    config = read_yaml(folder / CONFIG)
    if config.get("version") != VERSION:
        raise UserError(
            f"{folder / CONFIG} is of version {config.get('version')}, this package ({__version__}) reads {VERSION}: "
            "use the package it was exported with, or export again"
        )
    try:
        network = DPDCRN(**config["network"])
        model = WaveformDPDCRN(
            network, int(config["fs"]), int(config["hop_length"]), bool(config["normalize_variance"])
        )
        checksum = config["weights_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} is incomplete or was altered ({error!r}): copy the folder again") from None
    state = load_weights(folder / WEIGHTS)
    if sha256_of(folder / WEIGHTS) != checksum:
        raise UserError(f"{folder / WEIGHTS} is not the file that was exported (SHA-256): copy the folder again")
    check_key_coverage(network.state_dict(), state, source=str(folder / WEIGHTS))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}") from None
    _attach_onnx(model, folder, runtime, device, str(checksum))
    return model.eval()


def _attach_onnx(model: WaveformDPDCRN, folder: Path, runtime: str, device: str, checksum: str) -> None:
    """Let onnxruntime run the network, with as many threads as torch has now, where the runtime is not PyTorch.

    A causal network runs as a stream, because attention to a window of frames as one matrix would take memory with the
    square of the length.
    """
    files = {**WHOLE, "onnx": STREAM_ONNX} if model.network.causal else WHOLE
    file = onnx_file(folder, runtime, device, None, files)
    if file is None:
        return
    threads = torch.get_num_threads()
    if file.name == STREAM_ONNX:
        step = onnx_stream.OnnxStep(file, threads)
        run: OnnxFunction = step.whole
        metadata = step.network.metadata
        model.onnx_stream = partial(onnx_stream.OnnxStreamingEnhancer, file)
    else:
        network = onnx_runtime.OnnxNetwork(file, threads)
        run, metadata = network, network.metadata
    check_weights(file, metadata.get("weights_sha256"), checksum)
    model.onnx = run


def read_calibration(data_dir: str, fs: int, count: int = CALIBRATION_UTTERANCES) -> List[np.ndarray]:
    """Mixtures of a data folder, taken at equal distances.

    Raises:
        UserError: the folder or a file of it cannot be read.
    """
    from i2srf_kd.audio.io import read_audio
    from i2srf_kd.data.kaldi_dir import read_audio_table

    files = list(read_audio_table(Path(data_dir) / "wav.scp").values())
    chosen = [files[i * len(files) // count] for i in range(count)] if count < len(files) else files
    return [read_audio(file, fs)[0][: round(CALIBRATION_SECONDS * fs)] for file in chosen]
