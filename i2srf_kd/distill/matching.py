"""The one place where networks of different sizes are made comparable, and which of their layers meet.

- Frames: :func:`match_sides` brings all layers of both networks to one frame rate before any method is called.
- Bins: :func:`match_width`, by area averages.
- Channels: a learned 1x1 :class:`Conv`, for methods that compare values; the others compare what has no channels.

Everything here works in at least float32, also under autocast, and whatever the dtype of the parameters.
"""

import math
from dataclasses import replace
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.distill.method import DistillMethod, LayerShape, Layout, Side
from i2srf_kd.distill.similarity import resampling_matrix

DEFAULT_SETS = ("encoder", "dual_path", "decoder")


def check_sets(sets: Sequence[str], student: Layout, teacher: Layout) -> None:
    """ValueError unless ``sets`` is a list of sets that both networks have."""
    if isinstance(sets, str):
        raise ValueError(f"sets must be a list such as [encoder, dual_path], not {sets!r}")
    if not sets:
        raise ValueError("sets is empty: nothing to distil")
    if len(set(sets)) < len(sets):
        raise ValueError(f"sets names a set twice: {', '.join(sets)}")
    for who, layout in (("student", student), ("teacher", teacher)):
        if not layout:
            raise ValueError(f"the {who} announces no features: name its taps ({who}_taps)")
        missing = [name for name in sets if not layout.get(name)]
        if missing:
            raise ValueError(
                f"the {who} has no feature set {', '.join(missing)} (it has {', '.join(layout)}): "
                f"name its taps or leave the set out of 'sets'"
            )


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(choices)}, not {value!r}")


def check_number(option: str, value: object, low: float, high: float = math.inf, above: bool = False) -> None:
    """ValueError unless ``low <= value <= high`` (``above``: ``low < value``) and finite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        limits = f"{'above' if above else 'at least'} {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
        raise ValueError(f"{option} must be a number {limits}, not {value!r}")


def check_count(option: str, value: object) -> None:
    """ValueError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{option} must be a whole number of at least 1, not {value!r}")


