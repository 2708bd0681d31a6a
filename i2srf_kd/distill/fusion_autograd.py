"""The recursion of a fusion and the norm behind it, with gradients that keep little and work in cache.

Both are memory-bound: one pass over a ``(B, M, T, F)`` map costs as much as the products of a layer. Autograd keeps
about five such maps per layer, and each of its passes goes through main memory. Here, what the recursion makes of one
clip is made, used and forgotten before the next one (on a GPU: of all clips at once), and made again for the gradient
from the features, which are there anyway. The gradients are those that autograd gives, written out.

Under ``torch.compile``, which fuses such passes itself, :func:`mix_layers` leaves the gradient to autograd.
"""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

Columns = Union[slice, Tensor]

# Positions (frames times bins) that a CPU works on at a time: a map of 128 channels then fits its second-level cache.
_POSITIONS = 2048


class Layer(NamedTuple):
    """One layer of a recursion.

    Attributes:
        feature: ``(B, C, T, F)``.
        columns: bins that are read, as an index or, which is faster, a slice.
        kernel: convolution and norm folded, one for each clip, ``(B, M, C)``.
        offset: ``(B, M)``.
        slope: of the PReLU, ``(1,)``.
        gate: weight ``(2, 2 * M)``, first for the layer and then for the state, and bias ``(2,)``; None for a layer
            that finds no state.
    """

    feature: Tensor
    columns: Columns
    kernel: Tensor
    offset: Tensor
    slope: Tensor
    gate: Optional[Tuple[Tensor, Tensor]]


class _Step(NamedTuple):
    """What a layer makes of a chunk of N positions, and what its gradient needs."""

    read: Tensor  # (b, C, N)
    reduced: Tensor  # (b, N, M), before the PReLU
    x: Tensor  # (b, N, M)
    before: Optional[Tensor]  # the state it finds, (b, N, M)
    gates: Optional[Tensor]  # (b, N, 2)
    state: Tensor  # (b, N, M)


def _prelu_gradient(x: Tensor, slope: Tensor, grad: Tensor) -> Tuple[Tensor, Tensor]:
    """Of a PReLU of one slope: by its input and by the slope."""
    # Several times as fast on a CPU as torch.where and as autograd's own, which are not vectorised.
    by_slope = torch.linalg.vecdot(x.clamp_max(0).flatten(), grad.flatten()).view(1)
    positive = torch.ops.aten.threshold_backward(grad, x, 0)
    return positive.mul_(1 - slope).addcmul_(grad, slope), by_slope


def _read(layer: Layer) -> Tensor:
    """The bins of a chunk that are needed, ``(b, C, N)``."""
    return layer.feature[..., layer.columns].flatten(2)


def _reads_all(layer: Layer) -> bool:
    width = layer.feature.shape[3]
    return isinstance(layer.columns, slice) and len(range(width)[layer.columns]) == width


def _step(layer: Layer, before: Optional[Tensor]) -> _Step:
    read = _read(layer).to(layer.kernel.dtype)
    reduced = torch.baddbmm(layer.offset.unsqueeze(1), read.mT, layer.kernel.mT)
    x = F.prelu(reduced, layer.slope)
    if layer.gate is None or before is None:
        return _Step(read, reduced, x, None, None, x)
    weight, bias = layer.gate
    middle = x.shape[-1]
    gates = torch.sigmoid(x @ weight[:, :middle].mT + before @ weight[:, middle:].mT + bias)
    state = (gates[..., :1] * x).addcmul(gates[..., 1:], before)
    return _Step(read, reduced, x, before, gates, state)


def _steps(layers: Sequence[Layer], state: Optional[Tensor]) -> List[_Step]:
    steps: List[_Step] = []
    for layer in layers:
        steps.append(_step(layer, steps[-1].state if steps else state))
    return steps


class _StepGradient(NamedTuple):
    """Of one layer and chunk: by the layer's tensors, and by the state that it found."""

    read: Optional[Tensor]
    kernel: Tensor
    offset: Tensor
    slope: Tensor
    gate_weight: Optional[Tensor]
    gate_bias: Optional[Tensor]
    before: Optional[Tensor]


