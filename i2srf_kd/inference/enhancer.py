"""The model a user holds: waveform in, waveform out, at any rate and of any length.

enhancer = load_enhancer("exp/student")  # see i2srf_kd.inference.loading
enhanced = enhancer(noisy, fs)  # (samples,) or (samples, channels) -> (samples,)
"""

from typing import Any, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from i2srf_kd.audio.level import with_mixture
from i2srf_kd.audio.overlap_add import overlap_add, window_in_samples
from i2srf_kd.audio.resample import at_another_rate
from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.inference.stream import StreamingEnhancer
from i2srf_kd.inference.waveform import WaveformDPDCRN, WindowModel
from i2srf_kd.metrics.complexity import Complexity, macs_per_second
from i2srf_kd.system.errors import UserError

Waveform = Union[np.ndarray, Tensor]
# Memory grows with the square of a window's length in some models, so whole recordings are limited to this.
WINDOW_SECONDS = 30.0
OVERLAP_SECONDS = 1.0
# Models of other kinds get at least this much of a signal; shorter ones are padded with zeros.
_SHORTEST_SECONDS = 0.1
# More columns than this and than rows: an array with channels and samples exchanged.
_MOST_CHANNELS = 64


class Enhancer(nn.Module):
    """A model with everything around it: sampling rates, arrays or tensors, channels, short and long recordings.

    Args:
        model: what enhances a window; :class:`WaveformDPDCRN` or another module that keeps to :class:`WindowModel`.

    Attributes:
        fs: sampling rate of the model in Hz. What lies above half of it is removed from recordings of higher rates.
        num_mics: channels that a recording must have at least.
        kept: share of the mixture in the output, at the same time and phase (:func:`i2srf_kd.audio.level.kept_share`).
    """

    def __init__(self, model: WindowModel):
        super().__init__()
        self.model = model
        self.fs = model.fs
        self.num_mics = model.num_mics
        self.kept = 0.0

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
        in_onnx = self.model.onnx_stream if self.device.type == "cpu" else None
        stream = in_onnx(streams) if in_onnx is not None else StreamingEnhancer(self.model, streams)
        stream.kept = self.kept
        return stream

    @torch.no_grad()
    def enhance_array(self, wave: np.ndarray, fs: int) -> np.ndarray:
        """Enhance in one piece.

        Args:
            wave: ``(samples,)`` or ``(samples, channels)``.
            fs: its rate in Hz.

        Returns:
            float32 ``(samples,)`` at the same rate.
        """

        def enhance(wave: np.ndarray) -> np.ndarray:
            speech = torch.from_numpy(np.ascontiguousarray(wave)).to(self.device)
            return self.enhance_window(speech.unsqueeze(0))[0].cpu().numpy()

        enhanced = at_another_rate(enhance, wave, fs, self.fs)
        return with_mixture(enhanced, wave, self.kept, self.model.ref_channel if self.kept else 0)

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
