"""What turns a window of a waveform into enhanced speech: the contract of such models, and DPDCRN as one."""

from typing import Callable, Optional, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from i2srf_kd.audio.normalize import mixture_level, pad_to_hops
from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.nets.stft import STFT

OnnxFunction = Callable[[np.ndarray], np.ndarray]


class WindowModel(Protocol):
    """What :class:`Enhancer` needs of a model: it turns one window at the model's rate into enhanced speech.

    Attributes:
        fs: sampling rate in Hz.
        num_mics: microphones it uses.
        ref_channel: the one whose speech it estimates.
    """

    fs: int
    num_mics: int
    ref_channel: int

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
        onnx_stream: opens so many streams side by side in onnxruntime; None: it cannot.
    """

    def __init__(self, network: DPDCRN, fs: int = 16000, hop_length: int = 256, normalize_variance: bool = False):
        super().__init__()
        self.network = network
        self.stft = STFT(2 * (network.bins - 1), hop_length)
        self.fs = fs
        self.num_mics = network.input_channels // 2
        self.ref_channel = network.ref_channel
        self.normalize_variance = normalize_variance
        self.onnx: Optional[OnnxFunction] = None
        self.onnx_stream: Optional[Callable[[int], SpectralStream]] = None

    def _enhance_spectrum(self, planes: Tensor) -> Tensor:
        if self.onnx is None or planes.device.type != "cpu":
            return self.network(planes).spectrum
        return torch.from_numpy(self.onnx(planes.contiguous().numpy()))

    @torch.no_grad()
    def enhance_window(self, speech: Tensor) -> Tensor:
        """Enhance ``(B, samples)`` or ``(B, samples, channels)`` to ``(B, samples)``."""
        level = mixture_level(speech) if self.normalize_variance else speech.new_ones((1,) * speech.dim())
        padded = pad_to_hops(speech / level, self.stft.hop_length, at_least=self.stft.n_fft)
        enhanced = self.stft.inverse(self._enhance_spectrum(self.stft(padded)), padded.shape[1])
        return enhanced[:, : speech.shape[1]] * level.flatten(1)
