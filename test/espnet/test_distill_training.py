"""Training with a teacher through the real task: falls, spares the teacher, resumes, runs on two ranks."""

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
import toy

from i2srf_kd.espnet.model import DistillEnhancementModel
from i2srf_kd.espnet.task import DistillEnhancementTask

SHORT = ("--num_iters_per_epoch", "6", "--max_epoch", "2", "--kd_diagnostics", "false")


def losses(output_dir: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_distilled_training_falls_and_spares_the_teacher(distilled: Any, teacher: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in teacher.glob("*.pth")}
    assert toy.join([toy.start_child(distilled("exp", *SHORT), task=DistillEnhancementTask)]) == [0]
    train = [line for line in losses(tmp_path / "exp") if line["phase"] == "train"]
    assert train[-1]["compressed_spectrum"] < train[0]["compressed_spectrum"]
    assert {"kd", "kd_inter", "kd_intra_encoder", "kd_intra_dual_path", "kd_intra_decoder"} <= set(train[0])
    assert before == {path.name: path.read_bytes() for path in teacher.glob("*.pth")}
    saved = toy.weights(tmp_path / "exp", "checkpoint.pth")
    assert any(name.startswith("distillation.") for name in saved)
    assert int(saved["distillation.criterion.distiller.steps"]) == train[-1]["total_count"]
    for_use = toy.weights(tmp_path / "exp", "valid.loss.ave.pth")
    assert for_use and not any(name.startswith("distillation.") for name in for_use)


@pytest.mark.slow
def test_a_killed_distillation_resumes_bit_by_bit(distilled: Any, tmp_path: Path) -> None:
    assert toy.join([toy.start_child(distilled("whole", *SHORT), task=DistillEnhancementTask)]) == [0]

    kill_in_the_second_epoch = toy.call_at(DistillEnhancementModel, "forward", 13, toy.kill_self, before=True)
    arguments = distilled("broken", *SHORT, "--save_interval_steps", "2")
    assert toy.join([toy.start_child(arguments, kill_in_the_second_epoch, task=DistillEnhancementTask)]) == [-9]
    assert toy.join([toy.start_child(arguments, task=DistillEnhancementTask)]) == [0]
    whole, broken = (toy.weights(tmp_path / name, "checkpoint.pth") for name in ("whole", "broken"))
    assert toy.same(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["undistilled", "distilled", "gathered"])
def test_two_ranks_equal_one_with_the_same_global_batch(kind: str, data: Path, distilled: Any, tmp_path: Path) -> None:
    """Losses within 1e-4, weights within 2e-3; the frequency stream over the clips of both ranks or not at all."""

    def arguments(name: str) -> List[str]:
        if kind == "distilled":
            return distilled(name, frequency_stream=False)
        if kind == "gathered":
            return distilled(name, gather=True)
        return toy.dpdcrn_command(data, tmp_path / name, 8)

    assert toy.join([toy.start_child(arguments("one"), task=DistillEnhancementTask)]) == [0]
    assert toy.join(toy.start_ranks(arguments("two"), 2, task=DistillEnhancementTask)) == [0, 0]
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        names = {"loss", "compressed_spectrum", "kd"}
        if kind == "gathered" and one["phase"] == "valid":
            names = {"compressed_spectrum"}  # in validation each rank compares its own clips
        for name in names & set(one):
            assert two[name] == pytest.approx(one[name], abs=1e-4), (one["epoch"], one["phase"], name)
    two_ranks = toy.weights(tmp_path / "two")
    for name, value in toy.weights(tmp_path / "one").items():
        torch.testing.assert_close(two_ranks[name], value, atol=2e-3, rtol=2e-3)
