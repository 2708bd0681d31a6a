"""The contract between a distillation method and whoever trains with it.

A method is a module that sees one batch's student and teacher (:class:`Side`) and returns named loss terms. It is built
from the layouts of both networks, so it can own parameters of the right size; whether it has parameters, and what it
reads, is its own business. Weights and schedules are applied outside, the same way for every method
(:mod:`i2srf_kd.distill.distiller`).

    @register_method("my_method")
    class MyMethod(DistillMethod):
        def __init__(self, student, teacher, scale=1.0): ...
        def forward(self, student, teacher, reference=None): return {"my_term": loss}
"""

import inspect
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Type, TypeVar

from torch import Tensor, nn

from i2srf_kd.system.config import refuse_unknown


class LayerShape(NamedTuple):
    """Channels C and bins F of one tapped layer ``(B, C, T, F)``."""

    channels: int
    width: int


Layout = Mapping[str, List[LayerShape]]  # set name -> layers in network order


def layout_of(features: Mapping[str, List[Tensor]]) -> Dict[str, List[LayerShape]]:
    """Layout of features ``(B, C, T, F)`` at hand."""
    return {name: [LayerShape(f.shape[1], f.shape[3]) for f in layers] for name, layers in features.items()}


@dataclass
class Side:
    """What one network did with a batch.

    Attributes:
        features: set name to layers ``(B, C, T, F)`` in network order.
        spectrum: enhanced spectrum ``(B, 2, T, F)``, or None where no method asked for it.
        waveform: enhanced waveform ``(B, samples)``, or None where no method asked for it.
    """

    features: Dict[str, List[Tensor]] = field(default_factory=dict)
    spectrum: Optional[Tensor] = None
    waveform: Optional[Tensor] = None


class DistillMethod(nn.Module):
    """Base class of distillation methods.

    Attributes:
        needs: what of the networks the method reads beyond features: any of ``spectrum``, ``waveform``,
            ``reference``.
        source: paper or "ours".
    """

    needs: Tuple[str, ...] = ()
    source: str = ""

    def __init__(self, student: Layout, teacher: Layout):
        super().__init__()

    def forward(self, student: Side, teacher: Side, reference: Optional[Tensor] = None) -> Dict[str, Tensor]:
        """Return named scalar terms whose sum is the method's loss.

        Args:
            student: the student's side, attached to the graph.
            teacher: the teacher's side, detached.
            reference: clean waveform ``(B, samples)`` if the method needs it.
        """
        raise NotImplementedError

    def check_batch(self, clips: int, frames: int) -> None:
        """ValueError if the method does not take training batches of this size; most take any."""

    def diagnostics(self) -> Dict[str, Tensor]:
        """Scalars and small tensors of the last forward pass worth recording (for instance calibration weights)."""
        return {}

    def place_weights(self) -> Dict[str, Tensor]:
        """Weights of the last forward pass at every frame ``(B, T, Ns, Nt)``, for methods that weigh layers there."""
        return {}


Method = TypeVar("Method", bound=Type[DistillMethod])
_METHODS: Dict[str, Type[DistillMethod]] = {}


def register_method(name: str) -> Callable[[Method], Method]:
    """Class decorator that makes a method selectable by ``name``."""

    def register(cls: Method) -> Method:
        if not issubclass(cls, DistillMethod):
            raise TypeError(f"{cls.__name__} must derive from DistillMethod")
        present = _METHODS.get(name, cls)
        # A module may be loaded again, but not take another one's name.
        if (present.__module__, present.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"distillation method {name!r} is already {present.__module__}.{present.__qualname__}")
        _METHODS[name] = cls
        return cls

    return register


def method_names() -> List[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)


def registered_by(module: ModuleType) -> List[str]:
    """Names of the methods that a module, or one inside it, registers."""
    inside = module.__name__ + "."
    return [name for name in method_names() if (method_class(name).__module__ + ".").startswith(inside)]


def method_class(name: str) -> Type[DistillMethod]:
    """The class registered under ``name``; ValueError with the known names for any other."""
    if name not in _METHODS:
        raise ValueError(f"no distillation method {name!r}: choose one of {', '.join(method_names())}")
    return _METHODS[name]


def build_method(name: str, student: Layout, teacher: Layout, **options: Any) -> DistillMethod:
    """Build a method for a pair of networks.

    Raises:
        ValueError: for an unknown method, an option it does not have, or a value it refuses.
    """
    cls = method_class(name)
    known = [p for p in inspect.signature(cls).parameters if p not in ("student", "teacher")]
    refuse_unknown(options, known, f"distillation method {name!r}")
    return cls(student, teacher, **options)
