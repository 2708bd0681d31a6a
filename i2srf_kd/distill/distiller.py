"""One or several distillation methods with their weights and schedule, as configured.

distill:
  method: i2srf_tfckd          # or a list of {name, weight, conf}
  method_conf: {inter: true}
  weight: 0.1
  kd_only_steps: 0             # first train on the distillation loss alone
  ramp_steps: 0                # then raise its weight linearly to the full one
  import: my_methods.py        # modules that register methods of your own: a path, a dotted name, or a list
"""

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.distill.matching import match_sides
from i2srf_kd.distill.method import Layout, Side, build_method, method_names, registered_by
from i2srf_kd.system.user_modules import import_modules

_KEYS = ("method", "method_conf", "weight", "kd_only_steps", "ramp_steps", "student_taps", "teacher_taps", "import")


class MethodConfig(NamedTuple):
    """One method of a distillation: name, weight relative to the others, options."""

    name: str
    weight: float
    conf: Dict[str, Any]


def parse_methods(config: Mapping[str, Any]) -> List[MethodConfig]:
    """Read ``method`` and ``method_conf``; ValueError for unknown keys and missing names."""
    unknown = sorted(set(config) - set(_KEYS))
    if unknown:
        raise ValueError(f"distill has no option {', '.join(unknown)}: it has {', '.join(_KEYS)}")
    methods = config.get("method")
    if not methods:
        raise ValueError("distill needs a method")
    if isinstance(methods, str):
        return [MethodConfig(methods, 1.0, dict(config.get("method_conf") or {}))]
    if config.get("method_conf"):
        raise ValueError("with a list of methods, give each its own conf instead of method_conf")
    parsed = []
    for entry in methods:
        extra = sorted(set(entry) - {"name", "weight", "conf"})
        if extra or "name" not in entry:
            raise ValueError(f"each method of a list has name, weight and conf; got {dict(entry)}")
        parsed.append(MethodConfig(entry["name"], float(entry.get("weight", 1.0)), dict(entry.get("conf") or {})))
    return parsed


def _import_for(configs: List[MethodConfig], modules: Any) -> None:
    """Import the modules that register methods; a name that none of them registers is an error that lists theirs."""
    imported = import_modules(modules)
    unknown = [c.name for c in configs if c.name not in method_names()]
    if imported and unknown:
        theirs = [f"{m.__file__} registers {', '.join(registered_by(m)) or 'none'}" for m in imported]
        raise ValueError(f"no distillation method {unknown[0]!r}: {'; '.join(theirs)}")


class Distiller(nn.Module):
    """All methods of a configuration.

    Args:
        config: the ``distill`` section (see the module's docstring).
        student, teacher: layouts of the two networks.

    Raises:
        ValueError: for a configuration that cannot be built, or a module of ``import`` that cannot be imported.
    """

    steps: Tensor

    def __init__(self, config: Mapping[str, Any], student: Layout, teacher: Layout):
        super().__init__()
        configs = parse_methods(config)
        _import_for(configs, config.get("import"))
        self.weight = float(config.get("weight", 1.0))
        self.kd_only_steps = int(config.get("kd_only_steps", 0))
        self.ramp_steps = int(config.get("ramp_steps", 0))
        if self.weight < 0 or self.kd_only_steps < 0 or self.ramp_steps < 0:
            raise ValueError("distill weight, kd_only_steps and ramp_steps must not be negative")
        self.names = [c.name for c in configs]
        self.weights = [c.weight for c in configs]
        methods = [build_method(c.name, student, teacher, **c.conf) for c in configs]
        self.methods = nn.ModuleList(methods)
        self.needs = frozenset(need for method in methods for need in method.needs)
        # Part of the state, so that a resumed run goes on in the same phase of the schedule.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def phase(self) -> Tuple[float, float]:
        """Weights (task, distillation) at the present step."""
        step = int(self.steps)
        if step < self.kd_only_steps:
            return 0.0, self.weight
        if step < self.kd_only_steps + self.ramp_steps:
            return 1.0, self.weight * (step - self.kd_only_steps + 1) / self.ramp_steps
        return 1.0, self.weight

    def forward(
        self, student: Side, teacher: Side, reference: Optional[Tensor] = None
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Weighted sum of all methods' terms, without ``self.weight``, and every term by name."""
        student, teacher = match_sides(student, teacher)
        total: Optional[Tensor] = None
        terms: Dict[str, Tensor] = {}
        for i, (name, weight, method) in enumerate(zip(self.names, self.weights, self.methods, strict=True)):
            prefix = self._prefix(i, name)
            for term, value in method(student, teacher, reference).items():
                terms[prefix + term] = value.detach()
                total = weight * value if total is None else total + weight * value
        assert total is not None
        return total, terms

    def diagnostics(self) -> Dict[str, Tensor]:
        """What all methods tell of the last forward pass, named as their terms are."""
        return self._of_all(lambda method: method.diagnostics())

    def place_weights(self) -> Dict[str, Tensor]:
        """Weights of all methods at every frame, named as their terms are."""
        return self._of_all(lambda method: method.place_weights())

    def _of_all(self, ask: Callable[[Any], Dict[str, Tensor]]) -> Dict[str, Tensor]:
        return {
            self._prefix(i, name) + key: value
            for i, (name, method) in enumerate(zip(self.names, self.methods, strict=True))
            for key, value in ask(method).items()
        }

    def _prefix(self, index: int, name: str) -> str:
        return f"{name}{index}_" if len(self.methods) > 1 else ""
