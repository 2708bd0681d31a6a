"""The model a user holds: waveform in, waveform out, at any rate and of any length.

enhancer = load_enhancer("exp/student")  # or a file of weights in it, or an exported folder
enhanced = enhancer(noisy, fs)  # (samples,) or (samples, channels) -> (samples,)
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Optional, Protocol, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from i2srf_kd.audio.overlap_add import overlap_add
from i2srf_kd.audio.resample import resample
from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.export.runtimes import WHOLE, onnx_file
from i2srf_kd.inference.experiment import Experiment, split_model_path
from i2srf_kd.inference.stream import StreamingEnhancer
from i2srf_kd.metrics.complexity import Complexity, macs_per_second
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.nets.stft import STFT
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, write_text

Waveform = Union[np.ndarray, Tensor]
OnnxFunction = Callable[[np.ndarray], np.ndarray]

# Memory grows with the square of a window's length in some models, so whole recordings are limited to this.
WINDOW_SECONDS = 30.0
OVERLAP_SECONDS = 1.0
# Models of other kinds get at least this much of a signal; shorter ones are padded with zeros.
_SHORTEST_SECONDS = 0.1
# More columns than this and than rows: an array with channels and samples exchanged.
_MOST_CHANNELS = 64


class WindowModel(Protocol):
    """What :class:`Enhancer` needs of a model: it turns one window at the model's rate into enhanced speech.

    Attributes:
        fs: sampling rate in Hz.
        num_mics: microphones it uses.
    """

    fs: int
    num_mics: int

    def enhance_window(self, speech: Tensor) -> Tensor:
        """``(B, samples)`` or ``(B, samples, channels)`` to ``(B, samples)``."""
        ...


class WaveformDPDCRN(nn.Module):
    """STFT, DPDCRN and inverse STFT.

    Args:
        network: the network; its ``n_fft`` is that of the STFT.
        fs: sampling rate in Hz.
        hop_length: hop of the STFT in samples.
        normalize_variance: divide the window by its standard deviation (over samples and channels) before the network
            and multiply by it afterwards, as ESPnet's option of that name does. ESPnet takes the standard deviation
            of a whole utterance; so does this, for what it is given at a time.

    Attributes:
        onnx: the same network in onnxruntime, ``(B, planes, T, F)`` to ``(B, 2, T, F)``, which runs in its place while
            the model is on the CPU; None: there is none.
        stream_file: ``model_stream.onnx``, which streams then run.
    """

    def __init__(self, network: DPDCRN, fs: int = 16000, hop_length: int = 256, normalize_variance: bool = False):
        super().__init__()
        self.network = network
        self.stft = STFT(2 * (network.bins - 1), hop_length)
        self.fs = fs
        self.num_mics = network.input_channels // 2
        self.normalize_variance = normalize_variance
        self.onnx: Optional[OnnxFunction] = None
        self.stream_file: Optional[Path] = None

    def _enhance_spectrum(self, planes: Tensor) -> Tensor:
        if self.onnx is None or planes.device.type != "cpu":
            return self.network(planes).spectrum
        return torch.from_numpy(self.onnx(planes.contiguous().numpy()))

    @torch.no_grad()
    def enhance_window(self, speech: Tensor) -> Tensor:
        """Enhance ``(B, samples)`` or ``(B, samples, channels)`` to ``(B, samples)``.

        The end is padded with zeros to a whole number of hops: the last
        samples of any other length lie under the edge of one single frame, and the inverse STFT would divide them by
        a window value near zero.
        """
        if speech.dim() == 2:
            speech = speech.unsqueeze(-1)
        batch, samples, _ = speech.shape
        scale = torch.ones(batch, 1, dtype=speech.dtype, device=speech.device)
        if self.normalize_variance and samples > 1:
            deviation = speech.flatten(1).std(dim=1, keepdim=True)
            scale = torch.where(deviation > 0, deviation, scale)
        hop = self.stft.hop_length
        padded = max(-(-samples // hop) * hop, self.stft.n_fft)
        speech = speech / scale.unsqueeze(-1)
        speech = nn.functional.pad(speech, (0, 0, 0, padded - samples))
        enhanced = self.stft.inverse(self._enhance_spectrum(self.stft(speech)), padded)
        return enhanced[:, :samples] * scale


class Enhancer(nn.Module):
    """A model with everything around it: sampling rates, arrays or tensors, channels, short and long recordings.

    Args:
        model: what enhances a window; :class:`WaveformDPDCRN` or another module that keeps to :class:`WindowModel`.

    Attributes:
        fs: sampling rate of the model in Hz. What lies above half of it is removed from recordings of higher rates.
        num_mics: channels that a recording must have at least.
    """

    def __init__(self, model: WindowModel):
        super().__init__()
        self.model = model
        self.fs = model.fs
        self.num_mics = model.num_mics

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def enhance_window(self, speech: Tensor) -> Tensor:
        """``(B, samples)`` or ``(B, samples, channels)`` at the model's rate to ``(B, samples)``, in one piece."""
        if speech.dim() == 3:
            speech = speech[..., : self.num_mics]
            speech = speech.squeeze(-1) if self.num_mics == 1 else speech
        samples = speech.shape[1]
        missing = max(0, round(_SHORTEST_SECONDS * self.fs) - samples)
        if missing and not isinstance(self.model, WaveformDPDCRN):  # which pads for itself
            pad = (0, 0) * (speech.dim() - 2) + (0, missing)
            return self.model.enhance_window(nn.functional.pad(speech, pad))[:, :samples]
        return self.model.enhance_window(speech)

    def stream(self, streams: int = 1) -> SpectralStream:
        """Enhance blocks of any size as they come, with a causal model, in the runtime it was loaded for.

        Args:
            streams: recordings side by side.

        Raises:
            UserError: the model is not causal.
        """
        if not isinstance(self.model, WaveformDPDCRN):
            raise UserError("the model is no DPDCRN: only a causal DPDCRN can run on a stream")
        if self.model.stream_file is not None and self.device.type == "cpu":
            return import_module("i2srf_kd.export.onnx_stream").OnnxStreamingEnhancer(self.model.stream_file, streams)
        return StreamingEnhancer(self.model, streams)

    @torch.no_grad()
    def enhance_array(self, wave: np.ndarray, fs: int) -> np.ndarray:
        """Enhance in one piece.

        Args:
            wave: ``(samples,)`` or ``(samples, channels)``.
            fs: its rate in Hz.

        Returns:
            float32 ``(samples,)`` at the same rate.
        """
        speech = torch.from_numpy(np.ascontiguousarray(resample(wave, fs, self.fs)))
        enhanced = self.enhance_window(speech.to(self.device).unsqueeze(0))[0].cpu().numpy()
        # Up and down again gives as many samples or a few more, all of them at the end.
        return resample(enhanced, self.fs, fs)[: len(wave)]

    @torch.no_grad()
    def forward(
        self,
        waveform: Waveform,
        fs: int,
        window_seconds: float = WINDOW_SECONDS,
        overlap_seconds: float = OVERLAP_SECONDS,
    ) -> Any:
        """Enhance a recording.

        Args:
            waveform: ``(samples,)`` or ``(samples, channels)``, floating point with full scale 1. Of more channels
                than the model has microphones the first ones are used.
            fs: sampling rate of ``waveform`` in Hz; resampled to the model's and back.
            window_seconds: longer recordings are enhanced in windows of this length and cross-faded; a
                variance-normalising model then normalises each window by itself.
            overlap_seconds: cross-fade between windows.

        Returns:
            ``(samples,)``, an array or tensor like the input (data type, device).

        Raises:
            UserError: the input is empty, not finite, of integers, or has too few channels.
        """
        wave = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
        _check_waveform(wave, self.num_mics)
        window, overlap = window_in_samples(window_seconds, overlap_seconds, fs)
        result = overlap_add(
            wave.astype(np.float32, copy=False), lambda piece: self.enhance_array(piece, fs), window, overlap
        )
        if isinstance(waveform, Tensor):
            return torch.from_numpy(result).to(waveform)
        return result.astype(wave.dtype, copy=False)


