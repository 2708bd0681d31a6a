import fcntl
import json
import os
import re
import signal
import time
from datetime import datetime
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
    words += " --stages data format statistics teacher student results export"
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


def submit(name: str, job: int, indices: Any = None) -> Path:
    """What a submission leaves beside the logs."""
    folder = Path(f"exp/logs/{name}.slurm")
    write(folder / "job.json", json.dumps({"array": {"indices": indices}}))
    write(folder / "job.id", f"{job}\n")
    return folder


def test_an_array_is_counted_with_reasons_progress_and_time_left(recipe: Path, capsys: Any) -> None:
    lines = [f"7_{i}|i2srf.corpus.stage2.format|RUNNING|None|1:00|node{i}|{recipe}\n" for i in (1, 2)]
    lines += [f"7_{i}|i2srf.corpus.stage2.format|PENDING|Resources|0:00||{recipe}\n" for i in (3, 4, 5)]
    write(Path("queue"), "".join(lines))
    submit("format_train", 7, [1, 2, 3, 4, 5])
    started = datetime.fromtimestamp(time.time() - 100).astimezone().isoformat(timespec="seconds")
    for i, done in ((1, 30), (2, 20)):
        text = f"# Command: x\n# Host: h\n# Started: {started}\nformat train: {done}/50 utt (0.3 utt/s, 0:01:00 left)\n"
        write(Path(f"exp/logs/format_train.{i}.log"), text)
    row = status(capsys)["format"]
    assert row.startswith("running") and "Slurm job 7: 3 pending (Resources), 2 running" in row
    assert re.search(r"50 of 100 utt, about 0:01:(39|4\d) left", row), row


def test_a_submission_that_was_cancelled_is_told(recipe: Path, capsys: Any) -> None:
    """A stage that began, one that waited for it, and an array of which one element had ended."""
    submit("stage_4_teacher", 11)
    write(Path("exp/logs/stage_4_teacher.log"), "# Command: x\n")
    submit("stage_5_student", 12)
    (submit("format_train", 9, [1, 2]) / "1.code").write_text("0\n")
    write(Path("exp/logs/format_train.1.log"), LOG.format("", 0))
    rows = status(capsys)
    for what, job in (("teacher", 11), ("student_kd", 12), ("format", 9)):
        assert rows[what].split()[0] == "cancelled" and f"Slurm job {job} has left the queue" in rows[what], rows[what]
    write(Path("queue"), f"12|i2srf.corpus.stage5.student|PENDING|DependencyNeverSatisfied|0:00||{recipe}\n")
    assert "(DependencyNeverSatisfied)" in status(capsys)["student_kd"]
    write(Path("bin/squeue"), "#!/bin/sh\nexit 1\n")  # then nothing is known
    assert "cancelled" not in "".join(status(capsys).values())
    write(Path("bin/squeue"), "#!/bin/sh\n")
    write(Path("exp/logs/format_train.2.log"), LOG.format("", 3))  # run again on this machine, and failed
    os.utime("exp/logs/format_train.2.log", (time.time() + 1,) * 2)
    assert status(capsys)["format"].startswith("failed")


def test_each_training_of_a_stage_is_shown_with_its_own_job(recipe: Path, capsys: Any) -> None:
    submit("train_teacher", 3)
    submit("train_student_kd", 4)
    names = "i2srf.corpus.stage4.teacher", "i2srf.corpus.stage5.student", "i2srf.corpus.stage5.student_kd"
    jobs = zip((3, 5, 4), names, ("RUNNING", "RUNNING", "PENDING"), strict=True)
    write(Path("queue"), "".join(f"{job}|{name}|{state}|Priority|1:00|n|{recipe}\n" for job, name, state in jobs))
    rows = status(capsys)
    assert "Slurm job 3 on n for 1:00" in rows["teacher"]
    assert rows["student_kd"].split(maxsplit=1) == ["pending", "Slurm job 4 (Priority)"]
