"""The recording of a distillation: right numbers, nothing touched, nothing listed twice."""

import json
import random
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
import toy

from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.espnet.trainer import TrainingRun
from i2srf_kd.training import diagnostics

STEPS = 6  # batches in an epoch
SHORT = ("--num_iters_per_epoch", str(STEPS), "--max_epoch", "2")


def lines(folder: Path, name: str = diagnostics.DIAGNOSTICS) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


class Tiny(torch.nn.Module):
    """Two losses of two parameters, whose gradients are known; its third belongs to the distillation."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(2.0))
        self.b = torch.nn.Parameter(torch.tensor(-1.0))
        self.distillation = torch.nn.Linear(1, 1, bias=False)


def test_gradients_of_known_losses() -> None:
    model = Tiny()
    own = model.distillation.weight.sum()
    task, kd = 3 * model.a + 4 * model.b, (5 * model.a).square() / 2 + 7 * own  # gradients (3, 4) and (50, 0)
    (norm_task, norm_kd), cosine = diagnostics.compare_gradients(model, task, kd)
    assert (norm_task, norm_kd) == (5.0, 50.0)
    assert cosine == pytest.approx(0.6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_without_gradient_has_no_direction() -> None:
    model = Tiny()
    norms, cosine = diagnostics.compare_gradients(model, model.a * 3, torch.tensor(1.0))
    assert norms == (3.0, 0.0) and cosine is None


def test_lines_of_what_is_repeated_are_not_listed_twice(tmp_path: Path) -> None:
    log = diagnostics.DiagnosticsLog(tmp_path, 0)
    for step in (0, 9, 18):
        log.append({"epoch": step // 9, "step": step, "weights": torch.tensor([[0.5, float("nan")]])})
    with (tmp_path / diagnostics.DIAGNOSTICS).open("a") as file:
        file.write('{"epoch": 3, "st')  # cut off by a kill
    log = diagnostics.DiagnosticsLog(tmp_path, 9)
    log.append({"epoch": 7, "step": 9})
    log.append({"epoch": 2, "step": 18})
    assert [(line["epoch"], line["step"]) for line in lines(tmp_path)] == [(0, 0), (1, 9), (2, 18)]
    assert lines(tmp_path)[0]["weights"] == [[0.5, None]]


def without_measuring() -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("measured although switched off")

    diagnostics.DistillMonitor.record = refuse  # type: ignore[method-assign, assignment]


@pytest.mark.slow
def test_recording_changes_nothing_and_survives_a_kill(distilled: Any, tmp_path: Path) -> None:
    """Dropout is not in the network, so the measurement draws random numbers of its own here."""

    def greedy() -> None:
        original = diagnostics.compare_gradients

        def drawing(*args: Any) -> Any:
            random.random(), np.random.rand(), torch.rand(3)
            return original(*args)

        diagnostics.compare_gradients = drawing

    # After the measurement at step 8 and the save before it.
    killed_in_the_second_epoch = toy.call_at(TrainingRun, "between_steps", STEPS + 3, toy.kill_self)
    start = {"task": DistillEnhancementTask}
    silent = distilled("silent", *SHORT, "--kd_diagnostics", "false")
    often = distilled("often", *SHORT, "--kd_gradient_interval", "4")
    broken = distilled("broken", *SHORT, "--kd_gradient_interval", "4", "--save_interval_steps", "2")
    assert toy.join([toy.start_child(silent, without_measuring, **start)]) == [0]
    assert toy.join([toy.start_child(often, greedy, **start)]) == [0]
    assert toy.join([toy.start_child(broken, killed_in_the_second_epoch, **start)]) == [-9]
    assert toy.join([toy.start_child(broken, **start)]) == [0]
    for name in ("often", "broken"):
        assert toy.same(toy.weights(tmp_path / "silent"), toy.weights(tmp_path / name)), name
    assert not (tmp_path / "silent" / diagnostics.DIAGNOSTICS).exists()
    assert [line["step"] for line in lines(tmp_path / "often")] == [0, 4, 6, 8, 12]
    assert lines(tmp_path / "often") == lines(tmp_path / "broken")
    check_content(lines(tmp_path / "often"), lines(tmp_path / "often", "metrics.jsonl"))


def check_content(recorded: List[Dict[str, Any]], metrics: List[Dict[str, Any]]) -> None:
    for line in recorded:
        assert line["grad_norm_task"] > 0 and line["grad_norm_kd"] > 0 and -1 <= line["grad_cosine"] <= 1
        values = line["diagnostics"]
        for set_, layers in (("intra_encoder", 3), ("intra_dual_path", 1), ("intra_decoder", 3), ("inter", 3)):
            for stream in ("time", "clips"):
                weights = np.array(values[f"{set_}_{stream}_weights"])
                assert weights.shape[0] == layers
                np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-5)
                assert values.get(f"{set_}_{stream}_entropy", 1.0) <= 1.0 + 1e-6
                for like in ("level", "snr", "voicing"):
                    follows = np.array(values[f"{set_}_{stream}_weights_by_{like}"])
                    assert follows.shape == weights.shape and np.abs(follows).max() <= 1 + 1e-6
        terms = [values[f"{set_}_{stream}"] for set_ in ("intra_encoder", "intra_dual_path", "intra_decoder", "inter")
                 for stream in ("time", "clips")]  # fmt: skip
        assert sum(terms) == pytest.approx(line["loss_kd"], rel=1e-4)
    for line in metrics:
        if line["phase"] == "valid":
            (same,) = [r for r in recorded if r["step"] == line["epoch"] * STEPS]
            assert {name: line[name] for name in diagnostics.GRADIENT_VALUES} == {
                name: same[name] for name in diagnostics.GRADIENT_VALUES
            }


@pytest.mark.slow
def test_two_ranks_record_as_one(distilled: Any, tmp_path: Path) -> None:
    """The first rank alone measures; the other one must not wait for it in vain."""
    assert toy.join(toy.start_ranks(distilled("two", *SHORT), 2, task=DistillEnhancementTask)) == [0, 0]
    assert [line["step"] for line in lines(tmp_path / "two")] == [0, STEPS, 2 * STEPS]


def test_a_measurement_that_fails_ends_no_training(distilled: Any, tmp_path: Path) -> None:
    def out_of_memory() -> None:
        def fail(*_: Any) -> Any:
            raise torch.OutOfMemoryError("no memory left")

        diagnostics.compare_gradients = fail

    arguments = distilled("exp", "--num_iters_per_epoch", "1", "--max_epoch", "1")
    assert toy.join([toy.start_child(arguments, out_of_memory, task=DistillEnhancementTask)]) == [0]
    assert not (tmp_path / "exp" / diagnostics.DIAGNOSTICS).exists()
