"""Building blocks of DPDCRN (arXiv 2506.13127): strided (de)convolutions, dilated dense block, dual-path block.

All feature maps are ``(B, C, T, F)``: batch, channel, frame, frequency bin.

Blocks that are built causal (ours) see no frame after the one they compute. Such blocks take what they remember of
earlier frames as ``state``, for a recording that arrives in chunks; None stands for a recording in one piece.
"""

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.nets.causal import FrameNorm, StreamState, attention_mask


class ConvNormAct(nn.Module):
    """Convolution over frequency, instance norm over (T, F), PReLU with a slope per channel.

    Args:
        conv: the convolution or transposed convolution.
        channels: its output channels.
        causal: normalise every frame by itself.
    """

    def __init__(self, conv: nn.Module, channels: int, causal: bool = False):
        super().__init__()
        self.conv = conv
        self.norm = FrameNorm(channels, 1e-5) if causal else nn.InstanceNorm2d(channels, eps=1e-5, affine=True)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def downsample(in_channels: int, channels: int, padding: int, causal: bool = False) -> ConvNormAct:
    """Halve the frequency axis: convolution (1, 3), stride (1, 2)."""
    return ConvNormAct(nn.Conv2d(in_channels, channels, (1, 3), (1, 2), (0, padding)), channels, causal)


def upsample(channels: int, out_channels: int, output_padding: int = 0) -> nn.ConvTranspose2d:
    """Double the frequency axis: transposed convolution (1, 3), stride (1, 2)."""
    return nn.ConvTranspose2d(channels, out_channels, (1, 3), (1, 2), output_padding=(0, output_padding))


class DilatedDenseBlock(nn.Module):
    """Densely connected convolutions whose dilation over the past doubles from layer to layer.

    Layer ``k`` sees frames ``t`` and ``t - 2**k`` and three neighbouring bins of everything before it, newest first.
    Only the last layer's output leaves the block.

    Shape: ``(B, C, T, F)`` to ``(B, C, T, F)``.
    """

    def __init__(self, channels: int, depth: int = 4, causal: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(
            ConvNormAct(
                nn.Conv2d(channels * (k + 1), channels, (2, 3), padding=(0, 1), dilation=(2**k, 1)),
                channels,
                causal,
            )
            for k in range(depth)
        )
        # Without gradient and state, write all layers into one buffer (i2srf_kd.training.speed).
        self.buffered = False

    def forward(self, x: Tensor, state: Optional[StreamState] = None) -> Tensor:
        if self.buffered and state is None and not torch.is_grad_enabled():
            return self._forward_buffered(x)
        dense = x
        for k, layer in enumerate(self.layers):
            past = 2**k
            x = layer(F.pad(dense, (0, 0, past, 0)) if state is None else state.prepend(dense, past))
            if k + 1 < len(self.layers):
                dense = torch.cat([x, dense], dim=1)
        return x

    def _forward_buffered(self, x: Tensor) -> Tensor:
        """The same with everything in one map, newest first, behind the zeros that stand for the past."""
        depth, past, channels = len(self.layers), 2 ** (len(self.layers) - 1), x.shape[1]
        dense = x.new_empty(x.shape[0], depth * channels, past + x.shape[2], x.shape[3])
        dense[:, :, :past] = 0
        dense[:, -channels:, past:] = x
        for k, layer in enumerate(self.layers):
            newest = (depth - 1 - k) * channels
            x = layer(dense[:, newest:, past - 2**k :])
            if k + 1 < depth:
                dense[:, newest - channels : newest, past:] = x
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second axis of ``(N, L, D)``."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention width {dim} is not divisible by {heads} heads: change channels or heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None, state: Optional[StreamState] = None) -> Tensor:
        """Attend.

        Args:
            x: ``(N, L, D)``.
            mask: bool ``(L, keys)``, true where a position (row) sees another (column); None: everywhere.
            state: earlier positions to attend to, as many as the mask has keys beyond L.
        """
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if state is not None and mask is not None:
            past = mask.shape[1] - length
            k, v = state.prepend(k, past), state.prepend(v, past)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(x.transpose(1, 2).reshape(n, length, dim))


class SequenceBranch(nn.Module):
    """Attention and a GRU over one axis, each with a residual and layer norms around it.

    Args:
        dim: feature width D.
        heads: attention heads.
        bidirectional: True over frequency, False over time.
        causal: the norm that closes the branch is taken over single frames.

    Shape: ``(N, L, D)`` to ``(N, L, D)``; the group norm that closes the branch is applied by the block, because it
    needs the whole ``(B, D, T, F)`` map.
    """

    def __init__(self, dim: int, heads: int, bidirectional: bool, causal: bool = False):
        super().__init__()
        self.pre_attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.post_attention_norm = nn.LayerNorm(dim)
        self.gru = nn.GRU(dim, 2 * dim, batch_first=True, bidirectional=bidirectional)
        self.gru_projection = nn.Linear((4 if bidirectional else 2) * dim, dim)
        self.post_gru_norm = nn.LayerNorm(dim)
        self.group_norm = FrameNorm(dim, 1e-8) if causal else nn.GroupNorm(1, dim, eps=1e-8)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None, state: Optional[StreamState] = None) -> Tensor:
        """Run the branch; ``mask`` and ``state`` as for :class:`SelfAttention`."""
        x = self.post_attention_norm(x + self.attention(self.pre_attention_norm(x), mask, state))
        past = None if state is None else state.take(x, 1, len(x), self.gru.hidden_size)
        # On a GPU autocast takes a GRU to float16 whatever dtype it was asked for, and without a gradient scaler most
        # gradients are too small for that: a GRU runs in the dtype of its weights.
        with torch.autocast(x.device.type, enabled=False):
            recurrent, last = self.gru(x.to(self.gru.weight_hh_l0.dtype), past)  # type: ignore[arg-type]
        if state is not None:
            state.keep(last)
        return self.post_gru_norm(x + self.gru_projection(F.relu(recurrent)))


