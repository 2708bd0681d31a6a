"""What runs inside of a Slurm job: one element of an array, as the local backend runs it.

    python -m i2srf_kd.jobs.slurm_job CONTROL_FOLDER

The folder holds ``job.json`` (written by the submission); the exit code goes into ``<index>.code`` beside it, because
not every cluster keeps an accounting that could be asked for it. A job that saved its state is queued again, and so is
one that is asked to save before its time limit while something else than a training runs in it, such as the scoring in
a run of a grid.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from i2srf_kd.jobs import local
from i2srf_kd.jobs.array import JobArray, Resources
from i2srf_kd.jobs.messages import say
from i2srf_kd.jobs.slurm_config import TRAINING
from i2srf_kd.system.errors import run_command
from i2srf_kd.system.files import write_text
from i2srf_kd.system.signals import EXIT_INTERRUPTED

#: In the control folder: a job that ends with "run again" is not to be queued again.
STOP = "stop"


def write_job(folder: Path, array: JobArray, requeue: bool, max_requeues: int) -> None:
    """Write what :func:`main` reads."""
    content = {"array": dataclasses.asdict(array), "requeue": requeue, "max_requeues": max_requeues}
    write_text(folder / "job.json", json.dumps(content, indent=1) + "\n")


def code_file(folder: Path, index: Optional[int]) -> Path:
    """Where the exit code of an element is found."""
    return folder / f"{1 if index is None else index}.code"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the element that the environment names."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    job: Dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    array = JobArray(**{**job["array"], "resources": Resources(**job["array"]["resources"])})
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    # A job that is submitted from inside an array's element inherits the element's number.
    index = int(task) if task is not None and array.indices is not None else None
    array = dataclasses.replace(array, indices=None if index is None else [index], max_jobs=1, follow=False)
    array = dataclasses.replace(array, detach=False, after=None)
    target = code_file(folder, index)
    target.unlink(missing_ok=True)  # of the run before a requeue
    code = 1
    try:
        code = local.run(array)[0].code or 0
        if array.kind == TRAINING and code == 128 + signal.SIGUSR1:
            code = EXIT_INTERRUPTED
    finally:
        write_text(target, f"{code}\n")
    if code == EXIT_INTERRUPTED and job["requeue"] and not (folder / STOP).exists():
        _requeue(job["max_requeues"])
    return code


def _requeue(most: int) -> None:
    job, done = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if done >= most:
        say(f"queued again {done} times already (max_requeues): not any more")
        return
    show = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, check=False)
    if " JobState=RUNNING " not in show.stdout:  # cancelled, or pre-empted: then Slurm itself queues it again
        return
    say(f"saved; queueing the job again ({done + 1} of {most} times at most)")
    subprocess.run(["scontrol", "requeue", job], check=False)


if __name__ == "__main__":
    run_command(main)
