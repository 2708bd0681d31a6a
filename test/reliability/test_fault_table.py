"""What the fault table is made with, and a few faults of different kinds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
import slurm_cluster
import torch
from reliability import compare, faults, losses, page, processes, trial
from reliability.workspace import Workspace


def write_run(folder: Path) -> Path:
    teacher = folder / "exp" / "teacher"
    teacher.mkdir(parents=True)
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, teacher / "1epoch.pth")
    (teacher / "metrics.jsonl").write_text('{"epoch": 1, "phase": "train", "loss": 0.5, "time": 3.2}\n')
    return folder


def test_comparison_notices_one_changed_bit_and_no_time(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (b / "exp/teacher/metrics.jsonl").write_text('{"epoch": 1, "phase": "train", "loss": 0.5, "time": 9.9}\n')
    assert not compare.differences(compare.digests(a, 4), compare.digests(b, 4))
    weights = torch.arange(6.0).reshape(2, 3)
    weights[1, 2] = torch.nextafter(weights[1, 2], torch.tensor(9.0))
    torch.save({"w": weights}, b / "exp/teacher/1epoch.pth")
    assert compare.differences(compare.digests(a, 4), compare.digests(b, 4)) == ["exp/teacher/1epoch.pth"]
    (b / "exp/teacher/1epoch.pth").unlink()
    assert compare.differences(compare.digests(a, 4), compare.digests(b, 4)) == ["exp/teacher/1epoch.pth"]


def test_files_left_behind_are_found(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (b / "exp/logs").mkdir()
    (b / "exp/logs/train_teacher.log.1").touch()
    assert not compare.left_behind(a, b)
    for name in (".checkpoint.0123abcd.tmp.pth", ".interrupted", ".done_train.lock"):
        (b / "exp/teacher" / name).touch()
    assert len(compare.left_behind(a, b)) == 3


def test_lost_steps_are_counted() -> None:
    before = "1epoch:train:40-40batch: iter_time=1\n2epoch:train:7-7batch: iter_time=1\n"
    assert losses.training_loss(before, "resuming in epoch 2 after 5 batches", 40, 5) == ("2 of 47 steps", True)
    assert losses.training_loss(before, "resuming after epoch 1", 40, 5) == ("7 of 47 steps", False)
    assert losses.training_loss(before, "", 40, 5) == ("47 of 47 steps", False)
    done = {f"dump/raw/{name}/wav.scp": (1, 1) for name in ("train", "valid")}
    assert losses.work_loss(2, done, {**done, "dump/raw/valid/wav.scp": (2, 2)}).within
    assert not losses.work_loss(2, done, {}).within


def test_marked_processes_are_found_and_waited_for() -> None:
    environment = {**os.environ, processes.MARK: "x1"}
    code = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    left = processes.outlived("x1", 0.2)
    assert [str(process.pid) for process in left] == done.stdout.split()
    assert processes.kill(left) == 1 and not processes.outlived("x1", 5)


def test_plan_covers_all_stages_and_is_repeatable() -> None:
    plan = trial.plan(64, 0)
    assert len(plan) == 64 and plan == trial.plan(64, 0) and plan != trial.plan(64, 1)
    assert {(fault["kind"], fault["stage"]) for fault in trial.plan(3, 0, ["term"], [4])} == {("term", 4)}
    pairs = {(fault["kind"], fault["stage"]) for fault in plan}
    assert pairs == {(name, stage) for name, kind in faults.KINDS.items() for stage in kind.stages}
    assert {stage for _, stage in pairs} == {1, 2, 3, 4, 5, 6}


def test_table_tells_no_folders_of_the_machine() -> None:
    problem = 'File "/home/me/lib/python3.11/json/decoder.py", line 3; 1/2 of exp/student/checkpoint.pth'
    record = {"commands": [], "commit": "abc", "date": "today", "machine": "here"}
    text = page.table([trial.Outcome("trainer", 4, "1 killed", "", True, [problem], 9.0)], record)
    assert 'File "json/decoder.py", line 3; 1/2 of exp/student/checkpoint.pth' in text


def test_table_replaces_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    target.write_text(f"text\n{page.BEGIN}\nold\n{page.END}\nmore\n")
    good = trial.Outcome("trainer", 4, "1 killed", "2 of 30 steps", True, [], 9.0)
    bad = trial.Outcome("ctrl_c", 2, "", "", False, ["a | b"], 9.0)
    record = {"commands": ["tools/fault_table.py"], "commit": "abc", "date": "today", "machine": "here"}
    page.write(target, page.table([good, bad], record))
    text = target.read_text()
    assert text.startswith("text\n") and text.endswith("\nmore\n") and "old" not in text
    assert "2 faults: 1 ended with the result" in text and "| **no** | a \\| b |" in text


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A small one: stages 1 to 4."""
    workspace = Workspace(tmp_path_factory.mktemp("faults"))
    workspace.prepare(last=4)
    yield workspace
    processes.kill(processes.marked(workspace.mark))


@pytest.mark.slow
@pytest.mark.parametrize("kind, stage", [("power", 4), ("ctrl_c", 4), ("two_runs", 2)])
def test_faults_change_nothing(workspace: Workspace, kind: str, stage: int) -> None:
    outcome = trial.attempt(workspace, kind, stage, 3)
    assert outcome.good, outcome


@pytest.mark.slow
def test_nothing_is_left_after_success_and_failure(workspace: Workspace) -> None:
    workspace.reset(2)
    (workspace.run_dir / "data/test/spk1.scp").write_text("p232_001 nowhere.wav\n")
    failed = workspace.start(workspace.command(2, 2))
    assert failed.wait() == 2 and "Traceback" not in failed.text(), failed.text()
    assert not processes.outlived(workspace.mark, 5)
    assert not [name for name in compare.names(workspace.run_dir) if compare.is_temporary(name) or "lock" in name]
    shutil.copy(workspace.before(2) / "data/test/spk1.scp", workspace.run_dir / "data/test/spk1.scp")
    assert workspace.start(workspace.command(2, 2)).wait() == 0
    assert not processes.outlived(workspace.mark, 5)
    assert not compare.left_behind(workspace.before(3), workspace.run_dir)


@pytest.mark.cluster
def test_nothing_is_left_on_a_cluster_after_scancel(workspace: Workspace, tmp_path: Path) -> None:
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.slurm_cluster(tmp_path) as workspace.cluster:
        outcome = trial.attempt(workspace, "scancel", 2, 3)
    workspace.cluster = None
    assert outcome.good, outcome
