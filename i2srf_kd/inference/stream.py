"""A causal model on a waveform that arrives in blocks: microphones, calls, recordings of any length.

stream = StreamingEnhancer(load_enhancer("exp/student_causal"))
for block in blocks:  # any sizes
    play(stream(block))
play(stream.flush())
"""

from typing import List

import numpy as np
import torch

from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.nets.streaming import StreamingDPDCRN
from i2srf_kd.system.errors import UserError


class StreamingEnhancer(SpectralStream):
    """What comes out, put together, is what the model makes of the whole recording in one piece.

    Args:
        model: a causal one, at whose sampling rate (``fs``) the blocks come.
        streams: recordings to enhance side by side.

    Raises:
        UserError: the model cannot run on a stream.
    """

    def __init__(self, model: WaveformDPDCRN, streams: int = 1):
        check_can_stream(model.network.causal, model.normalize_variance)
        stft = model.stft
        super().__init__(model.fs, stft.n_fft, stft.hop_length, model.num_mics, streams, model.ref_channel)
        self._network = StreamingDPDCRN(model.network)
        self._device = next(model.parameters()).device
        self.forget()

    def forget(self) -> None:
        """Go back to a state in which nothing has been heard."""
        self._state: List[torch.Tensor] = self._network.initial_state(self.streams)

    @torch.inference_mode()
    def step(self, planes: np.ndarray) -> np.ndarray:
        """Run the network on the next frames."""
        enhanced, *self._state = self._network(torch.from_numpy(planes).to(self._device), *self._state)
        return enhanced.cpu().numpy()


def check_can_stream(causal: bool, normalize_variance: bool) -> None:
    """Raise :class:`UserError` that names the option for a model that needs to see whole recordings."""
    if not causal:
        raise UserError(
            "the model is not causal and cannot run on a stream: train one with separator_conf {causal: true}, "
            "such as conf/train_student_causal.yaml"
        )
    if normalize_variance:
        raise UserError(
            "the model divides a recording by its standard deviation and cannot run on a stream: train it with "
            "model_conf {normalize_variance: false}"
        )
