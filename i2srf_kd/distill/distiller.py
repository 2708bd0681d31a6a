"""One or several distillation methods with their weights and schedule, as configured.

distill:
  method: i2srf_tfckd          # or a list of {name, weight, conf}
  method_conf: {inter: true}
  weight: 0.1
  kd_only_steps: 0             # first train on the distillation loss alone
  ramp_steps: 0                # then raise its weight linearly to the full one
  schedule: {rise: 0.1, fall_from: 0.5, fall_to: 0.8} # or by shares of the training (distill/schedule.py)
  every: 1                     # distil every so many steps; the others cost what they cost without a teacher
  balance: 0.5                 # hold the distillation's gradient at so many times the task's
  conflict: project            # remove what of the distillation's gradient points against the task's
  import: my_methods.py        # modules that register methods of your own: a path, a dotted name, or a list
"""

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.distill.gradients import gradients, norm, scaled_sum, with_gradient, without_conflict
from i2srf_kd.distill.matching import check_choice, check_count, check_number, match_sides
from i2srf_kd.distill.method import Layout, Side, build_method, method_names, registered_by
from i2srf_kd.distill.schedule import Schedule
from i2srf_kd.system.config import parse_section, refuse_unknown
from i2srf_kd.system.user_modules import import_modules

_KEYS = (
    "method", "method_conf", "weight", "kd_only_steps", "ramp_steps", "schedule", "every", "balance", "conflict",
    "student_taps", "teacher_taps", "import",
)  # fmt: skip
_KEEP = 0.9  # share of the past in the running norms of both gradients


class MethodConfig(NamedTuple):
    """One method of a distillation: name, weight relative to the others, options."""

    name: str
    weight: float
    conf: Dict[str, Any]


def parse_methods(config: Mapping[str, Any]) -> List[MethodConfig]:
    """Read ``method`` and ``method_conf``; ValueError for unknown keys and missing names."""
    refuse_unknown(config, _KEYS, "distill")
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

    Attributes:
        total_steps: batches of the whole training, which a ``schedule`` has to be told before the first one.

    Raises:
        ValueError: for a configuration that cannot be built, or a module of ``import`` that cannot be imported.
    """

    steps: Tensor
    gradient_norms: Tensor

    def __init__(self, config: Mapping[str, Any], student: Layout, teacher: Layout):
        super().__init__()
        configs = parse_methods(config)
        _import_for(configs, config.get("import"))
        self._set_weights(config)
        self.names = [c.name for c in configs]
        self.weights = [c.weight for c in configs]
        methods = [build_method(c.name, student, teacher, **c.conf) for c in configs]
        self.methods = nn.ModuleList(methods)
        self.needs = frozenset(need for method in methods for need in method.needs)
        # Part of the state, so that a resumed run goes on in the same phase of the schedule and at the same balance.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        if self.balance is not None:
            self.register_buffer("gradient_norms", torch.zeros(2))  # running: task, distillation

    def _set_weights(self, config: Mapping[str, Any]) -> None:
        self.weight = float(config.get("weight", 1.0))
        self.kd_only_steps = int(config.get("kd_only_steps", 0))
        self.ramp_steps = int(config.get("ramp_steps", 0))
        if self.weight < 0 or self.kd_only_steps < 0 or self.ramp_steps < 0:
            raise ValueError("distill weight, kd_only_steps and ramp_steps must not be negative")
        self.schedule = parse_section(Schedule, config.get("schedule"), "schedule")
        self.total_steps: Optional[int] = None
        self.every = config.get("every", 1)
        check_count("every", self.every)
        self.balance: Optional[float] = config.get("balance")
        if self.balance is not None:
            check_number("balance", self.balance, 0.0, above=True)
        self.conflict = config.get("conflict", "keep")
        check_choice("conflict", self.conflict, ("keep", "project"))

    def phase(self) -> Tuple[float, float]:
        """Weights (task, distillation) at the present step.

        Raises:
            ValueError: the schedule goes by shares of the training, and ``total_steps`` is not set.
        """
        step = int(self.steps)
        if step < self.kd_only_steps:
            return 0.0, self.weight
        if step % self.every:
            return 1.0, 0.0
        ramp = min(1.0, (step - self.kd_only_steps + 1) / self.ramp_steps) if self.ramp_steps else 1.0
        return 1.0, self._balanced(ramp * self.schedule.factor(self._share(step)))

    def final_weight(self) -> float:
        """Weight of the distillation at the end of the training, which validation uses throughout."""
        return self._balanced(self.schedule.factor(1.0))

    def is_idle(self) -> bool:
        """Whether the distillation has no weight now, so that the teacher need not run."""
        return (self.phase()[1] if self.training else self.final_weight()) == 0

    @property
    def pauses(self) -> bool:
        """Whether some steps of the training leave out the distillation, or the task."""
        return self.kd_only_steps > 0 or self.every > 1 or self.schedule.factor(1.0) == 0

    def _share(self, step: int) -> float:
        if self.schedule.is_constant:
            return 0.0
        if self.total_steps is None:
            raise ValueError("schedule needs the number of steps of the training (Distiller.total_steps)")
        return min(1.0, (step + 1) / self.total_steps)

    def _balanced(self, factor: float) -> float:
        if self.balance is None:
            return self.weight * factor
        task, distillation = self.gradient_norms.tolist()
        return self.weight * factor * (self.balance * task / distillation if distillation > 0 else 1.0)

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

    def combine(self, task: Tensor, distillation: Tensor, student: Sequence[Tensor]) -> Tensor:
        """Both losses with the weights of the present step, or, outside of training, of the end.

        Args:
            task, distillation: what :meth:`forward` gave for the same batch as the task's loss.
            student: trained parameters of the student, where ``balance`` and ``conflict`` compare both gradients: the
                student's backward pass then runs twice, once for each loss.
        """
        task_weight, weight = self.phase() if self.training else (1.0, self.final_weight())
        if task_weight == 0:  # zero times infinity is no number
            return weight * distillation
        if not self.training or (self.balance is None and self.conflict == "keep"):
            return weight * distillation + task_weight * task
        learned = [p for p in self.methods.parameters() if p.requires_grad]
        tasks = gradients(task, student)
        all_ours = gradients(distillation, [*student, *learned])
        ours, own = all_ours[: len(student)], all_ours[len(student) :]
        if self.conflict == "project":
            ours = without_conflict(ours, tasks)
        if self.balance is not None:
            self._note(torch.stack([norm(tasks), norm(ours)]))
        weight = self.phase()[1]
        together = scaled_sum(tasks, ours, weight) + scaled_sum([None] * len(own), own, weight)
        return with_gradient(weight * distillation + task, [*student, *learned], together)

    def _note(self, norms: Tensor) -> None:
        """Add the gradients' norms of a batch to the running ones."""
        if bool(torch.isfinite(norms).all()):
            self.gradient_norms.lerp_(norms, 1 - _KEEP if bool(self.gradient_norms.any()) else 1.0)

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