def partner(layer: int, student_layers: int, teacher_layers: int) -> int:
    """The teacher's layer for a student's layer: the same relative depth, the last ones always together."""
    return -(-(layer + 1) * teacher_layers // student_layers) - 1


def full_precision(x: Tensor) -> Tensor:
    """``x`` in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def match_width(feature: Tensor, width: int) -> Tensor:
    """Bring ``(..., F)`` to ``(..., width)`` by area averages."""
    bins = feature.shape[-1]
    return feature if bins == width else feature @ resampling_matrix(bins, width, feature)


def frame_matrix(frames: int, target: int, like: Tensor) -> Tensor:
    """Matrix ``(frames, target)`` that resamples along time: first frame to first, last to last.

    Linear interpolation; towards fewer frames the triangle is as wide as the new step, so that no frame is skipped.
    """
    if target == 1:
        return like.new_full((frames, 1), 1 / frames)
    step = (frames - 1) / (target - 1)
    at = torch.arange(target, device=like.device, dtype=like.dtype) * step
    distance = (torch.arange(frames, device=like.device, dtype=like.dtype).unsqueeze(1) - at).abs()
    weights = (1 - distance / max(step, 1)).clamp_min(0)
    return weights / weights.sum(0)


def match_frames(feature: Tensor, frames: int) -> Tensor:
    """Resample ``(B, C, T, F)`` to ``(B, C, frames, F)``, for networks and layers of another frame rate."""
    if feature.shape[2] == frames:
        return feature
    with torch.autocast(feature.device.type, enabled=False):
        feature = full_precision(feature)
        return frame_matrix(feature.shape[2], frames, feature).mT @ feature


def match_sides(student: Side, teacher: Side) -> Tuple[Side, Side]:
    """Both sides with every layer at one number of frames: the fewest that a layer of the student has."""
    frames = min((f.shape[2] for layers in student.features.values() for f in layers), default=0)

    def matched(side: Side) -> Side:
        features = {name: [match_frames(f, frames) for f in layers] for name, layers in side.features.items()}
        return replace(side, features=features)

    return (matched(student), matched(teacher)) if frames else (student, teacher)


def unit_rows(x: Tensor) -> Tensor:
    """Scale the last axis of ``(..., N)`` to unit length; rows of zeros stay zero, with a finite gradient."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-20).rsqrt()


class Conv(nn.Conv2d):
    """Convolution that keeps frames and bins, ``(B, C, T, F)`` to ``(B, out, T, F)``, in the dtype of its input."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, size, padding=size // 2, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return self._conv_forward(input, self.weight.to(input.dtype), bias)


class PairedMethod(DistillMethod):
    """Base of methods that compare each student layer of a set with one teacher layer of the same set.

    Where the numbers of layers differ, layers of the same relative depth meet. The term of a set is the mean over the
    student's layers. A subclass gives :meth:`pair_loss`, and may replace the student's layers by :meth:`fuse`.
    """

    def __init__(self, student: Layout, teacher: Layout, sets: Sequence[str] = DEFAULT_SETS):
        super().__init__(student, teacher)
        check_sets(sets, student, teacher)
        self.sets = list(sets)

    def shape_pairs(self, student: Layout, teacher: Layout) -> Dict[str, List[Tuple[LayerShape, LayerShape]]]:
        """Sizes of the layers that meet, by set."""
        return {
            name: [
                (shape, teacher[name][partner(i, len(student[name]), len(teacher[name]))])
                for i, shape in enumerate(student[name])
            ]
            for name in self.sets
        }

    def fuse(self, name: str, layers: List[Tensor]) -> List[Tensor]:
        """What takes the place of the student's layers of a set; here the layers themselves."""
        return layers

    def pair_loss(self, name: str, layer: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of a student layer ``(B, C, T, F)`` and its teacher layer ``(B, C', T, F')``."""
        raise NotImplementedError

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        terms: Dict[str, Tensor] = {}
        for name in self.sets:
            theirs = [full_precision(f.detach()) for f in teacher.features[name]]
            with torch.autocast(theirs[0].device.type, enabled=False):
                ours = self.fuse(name, [full_precision(f) for f in student.features[name]])
                losses = [
                    self.pair_loss(name, i, feature, theirs[partner(i, len(ours), len(theirs))])
                    for i, feature in enumerate(ours)
                ]
                terms[name] = torch.stack(losses).mean()
        return terms


class CrossLayerFusion(nn.Module):
    """Residual fusion from the deepest layer of a set to the first (attention-based fusion of ReviewKD, 2104.09044).

    The layer enters a 1x1 convolution to the common width; the running state is resized to it, and two sigmoid maps of
    the concatenation say how much of each is kept. The mixture is the next state and, after a 3x3 convolution, the
    fused layer. Norms are instance norms, so that a loss does not depend on how clips are batched.

    Args:
        layers: sizes of the layers in network order.
        middle_channels: width of the recursion.
        out_channels: channels of each fused layer.

    Shape:
        list of ``(B, C_k, T, F_k)`` to list of ``(B, out_k, T, F_k)``, both in network order.
    """

    def __init__(self, layers: Sequence[LayerShape], middle_channels: int, out_channels: Sequence[int]):
        super().__init__()
        self.enter = nn.ModuleList(Conv(layer.channels, middle_channels, bias=False) for layer in layers)
        self.enter_norm = nn.ModuleList(_InstanceNorm(middle_channels) for _ in layers)
        self.gates = nn.ModuleList(Conv(2 * middle_channels, 2) for _ in layers[1:])
        self.leave = nn.ModuleList(Conv(middle_channels, out, size=3, bias=False) for out in out_channels)
        self.leave_norm = nn.ModuleList(_InstanceNorm(out) for out in out_channels)

    def forward(self, features: Sequence[Tensor]) -> List[Tensor]:
        """Fuse ``features`` (network order)."""
        state: Optional[Tensor] = None
        fused: List[Tensor] = []
        for k in reversed(range(len(features))):
            x = self.enter_norm[k](self.enter[k](features[k]))
            if state is not None:
                state = match_width(state, x.shape[3])
                gates = torch.sigmoid(self.gates[k](torch.cat([x, state], 1)))
                x = gates[:, :1] * x + gates[:, 1:] * state
            state = x
            fused.append(self.leave_norm[k](self.leave[k](x)))
        return fused[::-1]


class FusedMethod(PairedMethod):
    """Base of methods that fuse the student's layers of a set (:class:`CrossLayerFusion`) before comparing them.

    Args:
        sets: layer sets to distil.
        middle_channels: width of the fusion.
    """

    def __init__(
        self,
        student: Layout,
        teacher: Layout,
        sets: Sequence[str] = DEFAULT_SETS,
        middle_channels: int = 64,
    ):
        super().__init__(student, teacher, sets)
        check_count("middle_channels", middle_channels)
        self.fusion = nn.ModuleDict()
        for name, pairs in self.shape_pairs(student, teacher).items():
            widths = [self.fused_channels(theirs, middle_channels) for _, theirs in pairs]
            self.fusion[name] = CrossLayerFusion(student[name], middle_channels, widths)

    def fused_channels(self, theirs: LayerShape, middle_channels: int) -> int:
        """Channels of a fused layer that meets the teacher's layer ``theirs``; here the width of the fusion."""
        return middle_channels

    def fuse(self, name: str, layers: List[Tensor]) -> List[Tensor]:
        return self.fusion[name](layers)


class _InstanceNorm(nn.Module):
    """Instance norm with scale and offset that follows the dtype of its input and takes a single bin as well."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean((2, 3), keepdim=True)
        scale = (centred.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()
        return centred * scale * self.weight.to(x.dtype) + self.bias.to(x.dtype)