def _step_gradient(layer: Layer, step: _Step, grad: Tensor, with_feature: bool) -> _StepGradient:
    """Gradient of a layer, given that of the state it leaves, ``(b, N, M)``."""
    gate_weight = gate_bias = before = None
    if step.gates is not None and step.before is not None and layer.gate is not None:
        weight, middle = layer.gate[0], grad.shape[-1]
        # Of both gates: inner products over the channels.
        by_gates = torch.cat([(grad * step.x).sum(-1, keepdim=True), (grad * step.before).sum(-1, keepdim=True)], -1)
        inner = by_gates * step.gates * (1 - step.gates)  # before the sigmoid, (b, N, 2)
        flat = inner.flatten(0, 1).mT
        gate_bias = flat.sum(-1)
        gate_weight = torch.cat([flat @ step.x.flatten(0, 1), flat @ step.before.flatten(0, 1)], dim=1)
        before = (step.gates[..., 1:] * grad).add_(inner @ weight[:, middle:])
        grad = (step.gates[..., :1] * grad).add_(inner @ weight[:, :middle])
    grad, slope = _prelu_gradient(step.reduced, layer.slope, grad)
    read = layer.kernel.mT @ grad.mT if with_feature else None
    return _StepGradient(read, (step.read @ grad).mT, grad.sum(1), slope, gate_weight, gate_bias, before)


