"""The kinds of faults: each lets a stage begin, disturbs it at a random moment, and says what it did."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from reliability import processes
from reliability.losses import MODELS
from reliability.workspace import RANKS, SAVE_EVERY, Run, Workspace

from i2srf_kd.training.checkpoint import CHECKPOINT, PREVIOUS

SLURM = ("--cmd_backend", "slurm")
OF_RANKS = (*SLURM, "--train_tasks", str(RANKS))
# The recipe splits work into parts of one process each; a pool is what a user asks for. Other options than those of the
# systems that are finished: they are left out, and with them the table.
OF_POOL = (
    "--inference_nj", "1", "--inference_args", "--nj 2", "--score_args", "--nj 2", "--score_systems", "student_kd",
)  # fmt: skip
_PATIENCE = 240.0  # seconds for anything to happen


class TooLate(Exception):
    """The stage had ended before the moment came."""


class Scene(NamedTuple):
    """What a fault works with."""

    workspace: Workspace
    stage: int
    run: Run
    moment: random.Random
    variant: str = ""

    def wait_for_work(self) -> None:
        """Wait until the stage does its own work, and then a random share of the time that it takes."""
        seconds = self.workspace.seconds(self.stage, self.variant)
        if "work" in seconds:
            begun = self.workspace.experiment(self.stage) / "environment.json"
            processes.wait_for(lambda: begun.exists() or self.run.ended, _PATIENCE)
        time.sleep(self.moment.uniform(0.05, 0.95) * seconds.get("work", seconds["all"]))
        self.still_running()

    def still_running(self) -> None:
        if self.run.ended:
            raise TooLate

    def everything(self) -> List[processes.Process]:
        return processes.marked(self.workspace.mark)

    def kill(self, victims: Sequence[Optional[processes.Process]]) -> str:
        """Kill processes; TooLate when none of them is there."""
        chosen = [victim for victim in victims if victim is not None]
        if not processes.kill(chosen):
            raise TooLate
        return f"{len(chosen)} killed"

    def job_ids(self) -> List[str]:
        """Slurm jobs that run or wait."""
        assert self.workspace.cluster is not None
        return [line.split()[0] for line in self.workspace.cluster.queue()]

    def wait_for_job(self) -> str:
        """Id of a job that runs or waits; one command may have ended before the next one is submitted."""
        processes.wait_for(lambda: self.job_ids() or self.run.ended, _PATIENCE)
        self.still_running()
        return self.job_ids()[0].partition("_")[0]

    def slurm(self, *command: str) -> None:
        assert self.workspace.cluster is not None
        self.workspace.cluster.output(*command)


class Kind(NamedTuple):
    """A kind of fault.

    Args:
        title: what is done, for the table.
        stages: where it is done.
        inject: does it; returns a remark.
        options: further options of the recipe.
        variant: name of what these options make, where it differs from the undisturbed run without them.
        steps: training steps that may be lost.
        damage: done to the folder between the two runs.
        moves_on: the disturbed run itself goes on to the end.
        expected: exit codes of the disturbed run; empty: any but 0.
    """

    title: str
    stages: Tuple[int, ...]
    inject: Callable[[Scene], str]
    options: Tuple[str, ...] = ()
    variant: str = ""
    steps: int = SAVE_EVERY
    damage: Optional[Callable[[Scene], str]] = None
    moves_on: bool = False
    expected: Tuple[int, ...] = ()

    @property
    def on_cluster(self) -> bool:
        return "slurm" in self.options


# What is killed ---------------------------------------------------------------------------------------------------


def everything(scene: Scene) -> str:
    scene.wait_for_work()
    return scene.kill(scene.everything())


def pipeline(scene: Scene) -> str:
    scene.wait_for_work()
    scene.run.process.kill()
    return "run.sh killed"


def runner(scene: Scene) -> str:
    scene.wait_for_work()
    return scene.kill([next((p for p in scene.everything() if "i2srf_kd.bin.run_jobs" in p.command), None)])


def trainer(scene: Scene) -> str:
    scene.wait_for_work()
    return scene.kill(processes.trainers(scene.workspace.mark)[:1])


def data_reader(scene: Scene) -> str:
    scene.wait_for_work()

    def readers() -> List[processes.Process]:
        ranks = {p.pid for p in processes.trainers(scene.workspace.mark)}
        return [p for p in scene.everything() if p.parent in ranks and p.is_trainer]

    processes.wait_for(lambda: readers() or scene.run.ended, _PATIENCE, 0.01)
    return scene.kill(readers()[:1])


def part(scene: Scene) -> str:
    scene.wait_for_work()
    processes.wait_for(lambda: processes.first(scene.everything(), "--shard") or scene.run.ended, _PATIENCE, 0.02)
    return scene.kill([processes.first(scene.everything(), "--shard")])


def of_pool(chosen: Callable[[Scene, List[processes.Process]], processes.Process]) -> Callable[[Scene], str]:
    """Kill one of the processes of a pool: workers, which are given, or their parent."""

    def workers(scene: Scene) -> List[processes.Process]:
        return [p for p in scene.everything() if "--multiprocessing-fork" in p.command]

    def strike(scene: Scene) -> str:
        scene.wait_for_work()
        processes.wait_for(lambda: workers(scene) or scene.run.ended, _PATIENCE, 0.02)
        # They begin by loading what they need, which takes longer than the work itself.
        time.sleep(scene.moment.uniform(0.0, 0.2) * scene.workspace.seconds(scene.stage, scene.variant)["all"])
        processes.wait_for(lambda: workers(scene) or scene.run.ended, _PATIENCE, 0.02)
        scene.still_running()
        return scene.kill([chosen(scene, found) for found in [workers(scene)] if found])

    return strike


def any_worker(scene: Scene, workers: List[processes.Process]) -> processes.Process:
    return scene.moment.choice(workers)


def parent_of_workers(scene: Scene, workers: List[processes.Process]) -> processes.Process:
    return next(p for p in scene.everything() if p.pid == workers[0].parent)


def rank(scene: Scene) -> str:
    scene.wait_for_work()
    ranks = processes.trainers(scene.workspace.mark)
    if len(ranks) != RANKS:
        raise TooLate
    killed = scene.kill([scene.moment.choice(ranks)])
    start = time.monotonic()
    processes.wait_for(lambda: not processes.trainers(scene.workspace.mark), _PATIENCE)
    return f"{killed}, the other ended after {time.monotonic() - start:.0f} s"


# Signals ----------------------------------------------------------------------------------------------------------


def signalled(number: int, group: bool = False) -> Callable[[Scene], str]:
    def send(scene: Scene) -> str:
        scene.wait_for_work()
        start = time.monotonic()
        (os.killpg if group else os.kill)(scene.run.process.pid, number)
        scene.run.wait()
        return f"ended after {time.monotonic() - start:.1f} s"

    return send


# Slurm ------------------------------------------------------------------------------------------------------------


def told_slurm(*command: str) -> Callable[[Scene], str]:
    """Give a Slurm command the id of the job."""

    def tell(scene: Scene) -> str:
        scene.wait_for_work()
        scene.slurm(*command, scene.wait_for_job())
        return ""

    return tell


def node(scene: Scene) -> str:
    """Slurm's daemon, its helpers and the job die together while the job works, and the machine comes back."""
    scene.wait_for_work()
    cluster = scene.workspace.cluster
    assert cluster is not None

    def job() -> List[processes.Process]:
        return [p for p in scene.everything() if "SLURM_JOB_ID" in p.environment]

    # A job that is queued, or is just being started, would lose nothing.
    processes.wait_for(lambda: any(map(does_work, job())) or scene.run.ended, _PATIENCE, 0.02)
    scene.still_running()
    helpers = step_daemons(job())
    cluster.daemons["slurmd"].kill()
    cluster.stop_daemon("slurmd")
    for pid in helpers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    lost = processes.kill(job())
    cluster.start_daemon("slurmd")
    if not lost:
        raise TooLate
    return f"{lost} processes lost"


