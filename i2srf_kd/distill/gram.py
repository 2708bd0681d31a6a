"""Matrix products with a cheaper gradient than autograd's."""

from typing import Any, Tuple

import torch
from torch import Tensor

_ROWS = 16


class _SelfGram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return (grad + grad.mT) @ x


def self_gram(x: Tensor) -> Tensor:
    """``X X^T`` over the last two axes: ``(..., N, D)`` to ``(..., N, N)``; its gradient is one product, not two."""
    return _SelfGram.apply(x)


class _FrameGrams(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tuple[Tensor, Tensor]:  # type: ignore[override]
        vectors, ctx.as_stored = _vectors(feature)
        frames = feature.shape[2]
        by_frame = vectors[:, :frames].transpose(0, 1)
        ctx.save_for_backward(feature, vectors)
        return (vectors @ vectors.mT)[:, :frames, :frames], by_frame @ by_frame.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_time: Tensor, by_batch: Tensor) -> Tensor:  # type: ignore[override]
        with torch.autocast(by_time.device.type, enabled=False):  # the backward pass may run inside one
            return _FrameGrams._gradient(ctx, by_time, by_batch)

    @staticmethod
    def _gradient(ctx: Any, by_time: Tensor, by_batch: Tensor) -> Tensor:
        feature, vectors = ctx.saved_tensors
        by_time, by_batch = by_time + by_time.mT, by_batch + by_batch.mT
        _, channels, frames, bins = feature.shape
        vectors = vectors[:, :frames]
        across = torch.bmm(by_batch, vectors.transpose(0, 1)).transpose(0, 1)  # (B, T, D)
        if ctx.as_stored:
            return _along_time(by_time, vectors, across).unflatten(2, (bins, channels)).permute(0, 3, 1, 2)
        across = across.unflatten(2, (channels, bins)).transpose(1, 2)
        return _along_time(by_time, feature, across)


def padding_flops(feature: Tensor) -> int:
    """Arithmetic that :func:`frame_grams` spends on rows of zeros."""
    clips, channels, frames, bins = feature.shape
    rows = 0 if _is_channels_last(feature) else -(-frames // _ROWS) * _ROWS
    return 2 * clips * channels * bins * max(0, rows**2 - frames**2)


def _is_channels_last(feature: Tensor) -> bool:
    return feature.permute(0, 2, 3, 1).is_contiguous()


def _vectors(feature: Tensor) -> Tuple[Tensor, bool]:
    """One vector for each clip and frame, and whether they are a view of a feature with channels last.

    The order of a vector's numbers, which the products do not see, is that of the memory. A copy is ``(B, N, D)`` with
    N a multiple of 16 and zeros behind the last frame: products of other sizes are a fifth slower on a CPU.
    """
    if _is_channels_last(feature):
        return feature.permute(0, 2, 3, 1).flatten(2), True
    clips, channels, frames, bins = feature.shape
    vectors = feature.new_empty(clips, -(-frames // _ROWS) * _ROWS, channels, bins)
    vectors[:, frames:] = 0
    vectors[:, :frames] = feature.transpose(1, 2)
    return vectors.flatten(2), False


def _along_time(gram: Tensor, x: Tensor, added: Tensor) -> Tensor:
    """``gram @ x + added`` for ``(B, T, T)`` and either ``(B, T, D)`` or ``(B, C, T, F)``, without a copy of x."""
    out = torch.empty_like(x)
    for b in range(len(x)):
        if x.dim() == 3:
            torch.addmm(added[b], gram[b], x[b], out=out[b])
        else:
            torch.baddbmm(added[b], gram[b].expand(x.shape[1], -1, -1), x[b], out=out[b])
    return out


def frame_grams(feature: Tensor) -> Tuple[Tensor, Tensor]:
    """Inner products of a feature's frames with those of the same clip and with the same frame of other clips.

    Args:
        feature: ``(B, C, T, F)``; a frame of a clip is one vector of ``C * F`` numbers.

    Returns:
        Along time ``(B, T, T)`` and along the batch ``(T, B, B)``. The gradient of both is written once, in the memory
        order of the feature; it cannot be differentiated once more.
    """
    if torch.compiler.is_compiling():
        vectors = feature.transpose(1, 2).flatten(2)
        return self_gram(vectors), self_gram(vectors.transpose(0, 1))
    return _FrameGrams.apply(feature)
