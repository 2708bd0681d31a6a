"""The gradients of two losses with respect to the same parameters, brought into one."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor

Gradients = List[Optional[Tensor]]  # None where a loss does not depend on a parameter


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Gradient of a loss, whose graph stays; nothing is added to the parameters' own."""
    return list(torch.autograd.grad(loss.sum(), list(parameters), retain_graph=True, allow_unused=True))


def product(first: Gradients, second: Gradients) -> Tensor:
    """Inner product of two gradients as one vector each."""
    both = zip(first, second, strict=True)
    products = [(a.float() * b.float()).sum() for a, b in both if a is not None and b is not None]
    return torch.stack(products).sum() if products else torch.zeros(())


def norm(gradient: Gradients) -> Tensor:
    """Euclidean norm of a gradient as one vector."""
    return product(gradient, gradient).sqrt()


def scaled_sum(first: Gradients, second: Gradients, factor: float) -> Gradients:
    """``first + factor * second``."""
    both = zip(first, second, strict=True)
    return [(a if b is None else factor * b if a is None else a + factor * b) for a, b in both]


def without_conflict(gradient: Gradients, other: Gradients) -> Gradients:
    """A gradient without the component that points against the other one (as in PCGrad, arXiv 2001.06782)."""
    opposed = float(product(gradient, other).clamp_max(0))
    return scaled_sum(gradient, other, -opposed / float(product(other, other))) if opposed < 0 else gradient


def with_gradient(loss: Tensor, parameters: Sequence[Tensor], gradient: Gradients) -> Tensor:
    """A loss of the same value whose gradient with respect to the parameters is the given one."""
    pairs = zip(parameters, gradient, strict=True)
    carrier = torch.stack([(p * g).sum() for p, g in pairs if g is not None]).sum()
    return carrier + (loss - carrier).detach()
