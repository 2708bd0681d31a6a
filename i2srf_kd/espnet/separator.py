"""DPDCRN as an ESPnet separator.

separator: dpdcrn
separator_conf: {preset: dpdcrn_student}
"""

from collections import OrderedDict
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from espnet2.enh.separator.abs_separator import AbsSeparator
from torch import Tensor
from torch_complex.tensor import ComplexTensor

from i2srf_kd.nets.presets import network_from_options


class DPDCRNSeparator(AbsSeparator):
    """Masks the STFT of the reference microphone with a DPDCRN.

    Args:
        input_dim: frequency bins of the encoder, ``n_fft // 2 + 1``.
        preset: size by name (see :mod:`i2srf_kd.nets.presets`); the options below override it.
        channels, blocks, heads: size of the network.
        num_mics: channels of the mixture (4 for each first-order Ambisonics microphone).
        ref_channel: channel that is enhanced.
        front, front_conf: what stands before the encoder (see :mod:`i2srf_kd.nets.front`).
        causal, attention_window: for streaming (see :class:`i2srf_kd.nets.dpdcrn.DPDCRN`).
        num_spk: must be 1: the network enhances one speaker.
    """

    def __init__(
        self,
        input_dim: int,
        preset: Optional[str] = None,
        channels: Optional[int] = None,
        blocks: Optional[int] = None,
        heads: Optional[int] = None,
        num_mics: int = 1,
        ref_channel: int = 0,
        num_spk: int = 1,
        front: Optional[str] = None,
        front_conf: Optional[Dict[str, Any]] = None,
        causal: Optional[bool] = None,
        attention_window: Optional[int] = None,
    ):
        super().__init__()
        if num_spk != 1:
            raise ValueError(f"DPDCRN enhances one speaker, not {num_spk}: set num_spk to 1")
        self.ref_channel = ref_channel
        self.num_mics = num_mics
        self.net = network_from_options(
            input_dim,
            preset=preset,
            channels=channels,
            blocks=blocks,
            heads=heads,
            num_mics=num_mics,
            ref_channel=ref_channel,
            front=front,
            front_conf=front_conf,
            causal=causal,
            attention_window=attention_window,
        )

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
        planes = planes[:, :, : self.num_mics].permute(0, 2, 4, 1, 3).reshape(batch, -1, frames, bins)
        output = self.net(planes)
        enhanced = torch.complex(output.spectrum[:, 0], output.spectrum[:, 1])
        return [enhanced], ilens, OrderedDict(mask_planes=output.mask)