def window_in_samples(window_seconds: float, overlap_seconds: float, fs: int) -> Tuple[int, int]:
    """Window and overlap in samples.

    Raises:
        UserError: the overlap is negative or longer than half a window, or the window is empty.
    """
    if not window_seconds > 0:
        raise UserError(f"window_seconds {window_seconds}: must be positive")
    if not 0 <= overlap_seconds <= window_seconds / 2:
        raise UserError(
            f"overlap_seconds {overlap_seconds}: must lie between 0 and half of window_seconds {window_seconds}"
        )
    window = max(2, round(window_seconds * fs))
    return window, min(round(overlap_seconds * fs), window // 2)


def _check_waveform(wave: np.ndarray, num_mics: int) -> None:
    if wave.ndim not in (1, 2) or not wave.size:
        raise UserError(f"a waveform of shape {wave.shape}: expected (samples,) or (samples, channels), not empty")
    if not np.issubdtype(wave.dtype, np.floating):
        raise UserError(f"a waveform of {wave.dtype}: convert to floating point with full scale 1 (int16: / 32768)")
    if wave.ndim == 2 and wave.shape[1] > max(wave.shape[0], _MOST_CHANNELS):
        raise UserError(f"a waveform of shape {wave.shape}: channels come last, transpose it to (samples, channels)")
    channels = wave.shape[1] if wave.ndim == 2 else 1
    if channels < num_mics:
        raise UserError(f"the model needs {num_mics} microphones, the waveform has {channels} channels")
    if not np.isfinite(wave).all():
        first = np.argwhere(~np.isfinite(wave))[0][0]
        raise UserError(f"the waveform has NaN or infinite values, the first at sample {first}")


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
    path: PathLike, device: str = "cpu", weights: Optional[str] = None, runtime: str = "auto"
) -> Enhancer:
    """Load a trained model for use.

    Args:
        path: an experiment folder, a file of weights in one, or a folder that ``i2srf_kd.bin.export`` wrote.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        weights: name of a file of weights in an experiment folder (default: :meth:`Experiment.weights`).
        runtime: ``torch``; ``onnx`` or ``int8`` for the files of an exported folder, with as many threads as torch has
            at that time; ``auto``: ``onnx`` on the CPU where the folder has it and onnxruntime is installed, else
            ``torch``.

    Raises:
        UserError: something is absent, damaged or does not fit together.
    """
    from i2srf_kd.export.bundle import is_bundle, load_bundle_model

    chosen = check_device(device)
    folder, name = split_model_path(path)
    if is_bundle(folder):
        if weights is not None:
            raise UserError(f"{folder} is an exported model with one file of weights; {weights} cannot be chosen")
        model: Any = load_bundle_model(folder, runtime, device)
    else:
        onnx_file(folder, runtime, device, weights or name, WHOLE)  # which an experiment has not
        model = _load_from_experiment(Experiment(folder), weights or name, device)
    return Enhancer(model).to(chosen).eval()


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


