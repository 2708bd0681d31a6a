"""The dilated dense blocks with 8-bit weights and activations, for onnxruntime.

The eight convolutions of the two blocks are nine tenths of the arithmetic; all else stays in float32. Activations have
ranges that were seen on speech (static quantisation). Of a convolution's output, what follows keeps neither offset nor
scale of a channel (instance norm), so every channel uses all 8 bits.
"""

import copy
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.export.onnx_forms import FastPReLU, onnx_form
from i2srf_kd.nets.blocks import DilatedDenseBlock
from i2srf_kd.nets.causal import StreamState
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.system.errors import UserError

# Share of the values at either end that may be clipped.
CLIPPED = 1e-5
# Weights use 7 of their 8 bits. Processors without VNNI add two products of activation (0 to 255) and weight in 16 bits
# and saturate: with 127 the sum reaches 2 * 255 * 127 = 64770, with 63 it stays at 32130, below 32767.
LARGEST_WEIGHT = 63


class Range(NamedTuple):
    """Smallest and largest value, of a tensor or of each channel."""

    low: Tensor
    high: Tensor

    def joined(self, other: "Range") -> "Range":
        """What covers both."""
        return Range(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


class BlockRanges(NamedTuple):
    """Of a dense block: all its features together, and each convolution's output by channel."""

    features: Range
    outputs: List[Range]


def _range(rows: Tensor) -> Range:
    """Range of each of the rows ``(R, N)`` without its outermost values."""
    rank = max(1, round(CLIPPED * rows.shape[1]))
    return Range(rows.topk(rank, largest=False).values[:, -1], rows.topk(rank).values[:, -1])


@torch.no_grad()
def calibrate(network: DPDCRN, spectra: Sequence[Tensor]) -> List[BlockRanges]:
    """Ranges of activations in the dense blocks of encoder and decoder, on spectra ``(1, planes, T, F)``."""
    blocks = [cast(List[Any], list(part.dense.layers)) for part in (network.encoder, network.decoder)]
    seen: Dict[Tuple[int, str], Range] = {}

    def note(block: int, name: str, rows: Tensor) -> None:
        new = _range(rows.flatten(1))
        seen[block, name] = new if (block, name) not in seen else seen[block, name].joined(new)

    def watch(block: int, index: int, last: bool) -> Any:
        def hook(_: nn.Module, inputs: Tuple[Tensor], output: Tensor) -> None:
            note(block, str(index), output.transpose(0, 1))
            if last:  # its input is all features
                note(block, "features", inputs[0].unsqueeze(0))

        return hook

    hooks = [
        layer.conv.register_forward_hook(watch(b, k, k + 1 == len(layers)))
        for b, layers in enumerate(blocks)
        for k, layer in enumerate(layers)
    ]
    try:
        for spectrum in spectra:
            network(spectrum)
    finally:
        for handle in hooks:
            handle.remove()
    return [
        BlockRanges(seen[b, "features"], [seen[b, str(k)] for k in range(len(layers))])
        for b, layers in enumerate(blocks)
    ]


def int8_form(network: DPDCRN, ranges: Sequence[BlockRanges]) -> DPDCRN:
    """A copy of a network with 8-bit dense blocks, to be exported.

    Args:
        network: one that is not causal.
        ranges: what :func:`calibrate` found.

    Raises:
        UserError: the network is causal.
    """
    if network.causal:
        raise UserError("--int8 is for models that are not causal: leave it out")
    form = onnx_form(network)
    for part, original, found in zip(("encoder", "decoder"), (network.encoder, network.decoder), ranges, strict=True):
        dense = _Int8DenseBlock(copy.deepcopy(cast(DilatedDenseBlock, original.dense)), found)
        getattr(form, part).dense = dense
    return form


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (x / scale).round().add(zero).clamp(0, 255).to(torch.uint8)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero: Any) -> Any:
        return g.op("QuantizeLinear", x, scale, zero)


class _Dequantize(torch.autograd.Function):
    """Of each channel with its own scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (x.float() - zero.view(-1, 1, 1).float()) * scale.view(-1, 1, 1)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero: Any) -> Any:
        return g.op("DequantizeLinear", x, scale, zero, axis_i=1)


class _Int8Conv(torch.autograd.Function):
    """Convolution (2, 3) over the past, from 8 bits to 8 bits; the output's scale is in that of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *constants: Any) -> Tensor:
        scale, zero, weight, weight_scale, _, one, out_zero, bias, past = constants
        padded = F.pad(x.float() - zero.float(), (0, 0, past, 0))
        total = F.conv2d(padded, weight.float(), bias.float(), padding=(0, 1), dilation=(past, 1))
        scaled = total * (scale * weight_scale / one).view(-1, 1, 1)
        return scaled.round().add(out_zero).clamp(0, 255).to(torch.uint8)

    @staticmethod
    def symbolic(g: Any, x: Any, *constants: Any) -> Any:
        *tensors, past = constants
        return g.op("QLinearConv", x, *tensors, kernel_shape_i=[2, 3], dilations_i=[past, 1], pads_i=[past, 1, 0, 1])


class _Int8DenseBlock(nn.Module):
    def __init__(self, block: DilatedDenseBlock, ranges: BlockRanges):
        super().__init__()
        layers: List[Any] = list(block.layers)
        self.norms = nn.ModuleList(layer.norm for layer in layers)
        self.acts = nn.ModuleList(FastPReLU(layer.act, dims=2) for layer in layers)
        low, high = (torch.zeros(1).minimum(ranges.features.low), torch.zeros(1).maximum(ranges.features.high))
        self.scale = ((high - low) / 255).clamp_min(1e-12).squeeze()
        self.zero = (-low / self.scale).round().to(torch.uint8).squeeze()
        self.constants = [_constants(c.conv, r, self.scale) for c, r in zip(layers, ranges.outputs, strict=True)]

    def forward(self, x: Tensor, state: Optional[StreamState] = None) -> Tensor:
        features = _Quantize.apply(x, self.scale, self.zero)
        for k, (norm, act, found) in enumerate(zip(self.norms, self.acts, self.constants, strict=True)):
            weight, weight_scale, bias, out_scale = found
            zeros = torch.zeros(len(weight), dtype=torch.int8)
            middle = torch.tensor(128, dtype=torch.uint8)
            sizes = (self.scale, self.zero, weight, weight_scale, zeros, torch.tensor(1.0), middle, bias)
            x = _Dequantize.apply(_Int8Conv.apply(features, *sizes, 2**k), out_scale, middle.repeat(len(weight)))
            x = act(norm(x))
            if k + 1 < len(self.constants):
                features = torch.cat([_Quantize.apply(x, self.scale, self.zero), features], dim=1)
        return x


def _constants(conv: nn.Conv2d, output: Range, scale: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whole weights, their scale over the output's, 32-bit bias without the output's middle, the output's scale."""
    weight, bias = conv.weight.detach(), cast(Tensor, conv.bias).detach()
    step = (weight.abs().amax((1, 2, 3)) / LARGEST_WEIGHT).clamp_min(1e-12)
    whole = (weight / step.view(-1, 1, 1, 1)).round().to(torch.int8)
    out_scale = ((output.high - output.low) / 254).clamp_min(1e-12)
    shifted = bias - (output.high + output.low) / 2
    return whole, step / out_scale, (shifted / (scale * step)).round().to(torch.int32), out_scale
