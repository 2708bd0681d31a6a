"""Weight of the distillation over the training, and its gradient beside the task's."""

import math
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor

from i2srf_kd.distill import DistillMethod, register_method
from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.method import LayerShape, Side
from i2srf_kd.distill.schedule import Schedule

LAYOUT = {"encoder": [LayerShape(3, 5), LayerShape(2, 5)]}


@register_method("scaled_distance")
class ScaledDistance(DistillMethod):
    """Squared distance of all features and the spectrum, with a learned factor; its scale changes from outside."""

    needs = ("spectrum",)
    scale = 1.0

    def __init__(self, student: Any, teacher: Any):
        super().__init__(student, teacher)
        self.factor = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, student: Side, teacher: Side, reference: Any = None) -> Dict[str, Tensor]:
        pairs = zip(signals(student), signals(teacher), strict=True)
        return {"distance": self.scale * torch.stack([(self.factor * s - t).square().mean() for s, t in pairs]).sum()}


def signals(side: Side) -> List[Tensor]:
    assert side.spectrum is not None
    return [*side.features["encoder"], side.spectrum]


def distiller(**options: Any) -> Distiller:
    return Distiller({"method": "scaled_distance", **options}, LAYOUT, LAYOUT)


def phases(kd: Distiller, count: int) -> List[Tuple[float, float]]:
    """Weights of the first steps."""
    found = []
    for _ in range(count):
        found.append(kd.phase())
        kd.steps += 1
    return found


def sides(seed: int = 0) -> Tuple[Side, Side]:
    """Student and teacher."""
    random = torch.Generator().manual_seed(seed)

    def side(grad: bool) -> Side:
        encoder = [torch.randn(2, c, 4, 5, generator=random, requires_grad=grad) for c in (3, 2)]
        return Side({"encoder": encoder}, torch.randn(2, 2, 4, 5, generator=random, requires_grad=grad))

    return side(True), side(False)


def task_of(student: Side) -> Tensor:
    return torch.stack([(s * torch.linspace(-1, 2, s.numel()).view_as(s)).sum() for s in signals(student)]).sum()


def gradients(loss: Tensor, tensors: List[Tensor]) -> List[Tensor]:
    return list(torch.autograd.grad(loss, tensors, retain_graph=True))


