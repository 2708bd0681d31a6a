"""The clips of all processes of a training, for what compares the clips of a batch."""

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor

_alone = False


@contextmanager
def without_gathering() -> Iterator[None]:
    """For a forward pass that one process makes by itself: :func:`gather_clips` would wait for the others forever."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


class _Gather(torch.autograd.Function):
    # Own, because torch.distributed.nn.functional.all_gather gives wrong gradients here with gloo (torch 2.11).

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, values)
        ctx.clips = values.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient[torch.distributed.get_rank() * ctx.clips :][: ctx.clips]


def gather_clips(values: Tensor) -> Tensor:
    """Join the first axis over all processes, in the order of their ranks: ``(B, ...)`` to ``(world * B, ...)``.

    Differentiable: a process receives the gradients that the losses of all others have with respect to its own clips.
    A loss that every process averages over its own clips therefore needs no further scaling: after DDP's mean over the
    processes, its gradient is that of the mean over the global batch. All processes must call this in the same order,
    with the same shape. Without a process group of two or more, or inside of :func:`without_gathering`, ``values`` is
    returned as it is.
    """
    if _alone or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    if torch.distributed.get_world_size() == 1:
        return values
    return _Gather.apply(values.contiguous())
