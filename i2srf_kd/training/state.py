"""What a training step changes, and a resumed run needs: weights and their average, optimisers, random numbers."""

import contextlib
import random
from contextlib import contextmanager
from typing import Any, ContextManager, Dict, Iterator, List, Optional, Sequence

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from i2srf_kd.system.errors import UserError
from i2srf_kd.training.checkpoint import Weights, check_key_coverage


class AveragedWeights:
    """Exponential moving average of the trained parameters; buffers stay those of the model.

    The decay grows from 0.1 to ``decay`` over the first updates, ``min(decay, (1 + n) / (10 + n))`` after ``n`` of
    them, so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        def average(averaged: Any, current: Any, count: Any) -> None:
            n = int(self.average.n_averaged) - 1  # the initial weights are the first that torch counts
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        self.trained = nn.ParameterList([p for p in model.parameters() if p.requires_grad])
        self.average = AveragedModel(self.trained, multi_avg_fn=average)
        self.update()

    def update(self) -> None:
        """Take in the weights after an update."""
        self.average.update_parameters(self.trained)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights inside of the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self.trained, self.average.parameters(), strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)


class TrainingState:
    """Everything that a checkpoint holds beside the reports.

    Args:
        model: what is trained, not wrapped for several processes.
        optimizers, schedulers: of its parameters; a scheduler may be None.
        scaler: of the gradients in mixed precision, or None.
        ema_decay: decay of the average of the weights, 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Any],
        scaler: Any = None,
        ema_decay: float = 0.0,
    ):
        self.model = model
        self.optimizers = optimizers
        self.schedulers = schedulers
        self.scaler = scaler
        self.average = AveragedWeights(model, ema_decay) if ema_decay else None

    def averaged(self) -> ContextManager[None]:
        """Context in which the model has its averaged weights, if there are any; inside of one, its own again."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def weights(self) -> Weights:
        """Copies of the model's present weights."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def not_finite(self) -> List[str]:
        """Names of weights that would spoil every later state and average."""
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        # Infinity may be meant in a buffer (a mask); NaN, as in the statistics of a normalisation, never is.
        return bad + [name for name, b in self.model.named_buffers() if b.is_floating_point() and b.isnan().any()]

    def state_dict(self) -> Dict[str, Any]:
        """State for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [s.state_dict() if s is not None else None for s in self.schedulers],
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "average": self.average.average.state_dict() if self.average is not None else None,
        }

    def load_state_dict(self, state: Dict[str, Any], source: str) -> None:
        """Restore :meth:`state_dict`.

        Args:
            state: as it was saved.
            source: named in errors.

        Raises:
            UserError: it is of another model, or of other optimisers.
        """
        check_key_coverage(self.model.state_dict(), state["model"], source=source)
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, value in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(value)
            if self.average is not None and state["average"] is not None:
                self.average.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{source} does not fit these options: {error}") from None
        for scheduler, value in zip(self.schedulers, state["schedulers"], strict=True):
            if scheduler is not None and value is not None:
                scheduler.load_state_dict(value)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])


def rng_state() -> Dict[str, Any]:
    """States of Python's, numpy's and torch's global generators."""
    numpy_state: Any = np.random.get_state()
    kind, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: Optional[Dict[str, Any]]) -> None:
    """Restore :func:`rng_state`; None changes nothing."""
    if state is None:
        return
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