class _AsForward(nn.Module):
    """A window model as a module whose forward pass can be counted."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, speech: Tensor) -> Tensor:
        return self.model.enhance_window(speech)


def measure_complexity(enhancer: Enhancer, seconds: float = 4.0) -> Complexity:
    """Parameters and MACs per second of a model at its own rate, on an input of ``seconds``."""

    def make_input(length: float) -> Tuple[Tensor]:
        shape = (1, round(length * enhancer.fs)) + ((enhancer.num_mics,) if enhancer.num_mics > 1 else ())
        return (torch.zeros(shape, device=enhancer.device),)

    return macs_per_second(_AsForward(enhancer.model), make_input, seconds)


def write_complexity(model: PathLike, out_dir: Optional[PathLike] = None) -> Path:
    """Write ``complexity.json``, with the fields of :class:`i2srf_kd.metrics.complexity.Complexity` as keys.

    Args:
        model: as for :func:`load_enhancer`.
        out_dir: where to write; default: the model's folder.

    Returns:
        The file.
    """
    target = Path(out_dir) if out_dir is not None else split_model_path(model)[0]
    result = measure_complexity(load_enhancer(model, runtime="torch"))._asdict()
    write_text(target / "complexity.json", json.dumps(result, indent=2) + "\n")
    return target / "complexity.json"