class DualPathBlock(nn.Module):
    """A frequency branch and a time branch, both fed by the block's input.

    Args:
        dim: feature width D.
        heads: attention heads.
        attention_window: frames that the time branch attends to, for a causal block; None for one that is not.

    Shape: ``(B, D, T, F)`` to two ``(B, D, T, F)``: (frequency branch, time branch).
    """

    def __init__(self, dim: int, heads: int, attention_window: Optional[int] = None):
        super().__init__()
        causal = attention_window is not None
        self.attention_window = attention_window
        self.frequency_branch = SequenceBranch(dim, heads, bidirectional=True, causal=causal)
        self.time_branch = SequenceBranch(dim, heads, bidirectional=False, causal=causal)

    def forward(self, x: Tensor, state: Optional[StreamState] = None) -> Tuple[Tensor, Tensor]:
        b, d, t, f = x.shape
        mask = None
        if self.attention_window is not None:
            mask = attention_mask(x, self.attention_window, state)
        over_frequency = self.frequency_branch(x.permute(0, 2, 3, 1).reshape(b * t, f, d))
        over_time = self.time_branch(x.permute(0, 3, 2, 1).reshape(b * f, t, d), mask, state)
        over_frequency = over_frequency.view(b, t, f, d).permute(0, 3, 1, 2)
        over_time = over_time.view(b, f, t, d).permute(0, 3, 2, 1)
        return (
            self.frequency_branch.group_norm(over_frequency),
            self.time_branch.group_norm(over_time),
        )


class DualPath(nn.Module):
    """The stack of dual-path blocks at half the channels.

    One pair of learned gains weights the branches of all blocks, and one exit layer maps each block's output back to
    ``channels``.

    Args:
        channels: C of input and output.
        blocks: number L of dual-path blocks.
        heads: attention heads.
        attention_window: see :class:`DualPathBlock`.
    """

    def __init__(self, channels: int, blocks: int, heads: int, attention_window: Optional[int] = None):
        super().__init__()
        dim = channels // 2
        self.entry = nn.Sequential(nn.Conv2d(channels, dim, 1), nn.PReLU())
        self.blocks = nn.ModuleList(DualPathBlock(dim, heads, attention_window) for _ in range(blocks))
        self.gain_frequency = nn.Parameter(torch.ones(1))
        self.gain_time = nn.Parameter(torch.ones(1))
        self.exit = nn.Sequential(nn.PReLU(), nn.Conv2d(dim, channels, 1))

    def forward(self, x: Tensor, every_block: bool = False, state: Optional[StreamState] = None) -> List[Tensor]:
        """Return the exit layer's output after each block, or after the last one alone.

        Args:
            x: ``(B, C, T, F)``.
            every_block: also map the outputs of the blocks before the last, which only distillation reads.
            state: for a recording in chunks.
        """
        x = self.entry(x)
        outputs = []
        for i, block in enumerate(self.blocks):
            over_frequency, over_time = block(x, state)
            x = x + self.gain_frequency * over_frequency + self.gain_time * over_time
            if every_block or i + 1 == len(self.blocks):
                outputs.append(self.exit(x))
        return outputs
