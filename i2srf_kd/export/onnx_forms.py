"""DPDCRN in the operations that onnxruntime runs fastest on a CPU: the same function, the same weights.

What was measured to matter, in this order: ``PRelu`` with a slope per channel is not vectorised, a product and a
maximum are; padding and concatenation leave the blocked layout of convolutions and enter it again, while a convolution
over concatenated features is a sum of convolutions; attention with few features per head is bound by memory unless it
is one operation that keeps its scores in the cache; transposes are cheap where they move whole feature vectors.

The fused attention is onnxruntime's own operation (``com.microsoft``); its memory grows linearly with the length. Every
exported file is compared with the network (:func:`i2srf_kd.export.onnx.check_onnx`).
"""

import copy
from typing import Any, List, Optional, Tuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.nets.blocks import ConvNormAct, DilatedDenseBlock, DualPath, DualPathBlock, SelfAttention, SequenceBranch
from i2srf_kd.nets.causal import FrameNorm, StreamState, attention_mask
from i2srf_kd.nets.dpdcrn import DPDCRN

CONTRIB = "com.microsoft"


def onnx_form(network: DPDCRN) -> DPDCRN:
    """A copy of a network, to be exported; it shares no tensor with ``network``."""
    network = copy.deepcopy(network)
    encoder, decoder = network.encoder, network.decoder
    encoder.down1, encoder.down2 = _ConvNormAct(encoder.down1), _ConvNormAct(encoder.down2)  # type: ignore[assignment]
    encoder.dense, decoder.dense = _DenseBlock(encoder.dense), _DenseBlock(decoder.dense)  # type: ignore[assignment]
    decoder.up1 = _ConvNormAct(decoder.up1)  # type: ignore[assignment]
    network.dual_path = _DualPath(network.dual_path)  # type: ignore[assignment]
    return network


class FastPReLU(nn.Module):
    """PReLU without ``PRelu``; slopes are constants of the file.

    Args:
        act: one slope, or one for each channel.
        dims: dimensions that follow the channels.
    """

    slope: Tensor

    def __init__(self, act: nn.PReLU, dims: int):
        super().__init__()
        slope = act.weight.detach()
        self.register_buffer("slope", slope.view(-1, *[1] * dims) if len(slope) > 1 else slope)
        self.at_most_one = bool((slope <= 1).all())

    def forward(self, x: Tensor) -> Tensor:
        if self.at_most_one:
            return torch.maximum(x, self.slope * x)
        return self.slope * x + (1 - self.slope) * F.relu(x)


class _FrameNorm(nn.Module):
    """:class:`FrameNorm` as one layer norm over ``(C, F)``; F becomes known when the layer is traced."""

    def __init__(self, norm: FrameNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, T, F)`` to the same."""
        b, c, t, f = x.shape
        frames = x.transpose(1, 2).reshape(b, t, int(c) * int(f))
        weight, bias = (p.detach().repeat_interleave(int(f)) for p in (self.norm.weight, self.norm.bias))
        normed = F.layer_norm(frames, (int(c) * int(f),), weight, bias, self.norm.eps)
        return normed.view(b, t, c, f).transpose(1, 2)

    def last(self, x: Tensor) -> Tensor:
        """The same for ``(B, T, F, C)``."""
        b, t, f, c = x.shape
        weight, bias = (p.detach().repeat(int(f)) for p in (self.norm.weight, self.norm.bias))
        normed = F.layer_norm(x.reshape(b, t, int(f) * int(c)), (int(f) * int(c),), weight, bias, self.norm.eps)
        return normed.view(b, t, f, c)


def _norm(norm: nn.Module) -> nn.Module:
    return _FrameNorm(norm) if isinstance(norm, FrameNorm) else norm


class _ConvNormAct(nn.Module):
    def __init__(self, layer: ConvNormAct):
        super().__init__()
        self.conv, self.norm, self.act = layer.conv, _norm(layer.norm), FastPReLU(layer.act, dims=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class _PaddedConv(torch.autograd.Function):
    """Convolution (2, 3) over the past, whose padding is part of the operation instead of one of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor], past: int) -> Tensor:
        return F.conv2d(F.pad(x, (0, 0, past, 0)), weight, bias, padding=(0, 1), dilation=(past, 1))

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, past: int) -> Any:
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return g.op("Conv", *inputs, kernel_shape_i=[2, 3], dilations_i=[past, 1], pads_i=[past, 1, 0, 1])


