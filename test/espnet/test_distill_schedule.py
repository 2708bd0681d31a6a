"""The schedule of a distillation, through training."""

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import speech_task
import toy

WEIGHT = 0.5


def command(speech: Path, teacher: Path, exp: Path, task_weight: float = 1.0, **schedule: Any) -> List[str]:
    distill = {"method": "fitnets", "weight": WEIGHT, **schedule}
    more = ("--num_iters_per_epoch", "4", "--save_interval_steps", "2", "--kd_diagnostics", "false")
    return speech_task.arguments(speech, exp, *more, distill=distill, teacher=teacher, task_weight=task_weight)


def training_lines(exp: Path) -> List[Dict[str, Any]]:
    lines = [json.loads(line) for line in (exp / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]


def test_the_task_has_no_part_in_the_first_step(speech: Path, speech_teacher: Path, tmp_path: Path) -> None:
    """The weights after training on distillation alone do not depend on the task's weight; later on they do."""

    def trained(name: str, task_weight: float, kd_only_steps: int) -> Dict[str, Any]:
        arguments = command(speech, speech_teacher, tmp_path / name, task_weight, kd_only_steps=kd_only_steps)
        assert speech_task.train([*arguments, "--max_epoch", "1"]) == 0
        return toy.weights(tmp_path / name)

    assert toy.same(trained("light", 1.0, 4), trained("heavy", 50.0, 4))
    assert not toy.same(trained("light_last", 1.0, 3), trained("heavy_last", 50.0, 3))


@pytest.mark.slow
def test_phases_and_resume(speech: Path, speech_teacher: Path, tmp_path: Path) -> None:
    """An epoch of each phase: distillation alone, ramp, both. Killed in the ramp, a run goes on in it."""
    schedule = {"kd_only_steps": 4, "ramp_steps": 4}
    assert speech_task.train(command(speech, speech_teacher, tmp_path / "whole", **schedule)) == 0
    alone, ramp, both = training_lines(tmp_path / "whole")
    assert alone["loss"] == pytest.approx(WEIGHT * alone["kd"], rel=1e-4)
    assert ramp["compressed_spectrum"] < ramp["loss"] < ramp["compressed_spectrum"] + WEIGHT * ramp["kd"]
    assert both["loss"] == pytest.approx(both["compressed_spectrum"] + WEIGHT * both["kd"], rel=1e-4)

    whole = toy.weights(tmp_path / "whole", "checkpoint.pth")
    assert int(whole["distillation.criterion.distiller.steps"]) == 12
    kill_and_resume(command(speech, speech_teacher, tmp_path / "broken", **schedule), 7)
    assert toy.same(whole, toy.weights(tmp_path / "broken", "checkpoint.pth"))


@pytest.mark.slow
def test_shares_of_the_training_and_resume(speech: Path, speech_teacher: Path, tmp_path: Path) -> None:
    """Every second step distils until three quarters of the training; then the student costs what it does alone."""
    options = {
        "schedule": {"fall_from": 0.5, "fall_to": 0.75}, "every": 2, "balance": 0.5, "conflict": "project"
    }  # fmt: skip
    assert speech_task.train(command(speech, speech_teacher, tmp_path / "whole", **options)) == 0
    first, second, last = training_lines(tmp_path / "whole")
    assert first["loss"] > first["compressed_spectrum"] and "kd" in second
    assert last["loss"] == pytest.approx(last["compressed_spectrum"]) and "kd" not in last
    kill_and_resume(command(speech, speech_teacher, tmp_path / "broken", **options), 7)
    whole, broken = (toy.weights(tmp_path / name, "checkpoint.pth") for name in ("whole", "broken"))
    assert whole["distillation.criterion.distiller.gradient_norms"].all()
    assert toy.same(whole, broken)


def kill_and_resume(arguments: List[str], step: int) -> None:
    """Train, but kill the process at a step; then let the same command go on."""

    def killed() -> None:
        from i2srf_kd.espnet.model import DistillEnhancementModel

        forward = DistillEnhancementModel.forward

        def killing(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.training and int(self.distiller.steps) == step:
                toy.kill_self()
            return forward(self, *args, **kwargs)

        DistillEnhancementModel.forward = killing  # type: ignore[method-assign]
        toy.train(arguments, speech_task.DistillEnhancementTask)

    assert speech_task.in_child(killed) == -9
    assert speech_task.train(arguments) == 0
