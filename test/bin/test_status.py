import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from i2srf_kd.bin.status import main

LOG = "# Command: x\n{}# Ended: 2026-01-01T00:00:00, exit code {}, 1.0 seconds\n"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture()
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe folder, and a squeue that prints the file ``queue``."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bin/squeue", f"#!/bin/sh\ncat '{tmp_path}/queue'\n")
    (tmp_path / "bin/squeue").chmod(0o755)
    write(tmp_path / "queue")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def status(capsys: Any) -> Dict[str, str]:
    """State and details by the second column."""
    words = "--recipe corpus --datadir data --rawdir raw --expdir exp --logdir exp/logs --teacher exp/teacher"
    assert main([*words.split(), "--student", "exp/student_kd", "--sets", "train", "valid"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return {what: rest for _, what, rest in lines}


def test_nothing_yet(recipe: Path, capsys: Any) -> None:
    assert set(status(capsys).values()) == {"not started"}


def test_stages_by_done_files_logs_and_queue(recipe: Path, capsys: Any) -> None:
    write(Path("data/.done_data"))
    write(Path("raw/.done_train"))
    write(Path("exp/logs/stage_2_format.log"), LOG.format("", 3))
    write(Path("exp/logs/train_teacher.log"), LOG.format("", 75))
    write(
        Path("queue"),
        f"12|i2srf.corpus.stage5.student|PENDING|Dependency|0:00||{recipe}\n13|other|RUNNING|None|1|n|/\n",
    )
    rows = status(capsys)
    assert rows["data"].startswith("finished")
    assert rows["format"].split(maxsplit=1)[0] == "failed" and "1 of 2 finished; exit code 3" in rows["format"]
    assert rows["teacher"].startswith("interrupted")
    assert rows["student_kd"].split() == ["pending", "Slurm", "job", "12", "(Dependency)"]


def test_progress_of_a_training(recipe: Path, capsys: Any) -> None:
    write(Path("exp/teacher/options.yaml"), "max_epoch: 10\n")
    record = '{{"epoch": {0}, "phase": "{1}", "loss": 0.5, "seconds": {2}}}\n'
    epochs = "".join(record.format(e, "train", 50) + record.format(e, "valid", 10) for e in (1, 2))
    write(Path("exp/teacher/metrics.jsonl"), epochs)
    write(Path("exp/logs/train_teacher.log"), "epoch 3 train: 20/40 batch (0.6 batch/s, 0:00:10 left)\n")
    write(Path("exp/teacher/.lock"), "process 1\n")
    with Path("exp/teacher/.lock").open("r+") as lock:
        child = os.fork()
        if child == 0:  # a lock does not keep its own process out
            fcntl.lockf(lock, fcntl.LOCK_EX)
            Path("locked").touch()
            time.sleep(60)
            os._exit(0)
        while not Path("locked").exists():
            time.sleep(0.02)
        try:
            row = status(capsys)["teacher"]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert (
        row.split() == "running epoch 3 of 10, train 20/40, valid loss 0.5, about 0:07:30 left; on this machine".split()
    )