class _DenseBlock(nn.Module):
    """A convolution over concatenated features as a sum over their parts, which are padded and concatenated nowhere."""

    def __init__(self, block: DilatedDenseBlock):
        super().__init__()
        layers: List[Any] = list(block.layers)
        self.convs = nn.ModuleList(layer.conv for layer in layers)
        self.norms = nn.ModuleList(_norm(layer.norm) for layer in layers)
        self.acts = nn.ModuleList(FastPReLU(layer.act, dims=2) for layer in layers)

    def forward(self, x: Tensor, state: Optional[StreamState] = None) -> Tensor:
        parts = [x]
        for k, (conv, norm, act) in enumerate(zip(self.convs, self.norms, self.acts, strict=True)):
            if state is None:
                x = self._sum(cast(nn.Conv2d, conv), parts, 2**k)
            else:
                x = conv(state.prepend(torch.cat(parts, dim=1), 2**k))
            x = act(norm(x))
            parts.insert(0, x)
        return x

    @staticmethod
    def _sum(conv: nn.Conv2d, parts: List[Tensor], past: int) -> Tensor:
        weights = [w.contiguous() for w in conv.weight.detach().chunk(len(parts), dim=1)]
        total = _PaddedConv.apply(parts[0], weights[0], conv.bias, past)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total = _PaddedConv.apply(part, weight, None, past) + total
        return total


