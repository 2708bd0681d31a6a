"""DPDCRN as an ESPnet separator.

separator: dpdcrn
separator_conf: {preset: dpdcrn_student}
"""

import logging
from collections import OrderedDict
from functools import cache
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor
from torch_complex.tensor import ComplexTensor

from i2srf_kd.nets.presets import network_from_options
from i2srf_kd.system.errors import UserError

logger = logging.getLogger(__name__)


@cache  # once in a process
def _tell_of_unused_channels(channels: int, used: int) -> None:
    logger.warning("mixtures have %d channels, of which num_mics uses the first %d", channels, used)


class DPDCRNSeparator(AbsSeparator):
    """Masks the STFT of the reference microphone with a DPDCRN.

    Args:
        input_dim: frequency bins of the encoder, ``n_fft // 2 + 1``.
        separator_conf: see :func:`i2srf_kd.nets.presets.network_from_options`.
    """

    def __init__(self, input_dim: int, **separator_conf: Any):
        super().__init__()
        self.net = network_from_options(input_dim, **separator_conf)
        self.num_mics = self.net.input_channels // 2

    @property
    def ref_channel(self) -> int:
        """Channel that is enhanced; ESPnet's ``SeparateSpeech`` sets it."""
        return self.net.ref_channel

    @ref_channel.setter
    def ref_channel(self, channel: int) -> None:
        if not 0 <= channel < self.num_mics:
            raise UserError(f"ref_channel {channel} is not one of {self.num_mics} microphones")
        self.net.ref_channel = channel

    @property
    def num_spk(self) -> int:
        return 1

    def forward(
        self, input: Union[Tensor, ComplexTensor], ilens: Tensor, additional: Optional[Dict] = None
    ) -> Tuple[List[Tensor], Tensor, OrderedDict]:
        """Enhance a complex spectrum.

        Args:
            input: ``(B, T, F)`` or, for several microphones, ``(B, T, C, F)``.
            ilens: frames of each item ``(B,)``.

        Returns:
            ``([(B, T, F)], ilens, others)``; ``others`` has the network's complex mask before its bound.
        """
        planes = torch.stack([input.real, input.imag], dim=-1)  # (B, T, [C,] F, 2)
        if planes.dim() == 4:
            planes = planes.unsqueeze(2)
        batch, frames, mics, bins, _ = planes.shape
        if mics < self.num_mics:
            raise ValueError(f"the separator was built for {self.num_mics} microphones, the mixture has {mics}")
        if mics > self.num_mics:
            _tell_of_unused_channels(mics, self.num_mics)
        planes = planes[:, :, : self.num_mics].permute(0, 2, 4, 1, 3).reshape(batch, -1, frames, bins)
        output = self.net(planes)
        enhanced = torch.complex(output.spectrum[:, 0], output.spectrum[:, 1])
        return [enhanced], ilens, OrderedDict(mask_planes=output.mask)