def _chunks(like: Tensor, bins: int) -> List[Tuple[slice, slice]]:
    """Clips and frames to work on at a time."""
    clips, _, frames, _ = like.shape
    if like.device.type != "cpu":
        return [(slice(0, clips), slice(0, frames))]
    step = max(1, _POSITIONS // bins)
    return [(slice(b, b + 1), slice(t, t + step)) for b in range(clips) for t in range(0, frames, step)]


def _cut(layer: Layer, clips: slice, frames: slice) -> Layer:
    return layer._replace(
        feature=layer.feature[clips, :, frames], kernel=layer.kernel[clips], offset=layer.offset[clips]
    )


def _positions(state: Tensor) -> Tensor:
    """``(b, M, t, F)`` to ``(b, N, M)``."""
    return state.permute(0, 2, 3, 1).flatten(1, 2)


class _Mix(torch.autograd.Function):
    """:func:`mix_layers`; the tensors of all layers in a row, six for each, after the state handed over."""

    @staticmethod
    def forward(ctx: Any, columns: Sequence[Columns], state: Optional[Tensor], *tensors: Any) -> Tensor:
        layers = _unflatten(columns, tensors)
        last, kernel = layers[-1].feature, layers[-1].kernel  # all bins of the last layer are read
        bins = last.shape[3]
        # Channels come last in memory: the products give it so, and convolutions and Gram matrices take it as it is.
        out = kernel.new_empty(last.shape[0], last.shape[2], bins, kernel.shape[1])
        for clips, frames in _chunks(last, bins):
            carried = None if state is None else _positions(state[clips, :, frames])
            steps = _steps([_cut(layer, clips, frames) for layer in layers], carried)
            out[clips, frames] = steps[-1].state.unflatten(1, (-1, bins))
        ctx.columns = columns
        ctx.save_for_backward(state, *tensors)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        state, *tensors = ctx.saved_tensors
        layers = _unflatten(ctx.columns, tensors)
        bins = grad.shape[3]
        needed = ctx.needs_input_grad[2::6]
        gradients = [None if t is None else torch.zeros_like(t) for t in tensors]
        for k, need in enumerate(needed):
            make = torch.empty_like if _reads_all(layers[k]) else torch.zeros_like
            gradients[6 * k] = make(layers[k].feature) if need else None
        state_gradient = torch.empty_like(state) if state is not None else None
        for clips, frames in _chunks(grad, bins):
            cut = [_cut(layer, clips, frames) for layer in layers]
            carried = None if state is None else _positions(state[clips, :, frames])
            steps = _steps(cut, carried)
            by_state: Optional[Tensor] = _positions(grad[clips, :, frames])
            for k in reversed(range(len(layers))):
                assert by_state is not None
                found = _step_gradient(cut[k], steps[k], by_state, needed[k])
                _add(gradients[6 * k : 6 * k + 6], found, ctx.columns[k], clips, frames, bins)
                by_state = found.before
            if state_gradient is not None and by_state is not None:
                state_gradient[clips, :, frames] = by_state.unflatten(1, (-1, bins)).permute(0, 3, 1, 2)
        return (None, state_gradient, *gradients)


def _add(
    gradients: Sequence[Any], found: _StepGradient, columns: Columns, clips: slice, frames: slice, bins: int
) -> None:
    """Add the gradient of a chunk to those of a layer's tensors."""
    feature, kernel, offset, slope, gate_weight, gate_bias = gradients
    kernel[clips] += found.kernel
    offset[clips] += found.offset
    slope += found.slope
    if gate_weight is not None:
        gate_weight += found.gate_weight
        gate_bias += found.gate_bias
    if feature is not None and found.read is not None:
        read = found.read.unflatten(2, (-1, bins)).to(feature.dtype)
        part = feature[clips, :, frames]
        if isinstance(columns, slice):
            part[..., columns] = read
        else:
            part.index_add_(3, columns, read)


def _flatten(layers: Sequence[Layer]) -> List[Any]:
    return [t for x in layers for t in (x.feature, x.kernel, x.offset, x.slope, *(x.gate or (None, None)))]


def _unflatten(columns: Sequence[Columns], tensors: Sequence[Any]) -> List[Layer]:
    layers = []
    for k, picked in enumerate(columns):
        feature, kernel, offset, slope, weight, bias = tensors[6 * k : 6 * k + 6]
        layers.append(Layer(feature, picked, kernel, offset, slope, None if weight is None else (weight, bias)))
    return layers


def mix_layers(layers: Sequence[Layer], state: Optional[Tensor] = None) -> Tensor:
    """Reduce the layers one after the other and mix each with the state before it.

    Args:
        layers: in order of entry; the first has a gate if and only if a state is handed over.
        state: ``(B, M, T, F)``, at the bins that are needed.

    Returns:
        The last state ``(B, M, T, F)``, channels last in memory.
    """
    if torch.compiler.is_compiling():
        steps = _steps(layers, None if state is None else _positions(state))
        frames = layers[-1].feature.shape[2]
        return steps[-1].state.unflatten(1, (frames, -1)).permute(0, 3, 1, 2)
    return _Mix.apply([layer.columns for layer in layers], state, *_flatten(layers))


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tuple[Tensor, Tensor]:
        mean = x.mean(2)
        covariance = x.new_empty(x.shape[0], x.shape[1], x.shape[1])
        step = 1 if x.device.type == "cpu" else x.shape[0]
        for i in range(0, x.shape[0], step):
            clips = slice(i, i + step)
            centred = x[clips] - mean[clips].unsqueeze(-1)
            torch.bmm(centred, centred.mT, out=covariance[clips])
        ctx.save_for_backward(x, mean)
        return mean, covariance.div_(x.shape[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_covariance: Tensor) -> Tensor:  # type: ignore[override]
        x, mean = ctx.saved_tensors
        both = (by_covariance + by_covariance.mT) / x.shape[2]
        offset = by_mean.unsqueeze(-1) / x.shape[2] - both @ mean.unsqueeze(-1)
        return torch.baddbmm(offset, both, x)


def moments(x: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and covariance over the last axis: ``(B, C, N)`` to ``(B, C)`` and ``(B, C, C)``."""
    if torch.compiler.is_compiling():
        mean = x.mean(2)
        centred = x - mean.unsqueeze(-1)
        return mean, centred @ centred.mT / x.shape[2]
    return _Moments.apply(x)


class _NormAct(torch.autograd.Function):
    # The input is (B, N, C) in memory order.

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        means, scales = [], []
        for clips in _clips(x):
            mean = x[clips].mean(1)
            variance = (x[clips] - mean.unsqueeze(1)).square_().mean(1)  # three times as fast as torch.var_mean
            scale = (variance + eps).rsqrt()
            gain = weight * scale
            normed = torch.addcmul((bias - gain * mean).unsqueeze(1), x[clips], gain.unsqueeze(1))
            out[clips] = F.prelu(normed, slope)
            means.append(mean)
            scales.append(scale)
        ctx.save_for_backward(x, torch.cat(means), torch.cat(scales), weight, bias, slope)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, means, scales, weight, bias, slope = ctx.saved_tensors
        result = torch.empty_like(x)
        by_weight, by_bias, by_slope = (torch.zeros_like(t) for t in (weight, bias, slope))
        for clips in _clips(x):
            scale = scales[clips].unsqueeze(1)
            centred = (x[clips] - means[clips].unsqueeze(1)).mul_(scale)
            normed = centred * weight + bias
            g, by_slope_here = _prelu_gradient(normed, slope, grad[clips])
            by_slope += by_slope_here
            total, product = g.sum(1), (g * centred).sum(1)
            by_bias += total.sum(0)
            by_weight += product.sum(0)
            g.sub_(total.unsqueeze(1) / x.shape[1]).sub_(centred.mul_(product.unsqueeze(1) / x.shape[1]))
            result[clips] = g.mul_(scale * weight)
        return result, by_weight, by_bias, by_slope, None


def _clips(x: Tensor) -> List[slice]:
    step = 1 if x.device.type == "cpu" else len(x)
    return [slice(i, i + step) for i in range(0, len(x), step)]


def norm_act(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, eps: float) -> Tensor:
    """Instance norm over frames and bins, and PReLU of one slope: ``(B, C, T, F)`` to the same, channels last."""
    rows = _positions(x).to(torch.promote_types(x.dtype, torch.float32))
    if torch.compiler.is_compiling():
        variance, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        rows = F.prelu((rows - mean) * ((variance + eps).rsqrt() * weight) + bias, slope)
    else:
        rows = _NormAct.apply(rows, weight.to(rows.dtype), bias.to(rows.dtype), slope.to(rows.dtype), eps)
    return rows.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