def does_work(process: processes.Process) -> bool:
    """Whether it is a training or a part of another stage."""
    return process.is_trainer or ("--shard" in process.command and not process.is_wrapper)


def step_daemons(job: List[processes.Process]) -> List[int]:
    """Ids of Slurm's helpers that started the processes of a job; those of other clusters are left alone."""
    found = subprocess.run(["pgrep", "-f", "^slurmstepd: "], capture_output=True, text=True, check=False)
    return sorted({int(pid) for pid in found.stdout.split()} & {process.parent for process in job})


# Disks and files --------------------------------------------------------------------------------------------------

_GROWS = {2: "dump", 4: "exp", 5: "exp", 6: "exp"}


def size_of(folder: str) -> int:
    return int(
        subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True).stdout.split()[0]
    )


def mount_small(workspace: Workspace, stage: int, moment: random.Random) -> str:
    """Put a file system into the place of the folder that a stage writes to, too small by a random share."""
    folder = workspace.run_dir / _GROWS[stage]
    folder.mkdir(exist_ok=True)
    now = size_of(str(folder))
    end = size_of(str(workspace.before(stage + 1) / _GROWS[stage]))
    size = now + int(moment.uniform(0.1, 0.8) * (end - now))
    kept = folder.with_name("kept")
    folder.rename(kept)
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size // 4096 * 4096 + 4096}", "tmpfs", str(folder)], check=True
    )
    shutil.copytree(kept, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(kept)
    return f"{size / 1e6:.2f} of {end / 1e6:.2f} MB"


def unmount(workspace: Workspace) -> None:
    for name in set(_GROWS.values()):
        if os.path.ismount(workspace.run_dir / name):
            subprocess.run(["umount", "--lazy", str(workspace.run_dir / name)], check=True)


def full_disk(scene: Scene) -> str:
    scene.run.wait()
    return ""


def larger_disk(scene: Scene) -> str:
    folder = scene.workspace.run_dir / _GROWS[scene.stage]
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
    return ""


def damaged(share: Optional[float]) -> Callable[[Scene], str]:
    """Cut the last checkpoint to a share of its length; None: a random one."""

    def cut(scene: Scene) -> str:
        path = scene.workspace.experiment(scene.stage) / CHECKPOINT
        length = int(path.stat().st_size * (scene.moment.random() if share is None else share))
        os.truncate(path, length)
        return f"cut to {length} bytes"

    return cut


def trainer_with_two_checkpoints(scene: Scene) -> str:
    folder = scene.workspace.experiment(scene.stage)
    scene.wait_for_work()
    both = lambda: (folder / CHECKPOINT).exists() and (folder / PREVIOUS).exists()  # noqa: E731
    processes.wait_for(lambda: both() or scene.run.ended, _PATIENCE)
    scene.still_running()
    return scene.kill(processes.trainers(scene.workspace.mark)[:1])


def second_run(scene: Scene) -> str:
    """Start the same command again while the first one runs."""
    scene.wait_for_work()
    other = scene.workspace.start(scene.run.process.args)  # type: ignore[arg-type]
    codes = (scene.run.wait(), other.wait())
    waited = "it waited" if "in use, waiting for" in other.text() else "nothing was left to do"
    if any(codes) or "Traceback" in other.text():
        return f"exit codes {codes}: {other.text()[-500:]}"
    return waited


_ALL = (1, 2, 3, 4, 5, 6)
_TRAINING = tuple(MODELS)

KINDS: Dict[str, Kind] = {
    "power": Kind("kill -9 of everything at once", _ALL, everything, expected=(-9,)),
    "pipeline": Kind("kill -9 of `run.sh` alone", _ALL, pipeline, expected=(-9,)),
    "runner": Kind("kill -9 of the process that watches the commands", (2, 4, 6), runner),
    "trainer": Kind("kill -9 of the trainer", _TRAINING, trainer),
    "reader": Kind("kill -9 of a data-loader worker", _TRAINING, data_reader),
    "part": Kind("kill -9 of one part of the work", (2, 6), part),
    "worker": Kind(
        "kill -9 of one worker of a pool", (6,), of_pool(any_worker), OF_POOL, "-pool", expected=(2,),
    ),
    "parent": Kind(
        "kill -9 of the process that has a pool of workers", (6,), of_pool(parent_of_workers), OF_POOL, "-pool",
    ),
    "usr1": Kind("SIGUSR1", _TRAINING, signalled(signal.SIGUSR1), steps=0, expected=(75,)),
    "term": Kind("SIGTERM", _TRAINING, signalled(signal.SIGTERM), steps=0, expected=(75,)),
    "stop": Kind("SIGTERM", (1, 2, 3, 6), signalled(signal.SIGTERM), expected=(143,)),
    "ctrl_c": Kind("Ctrl-C", _ALL, signalled(signal.SIGINT, group=True)),
    "full_disk": Kind("disk full, then larger", tuple(_GROWS), full_disk, damage=larger_disk),
    "truncated": Kind(
        "kill -9 of the trainer, last checkpoint truncated", _TRAINING, trainer_with_two_checkpoints,
        steps=2 * SAVE_EVERY, damage=damaged(None),
    ),
    "empty": Kind(
        "kill -9 of the trainer, last checkpoint of 0 bytes", _TRAINING, trainer_with_two_checkpoints,
        steps=2 * SAVE_EVERY, damage=damaged(0.0),
    ),
    "two_runs": Kind("the same command twice at a time", (2, 4, 5, 6), second_run, moves_on=True),
    "rank": Kind("kill -9 of one of two ranks (Slurm, gloo)", _TRAINING, rank, OF_RANKS, "-ranks"),
    "scancel": Kind("scancel", (2, 4, 5, 6), told_slurm("scancel"), SLURM),
    "job_usr1": Kind(
        "SIGUSR1 to the job, as before its time limit", _TRAINING,
        told_slurm("scancel", "--batch", "--signal=USR1"), SLURM, steps=0, moves_on=True,
    ),
    "requeue": Kind("scontrol requeue", (2, *_TRAINING), told_slurm("scontrol", "requeue"), SLURM, moves_on=True),
    "node": Kind("node lost: slurmd, slurmstepd and job killed", (2, *_TRAINING), node, SLURM, moves_on=True),
}  # fmt: skip
