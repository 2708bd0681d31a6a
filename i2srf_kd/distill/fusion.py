"""Recursive fusion of a layer set into one representative feature (arXiv 2506.13127, section on fusion).

The layers enter one after the other. Each is reduced to a common width and mixed, by two gates per clip, frame and
bin, with the state that the layers before it left. The state, not the final convolution's output, is carried on.

The state is resized to each layer's width by picking bins. Everything between a layer's norm and the last layer acts
bin by bin, so only the bins that the last layer's width will pick are ever computed; the norm still sees the whole
layer, through the mean and covariance of its input. Both are exact.
"""

from typing import List, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2srf_kd.distill.products import self_gram


class FusionOutput(NamedTuple):
    """Attributes: ``output`` ``(B, C, T, F_last)``, the representative feature; ``state`` ``(B, M, T, F_last)``."""

    output: Tensor
    state: Tensor


def nearest_columns(columns: Tensor, source: int, target: int) -> Tensor:
    """Bins of a map of width ``source`` that a nearest-neighbour resize to ``target`` puts at ``columns``."""
    return columns * source // target


class _Reduce(nn.Module):
    """1x1 convolution, instance norm and PReLU, evaluated at chosen bins only."""

    def __init__(self, channels: int, middle: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, middle, 1, bias=False)
        self.norm = nn.InstanceNorm2d(middle, affine=True)
        self.act = nn.PReLU()

    def forward(self, feature: Tensor, columns: Tensor) -> Tensor:
        """``(B, C, T, F)`` to ``(B, M, T, len(columns))``."""
        with torch.autocast(feature.device.type, enabled=False):
            feature = feature.to(self.conv.weight.dtype)
            # The norm's mean and variance follow from those of the input, without the convolution at every bin.
            feature = feature - feature.mean((2, 3), keepdim=True)
            covariance = self_gram(feature.flatten(2)) / feature[0, 0].numel()
            weight = self.conv.weight.flatten(1)
            variance = ((weight @ covariance) * weight).sum(-1)
            kernel = (self.norm.weight * (variance + self.norm.eps).rsqrt()).unsqueeze(-1) * weight  # (B, M, C)
        picked = feature.index_select(3, columns)
        mixed = kernel @ picked.flatten(2) + self.norm.bias.unsqueeze(-1)
        return self.act(mixed.unflatten(2, picked.shape[2:]))


class _Gate(nn.Module):
    """Mix a reduced layer with the running state, each weighted by its own sigmoid gate."""

    def __init__(self, middle: int):
        super().__init__()
        self.conv = nn.Conv2d(2 * middle, 2, 1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        for_x, for_state = self.conv.weight.chunk(2, dim=1)
        gates = torch.sigmoid(F.conv2d(x, for_x, self.conv.bias) + F.conv2d(state, for_state))
        return gates[:, :1] * x + gates[:, 1:] * state


class RecursiveFusion(nn.Module):
    """Fuse the layers of one set.

    Args:
        in_channels: channels of the layers in order of entry.
        middle_channels: common width M of the recursion (128 in the published code).
        out_channels: channels C of the representative feature.
        accept_state: also gate the first layer, with a state handed over by another set.

    Shape:
        list of ``(B, C_k, T, F_k)`` to ``(B, C, T, F_last)``.
    """

    def __init__(self, in_channels: Sequence[int], middle_channels: int, out_channels: int, accept_state: bool = False):
        super().__init__()
        if not in_channels:
            raise ValueError("a fusion needs at least one layer")
        self.reduce = nn.ModuleList(_Reduce(channels, middle_channels) for channels in in_channels)
        gated = len(in_channels) - (0 if accept_state else 1)
        self.accept_state = accept_state
        self.gates = nn.ModuleList(_Gate(middle_channels) for _ in range(gated))
        self.final = nn.Sequential(
            nn.Conv2d(middle_channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True),
            nn.PReLU(),
        )

    def forward(self, features: Sequence[Tensor], state: Optional[Tensor] = None) -> FusionOutput:
        """Fuse ``features`` in the order given.

        Args:
            features: layers ``(B, C_k, T, F_k)``.
            state: state ``(B, M, T, F)`` of another set; needed if and only if built with ``accept_state``.
        """
        if len(features) != len(self.reduce):
            raise ValueError(f"the fusion was built for {len(self.reduce)} layers, got {len(features)}")
        if (state is not None) != self.accept_state:
            raise ValueError("a state must be given exactly when the fusion was built with accept_state=True")
        survivors = _surviving_columns(features)
        if state is not None:
            handed_over = nearest_columns(survivors[0], state.shape[3], features[0].shape[3])
            state = state.index_select(3, handed_over)
        gates: List[nn.Module] = list(self.gates)
        for feature, reduce, columns in zip(features, self.reduce, survivors, strict=True):
            x = reduce(feature, columns)
            state = x if state is None else gates.pop(0)(x, state)
        assert state is not None
        return FusionOutput(self.final(state), state)


def _surviving_columns(features: Sequence[Tensor]) -> List[Tensor]:
    """Of each layer, the bins that reach the last layer through the resizes in between."""
    columns = torch.arange(features[-1].shape[3], device=features[-1].device)
    survivors = [columns]
    for layer, following in zip(features[-2::-1], features[:0:-1], strict=True):
        columns = nearest_columns(columns, layer.shape[3], following.shape[3])
        survivors.append(columns)
    return survivors[::-1]