def flat(tensors: List[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


class TestSchedule:
    @pytest.mark.parametrize("shape", ["linear", "cosine"])
    def test_closed_form(self, shape: str) -> None:
        schedule = Schedule(rise=0.2, fall_from=0.5, fall_to=0.9, shape=shape)
        for percent in range(101):
            share = percent / 100
            line = min(share / 0.2, 1.0, max(0.0, (0.9 - share) / 0.4))
            expected = line if shape == "linear" else math.sin(math.pi / 2 * line) ** 2
            assert schedule.factor(share) == pytest.approx(expected, abs=1e-12)

    def test_it_is_constant_by_default(self) -> None:
        assert {Schedule().factor(i / 10) for i in range(11)} == {1.0}
        assert Schedule(fall_from=0.5, fall_to=0.5).factor(0.5) == 1.0
        assert Schedule(fall_from=0.5, fall_to=0.5).factor(0.51) == 0.0

    @pytest.mark.parametrize(
        "options, word",
        [
            ({"schedule": {"fall_from": 0.8, "fall_to": 0.5}}, "fall_to"),
            ({"schedule": {"rise": 0.8, "fall_from": 0.5}}, "fall_from"),
            ({"schedule": {"rise": -0.1}}, "rise"),
            ({"schedule": {"rise": 10}}, "rise"),
            ({"schedule": {"shape": "square"}}, "shape"),
            ({"schedule": {"fall": 0.5}}, "fall"),
            ({"schedule": 0.5}, "schedule"),
            ({"every": 0}, "every"),
            ({"every": 1.5}, "every"),
            ({"balance": 0}, "balance"),
            ({"balance": "much"}, "balance"),
            ({"conflict": "remove"}, "keep, project"),
        ],
    )
    def test_bad_options_are_named(self, options: Dict[str, Any], word: str) -> None:
        with pytest.raises(ValueError, match=word):
            distiller(**options)

    def test_weights_of_all_steps(self) -> None:
        schedule = {"rise": 0.25, "fall_from": 0.5, "fall_to": 0.75}
        kd = distiller(weight=2.0, schedule=schedule)
        kd.total_steps = 8
        assert phases(kd, 9) == [(1.0, w) for w in (1.0, 2.0, 2.0, 2.0, 1.0, 0, 0, 0, 0)]
        assert kd.final_weight() == 0
        kd = distiller(weight=2.0, schedule=schedule, kd_only_steps=2, every=2)
        kd.total_steps = 8
        assert phases(kd, 6) == [(0.0, 2.0)] * 2 + [(1.0, 2.0), (1.0, 0), (1.0, 1.0), (1.0, 0)]

    def test_shares_of_an_unknown_number_of_steps(self) -> None:
        with pytest.raises(ValueError, match="total_steps"):
            distiller(schedule={"rise": 0.1}).phase()


class TestGradients:
    """The student's signals stand for its parameters."""

    def combined(self, kd: Distiller, seed: int = 0) -> Tuple[Tensor, List[Tensor], List[Tensor], List[Tensor]]:
        """Total loss; gradients of the total, of the task alone, and of what the distillation added."""
        student, teacher = sides(seed)
        task, loss = task_of(student), kd(student, teacher)[0]
        total = kd.combine(task, loss, signals(student))
        whole, towards = gradients(total, signals(student)), gradients(task, signals(student))
        assert float(total.detach()) == pytest.approx(float((task + kd.phase()[1] * loss).detach()))
        return total, whole, towards, [a - b for a, b in zip(whole, towards, strict=True)]

    def test_balance_holds_the_ratio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first batch sets it; a distillation that becomes ten times as steep is followed, as a running mean."""
        kd = distiller(balance=0.3)
        running = ratio = 0.0
        for step in range(33):
            scale = 1.0 if step < 3 else 10.0
            monkeypatch.setattr(ScaledDistance, "scale", scale)
            _, _, towards, added = self.combined(kd)
            ratio = float(flat(added).norm() / flat(towards).norm())
            running = scale if step == 0 else 0.9 * running + 0.1 * scale
            assert ratio == pytest.approx(0.3 * scale / running, rel=1e-3)
        assert ratio == pytest.approx(0.3, rel=0.05)

    def test_balance_is_part_of_the_state(self) -> None:
        first, second = distiller(balance=0.3), distiller(balance=0.3)
        self.combined(first)
        second.load_state_dict(first.state_dict())
        assert second.phase() == first.phase() != (1.0, 1.0)

    def test_projection_takes_away_what_opposes_the_task(self) -> None:
        opposed = 0
        for seed in range(6):
            *_, towards, before = self.combined(distiller(weight=50.0), seed)
            *_, after = self.combined(distiller(weight=50.0, conflict="project"), seed)
            task, old, new = flat(towards).double(), flat(before).double(), flat(after).double()
            unit = task / task.norm()
            removed = min(0.0, float(old @ unit))
            opposed += removed < 0
            torch.testing.assert_close(new, old - removed * unit, rtol=1e-3, atol=1e-4)
            assert float(new @ unit / new.norm()) > -1e-3
        assert 0 < opposed < 6

    def test_parameters_of_the_method_learn_as_without(self) -> None:
        factors = []
        for kd in (distiller(), distiller(conflict="project")):
            self.combined(kd)[0].backward()
            factors.append(kd.methods[0].factor.grad)
        torch.testing.assert_close(*factors)

    def test_nothing_is_compared_while_the_distillation_trains_alone_or_in_a_validation(self) -> None:
        kd = distiller(conflict="project", balance=1.0, kd_only_steps=1)
        student, teacher = sides()
        loss = kd(student, teacher)[0]
        assert kd.combine(task_of(student), loss, signals(student)) == loss
        kd.eval()
        kd.combine(task_of(student), loss, signals(student))
        assert not kd.gradient_norms.any()