class _FusedAttention(torch.autograd.Function):
    """Attention of ``(N, L, D)`` over L, heads side by side in D; ``bias``: of q, then k, then v."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
        n, length, dim = q.shape
        biased = (x + b for x, b in zip((q, k, v), bias.chunk(3), strict=True))
        q, k, v = (x.view(n, length, heads, dim // heads).transpose(1, 2) for x in biased)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, dim)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, bias: Any, heads: int) -> Any:
        result = g.op(f"{CONTRIB}::MultiHeadAttention", q, k, v, bias, num_heads_i=heads)
        result.setType(q.type())
        return result


class _Attention(nn.Module):
    def __init__(self, attention: SelfAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, mask: Optional[Tensor] = None, state: Optional[StreamState] = None) -> Tensor:
        if mask is not None and state is not None:
            return self._stream(x, mask, state)
        if mask is not None:
            return self.attention(x, mask)
        weights = self.attention.qkv.weight.detach().chunk(3)
        q, k, v = (x @ weight.t().contiguous() for weight in weights)
        joined = _FusedAttention.apply(q, k, v, self.attention.qkv.bias, self.attention.heads)
        return self.attention.output(joined)

    def _stream(self, x: Tensor, mask: Tensor, state: StreamState) -> Tensor:
        """Single operations: the fused one would move keys and values of the whole window in every step."""
        n, length, dim = x.shape
        heads = self.attention.heads
        q, k, v = self.attention.qkv(x).view(n, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        past = mask.shape[1] - length
        k, v = state.prepend(k, past), state.prepend(v, past)
        # A sum instead of a choice for every head and bin.
        bias = torch.where(mask, 0.0, torch.finfo(x.dtype).min)
        scores = (q * (dim // heads) ** -0.5) @ k.transpose(2, 3) + bias
        return self.attention.output((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, dim))


class _Branch(nn.Module):
    """:class:`SequenceBranch` from and to ``(B, T, F, D)``, without the norm that closes it."""

    def __init__(self, branch: SequenceBranch, over_frequency: bool):
        super().__init__()
        self.branch = branch
        branch.gru.batch_first = False  # as onnxruntime wants it
        self.attention = _Attention(branch.attention)
        self.over_frequency = over_frequency

    def forward(self, x: Tensor, mask: Optional[Tensor] = None, state: Optional[StreamState] = None) -> Tensor:
        branch, shape = self.branch, x.shape
        x = self._batch_first(x)
        x = branch.post_attention_norm(x + self.attention(branch.pre_attention_norm(x), mask, state))
        x = x.transpose(0, 1)
        first = None if state is None else state.take(x, 1, x.shape[1], branch.gru.hidden_size)
        recurrent, last = branch.gru(x, first)
        if state is not None:
            state.keep(last)
        x = branch.post_gru_norm(x + branch.gru_projection(F.relu(recurrent)))
        return self._restored(x, shape)

    def _batch_first(self, x: Tensor) -> Tensor:
        b, t, f, d = x.shape
        return x.reshape(b * t, f, d) if self.over_frequency else x.transpose(1, 2).reshape(b * f, t, d)

    def _restored(self, x: Tensor, shape: torch.Size) -> Tensor:
        b, t, f, d = shape
        if self.over_frequency:
            return x.transpose(0, 1).reshape(b, t, f, d)
        return x.view(t, b, f, d).transpose(0, 1)


class _DualPath(nn.Module):
    """Features come last from the entry to the exit."""

    def __init__(self, dual_path: DualPath):
        super().__init__()
        self.gains = dual_path.gain_frequency, dual_path.gain_time
        self.entry, self.exit = cast(nn.Conv2d, dual_path.entry[0]), cast(nn.Conv2d, dual_path.exit[1])
        self.entry_act = FastPReLU(cast(nn.PReLU, dual_path.entry[1]), dims=0)
        self.exit_act = FastPReLU(cast(nn.PReLU, dual_path.exit[0]), dims=0)
        self.blocks = nn.ModuleList(_DualPathBlock(cast(DualPathBlock, block)) for block in dual_path.blocks)

    def forward(self, x: Tensor, every_block: bool = False, state: Optional[StreamState] = None) -> List[Tensor]:
        b, c, t, f = x.shape
        entry_bias, exit_bias = cast(Tensor, self.entry.bias), cast(Tensor, self.exit.bias)
        x = x.flatten(2).transpose(1, 2) @ self.entry.weight.detach().flatten(1).t().contiguous() + entry_bias
        x = self.entry_act(x).view(b, t, f, -1)
        for block in self.blocks:
            x = block(x, self.gains, state)
        x = self.exit_act(x).reshape(b, t * f, -1).transpose(1, 2)
        return [(self.exit.weight.detach().flatten(1) @ x + exit_bias[:, None]).view(b, c, t, f)]


class _DualPathBlock(nn.Module):
    """The block's input plus both branches times their gains, from and to ``(B, T, F, D)``."""

    def __init__(self, block: DualPathBlock):
        super().__init__()
        self.attention_window = block.attention_window
        self.over_frequency, self.over_time = _Branch(block.frequency_branch, True), _Branch(block.time_branch, False)

    def forward(self, x: Tensor, gains: Tuple[Tensor, Tensor], state: Optional[StreamState]) -> Tensor:
        mask = None
        if self.attention_window is not None:
            mask = attention_mask(x.permute(0, 3, 1, 2), self.attention_window, state)
        results = self.over_frequency(x), self.over_time(x, mask, state)
        norms = self.over_frequency.branch.group_norm, self.over_time.branch.group_norm
        for gain, norm, result in zip(gains, norms, results, strict=True):
            x = x + _scaled_group_norm(norm, gain, result)
        return x


def _scaled_group_norm(norm: nn.Module, gain: Tensor, x: Tensor) -> Tensor:
    """The norm that closes a branch, of ``(B, T, F, D)``, times a gain.

    Means are taken over frames first: one float32 sum over a whole recording would cost more digits than all other
    layers together.
    """
    if isinstance(norm, FrameNorm):
        scaled = copy.deepcopy(norm)
        for parameter in scaled.parameters():
            parameter.mul_(gain)
        return _FrameNorm(scaled).last(x)
    assert isinstance(norm, nn.GroupNorm)
    centred = x - x.mean((2, 3), keepdim=True).mean(1, keepdim=True)
    variance = (centred * centred).mean((2, 3), keepdim=True).mean(1, keepdim=True)
    return centred * (gain * norm.weight / (variance + norm.eps).sqrt()) + gain * norm.bias
