"""Recursive fusion of a layer set into one representative feature (arXiv 2506.13127, section on fusion).

The layers enter one after the other. Each is reduced to a common width and mixed, by two gates per clip, frame and
bin, with the state that the layers before it left. The state, not the final convolution's output, is carried on.

The state is resized to each layer's width by picking bins. Everything between a layer's norm and the last layer acts
bin by bin, so only the bins that the last layer's width will pick are ever computed; the norm still sees the whole
layer, through the mean and covariance of its input. Both are exact.
"""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor, nn

from i2srf_kd.distill.fusion_autograd import Columns, Layer, mix_layers, moments, norm_act


class FusionOutput(NamedTuple):
    """Attributes: ``output`` ``(B, C, T, F_last)``, the representative feature; ``state`` ``(B, M, T, F_last)``."""

    output: Tensor
    state: Tensor


def nearest_columns(columns: Any, source: int, target: int) -> Any:
    """Bins of a map of width ``source`` that a nearest-neighbour resize to ``target`` puts at ``columns``."""
    return columns * source // target


class _Reduce(nn.Module):
    """1x1 convolution, instance norm and PReLU, folded for :func:`~i2srf_kd.distill.fusion_autograd.mix_layers`."""

    def __init__(self, channels: int, middle: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, middle, 1, bias=False)
        self.norm = nn.InstanceNorm2d(middle, affine=True)
        self.act = nn.PReLU()

    def forward(self, feature: Tensor) -> Tuple[Tensor, Tensor]:
        """``(B, C, T, F)`` to the products ``(B, M, C)`` and offsets ``(B, M)`` that stand for convolution and norm."""
        # The norm's mean and variance follow from those of the input, without the convolution at every bin.
        mean, covariance = moments(feature.flatten(2).to(self.conv.weight.dtype))
        weight = self.conv.weight.flatten(1)
        variance = ((weight @ covariance) * weight).sum(-1)
        kernel = (self.norm.weight * (variance + self.norm.eps).rsqrt()).unsqueeze(-1) * weight
        return kernel, self.norm.bias - (kernel @ mean.unsqueeze(-1)).squeeze(-1)


class _Gate(nn.Module):
    """Weights of the two gates of a layer, each a sigmoid of the reduced layer and the running state."""

    def __init__(self, middle: int):
        super().__init__()
        self.conv = nn.Conv2d(2 * middle, 2, 1)

    def forward(self) -> Tuple[Tensor, Tensor]:
        """Weight ``(2, 2 * M)`` and bias ``(2,)``."""
        return self.conv.weight.flatten(1), cast(Tensor, self.conv.bias)


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
        widths = [feature.shape[3] for feature in features]
        survivors = _surviving_columns(widths if state is None else [state.shape[3], *widths])
        chosen = [_as_slice(columns, features[0].device) for columns in survivors]
        if state is not None:
            state = state[..., chosen.pop(0)]
        kind = features[-1].device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        gates: List[Any] = [None] * (len(features) - len(self.gates)) + [gate() for gate in self.gates]
        layers = []
        with torch.autocast(kind, enabled=False):
            for feature, reduce, gate, columns in zip(features, self.reduce, gates, chosen, strict=True):
                folded = [*reduce(feature), cast(_Reduce, reduce).act.weight, *(gate or ())]
                kernel, offset, slope, *gate_tensors = (t.to(half or t.dtype) for t in folded)
                layers.append(Layer(feature, columns, kernel, offset, slope, tuple(gate_tensors) or None))
            state = mix_layers(layers, None if state is None else state.to(layers[0].kernel.dtype))
        conv, norm, act = cast(Tuple[nn.Conv2d, nn.InstanceNorm2d, nn.PReLU], tuple(self.final))
        return FusionOutput(norm_act(conv(state), norm.weight, norm.bias, act.weight, norm.eps), state)


def _surviving_columns(widths: Sequence[int]) -> List[List[int]]:
    """Of each map of a chain of these widths, the bins that reach the last one through the resizes in between."""
    columns = list(range(widths[-1]))
    survivors = [columns]
    for width, following in zip(widths[-2::-1], widths[:0:-1], strict=True):
        columns = [int(nearest_columns(column, width, following)) for column in columns]
        survivors.append(columns)
    return survivors[::-1]


def _as_slice(columns: List[int], device: torch.device) -> Columns:
    """A slice where the bins are evenly spaced, an index otherwise."""
    step = columns[1] - columns[0] if len(columns) > 1 else 1
    if step > 0 and columns == list(range(columns[0], columns[-1] + 1, step)):
        return slice(columns[0], columns[-1] + 1, step)
    return torch.tensor(columns, device=device)
