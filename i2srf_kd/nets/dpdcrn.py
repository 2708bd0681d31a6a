"""DPDCRN, the dual-path dilated convolutional recurrent network (arXiv 2506.13127, section on the network).

A convolutional encoder halves the frequency axis twice, dual-path blocks model time and frequency, a decoder mirrors
the encoder and predicts a complex mask whose magnitude is bounded by tanh and whose phase is added to the mixture's.

The published network sees whole recordings. With ``causal=True`` (ours, see :mod:`i2srf_kd.nets.causal`) a frame of the
output depends on no later frame of the input, and the network can run on a recording that arrives in chunks.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.nets.blocks import ConvNormAct, DilatedDenseBlock, DualPath, downsample, upsample
from i2srf_kd.nets.causal import StreamState
from i2srf_kd.nets.front import build_front
from i2srf_kd.nets.options import DPDCRNOptions

FeatureSets = Dict[str, List[Tensor]]

# Below this power a bin counts as empty: its phase is undefined and is taken as zero, without a gradient.
_TINY_POWER = 1e-24


class DPDCRNOutput(NamedTuple):
    """What the network returns.

    Attributes:
        spectrum: enhanced spectrum ``(B, 2, T, F)``, real and imaginary plane.
        mask: complex mask before the bound ``(B, 2, T, F)``.
        features: named feature sets, each a list of ``(B, C, T, F)`` in network order, or None if not asked for.
    """

    spectrum: Tensor
    mask: Tensor
    features: Optional[FeatureSets]


class Encoder(nn.Module):
    """Two strided convolutions and a dilated dense block: ``(B, P, T, F)`` to ``(B, C, T, ~F/4)``."""

    def __init__(self, planes: int, channels: int, causal: bool = False):
        super().__init__()
        self.down1 = downsample(planes, channels, padding=1, causal=causal)
        self.down2 = downsample(channels, channels, padding=0, causal=causal)
        self.dense = DilatedDenseBlock(channels, causal=causal)

    def forward(self, x: Tensor, state: Optional[StreamState] = None) -> List[Tensor]:
        first = self.down1(x)
        second = self.down2(first)
        return [first, second, self.dense(second, state)]


def downsampled_bins(bins: int) -> Tuple[int, int]:
    """Bins after the first and after the second strided convolution of the encoder."""
    half = (bins - 1) // 2 + 1
    return half, (half - 3) // 2 + 1


class Decoder(nn.Module):
    """A dilated dense block and two transposed convolutions: ``(B, C, T, ~F/4)`` to a mask ``(B, 2, T, F)``."""

    def __init__(self, channels: int, bins: int, causal: bool = False):
        super().__init__()
        half, quarter = downsampled_bins(bins)
        self.bins = bins
        self.dense = DilatedDenseBlock(channels, causal=causal)
        self.up1 = ConvNormAct(upsample(channels, channels, output_padding=half - (2 * quarter + 1)), channels, causal)
        self.mask = upsample(channels, 2)

    def forward(self, x: Tensor, state: Optional[StreamState] = None) -> List[Tensor]:
        dense = self.dense(x, state)
        up = self.up1(dense)
        return [dense, up, self.mask(up)[..., : self.bins]]


def mask_magnitude(mask: Tensor) -> Tensor:
    """Bounded magnitude ``tanh |m|`` of a complex mask ``(B, 2, T, F)`` as ``(B, T, F)``."""
    return torch.tanh(torch.linalg.vector_norm(mask, dim=1))


def mask_phase(mask: Tensor) -> Tensor:
    """Phase in radians that a complex mask ``(B, 2, T, F)`` adds to the mixture, as ``(B, T, F)``."""
    return torch.atan2(mask[:, 1], mask[:, 0])


def apply_mask(mask: Tensor, reference: Tensor) -> Tensor:
    """Scale by ``tanh |m|`` and rotate by the phase of ``m``.

    The published form goes through ``atan2``, ``cos`` and ``sin``; here the same rotation is a complex product of
    unit phasors, which is cheaper and has a finite gradient where the mask or the mixture is zero.

    Args:
        mask: complex mask ``(B, 2, T, F)``.
        reference: spectrum of the reference microphone ``(B, 2, T, F)``.

    Returns:
        Enhanced spectrum ``(B, 2, T, F)``.
    """
    mask_norm = mask.square().sum(1, keepdim=True).clamp_min(_TINY_POWER).sqrt()
    power = reference.square().sum(1, keepdim=True)
    empty = power < _TINY_POWER
    phasor = reference * power.clamp_min(_TINY_POWER).rsqrt()
    cosine = torch.where(empty, torch.ones_like(power), phasor[:, :1])
    sine = torch.where(empty, torch.zeros_like(power), phasor[:, 1:])
    gain = torch.tanh(mask_norm) / mask_norm * (power + 1e-8).sqrt()
    real, imaginary = mask[:, :1], mask[:, 1:]
    return gain * torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)


class DPDCRN(nn.Module):
    """Dual-path dilated convolutional recurrent network.

    Args:
        options: those of :class:`i2srf_kd.nets.options.DPDCRNOptions`, in its order or by name.

    Raises:
        ValueError: for sizes the network cannot be built with.
    """

    FEATURE_SETS = ("encoder", "dual_path", "decoder")

    def __init__(self, *options: Any, **named_options: Any):
        super().__init__()
        self.options = DPDCRNOptions(*options, **named_options)
        channels, blocks, causal = self.options.channels, self.options.blocks, self.options.causal
        self.causal, self.input_channels = causal, self.options.input_channels
        self.bins = self.options.n_fft // 2 + 1
        self.ref_channel = self.options.ref_channel
        # Whoever wants the feature sets of every forward pass (distillation) sets this; it is no parameter.
        self.feature_sink: Optional[Callable[[FeatureSets], None]] = None
        self.encoder = Encoder(self.input_channels, channels, causal)
        window = self.options.attention_window if causal else None
        self.dual_path = DualPath(channels, blocks, self.options.heads, window)
        self.decoder = Decoder(channels, self.bins, causal)
        # Last, so that a seed draws the same other weights with and without it.
        self.front = build_front(self.options.front, self.input_channels // 2, self.options.front_conf)

    def feature_shapes(self) -> Dict[str, List[Tuple[int, int]]]:
        """Channels C and bins F of each layer ``(B, C, T, F)`` of the feature sets, without a forward pass."""
        half, quarter = downsampled_bins(self.bins)
        channels = self.options.channels
        wide, narrow, mask = (channels, half), (channels, quarter), (2, self.bins)
        layers = [wide, narrow, narrow], [narrow] * self.options.blocks, [narrow, wide, mask]
        return dict(zip(self.FEATURE_SETS, layers, strict=True))

    def forward(
        self, spectrum: Tensor, return_features: bool = False, state: Optional[StreamState] = None
    ) -> DPDCRNOutput:
        """Enhance a spectrum.

        Args:
            spectrum: mixture ``(B, input_channels, T, F)``.
            return_features: also return the feature sets ``encoder`` (3), ``dual_path`` (L) and ``decoder`` (3; the
                last one is the mask).
            state: what a causal network remembers, where the spectrum is a chunk of a recording
                (:class:`i2srf_kd.nets.streaming.StreamingDPDCRN` keeps it); None: a recording in one piece.

        Raises:
            ValueError: when the input has another number of planes or bins than the network.
        """
        if spectrum.dim() != 4 or spectrum.shape[1] != self.input_channels or spectrum.shape[3] != self.bins:
            raise ValueError(
                f"expected a spectrum (B, {self.input_channels}, T, {self.bins}), got {tuple(spectrum.shape)}"
            )
        wants_features = return_features or self.feature_sink is not None
        encoder = self.encoder(self.front(spectrum), state)
        dual_path = self.dual_path(encoder[-1], every_block=wants_features, state=state)
        decoder = self.decoder(dual_path[-1], state)
        mask = decoder[-1]
        # Phases and 1e-8 terms need more than half precision.
        with torch.autocast(spectrum.device.type, enabled=False):
            dtype = torch.promote_types(spectrum.dtype, torch.float32)
            reference = spectrum[:, 2 * self.ref_channel : 2 * self.ref_channel + 2]
            enhanced = apply_mask(mask.to(dtype), reference.to(dtype))
        features = None
        if wants_features:
            features = {"encoder": encoder, "dual_path": dual_path, "decoder": decoder}
            if self.feature_sink is not None:
                self.feature_sink(features)
        return DPDCRNOutput(enhanced, mask, features if return_features else None)
