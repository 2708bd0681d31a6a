"""The Slurm backend: with stand-ins for Slurm's commands, and (marked ``cluster``) with a real Slurm."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
import slurm_cluster
import yaml
from places import REPOSITORY

from i2srf_kd.bin.run_jobs import main
from i2srf_kd.jobs import JobArray, Resources
from i2srf_kd.jobs.ranks import rank_environment, step_command
from i2srf_kd.jobs.slurm import ranges
from i2srf_kd.jobs.slurm_config import SlurmOptions, slurm_options
from i2srf_kd.system.errors import UserError

# Plays sbatch, squeue and scancel: runs the elements one after the other in the background, tells states from files.
STAND_IN = r"""#!{python} -S
import os, re, subprocess, sys
from pathlib import Path

folder = Path(__file__).parent
name, args = Path(__file__).name, sys.argv[1:]
with (folder / "calls").open("a") as calls:
    calls.write(" ".join([name, *args]) + "\n")
away = folder / f"{{name}}.away"  # so many calls find no controller
if away.exists() and int(away.read_text()) > 0:
    away.write_text(str(int(away.read_text()) - 1))
    if (folder / "takes_it_all_the_same").exists():
        (folder / "taken").write_text(Path(args[-1]).read_text())
    sys.exit("error: Unable to contact slurm controller (connect failure)")
if name == "sbatch":
    text = Path(args[-1]).read_text()
    if "--partition=wrong" in text:
        sys.exit("sbatch: error: invalid partition specified: wrong")
    array = re.search(r"--array=([0-9,-]+)", text)
    elements = []
    for part in array.group(1).split(",") if array else []:
        first, _, last = part.partition("-")
        elements += range(int(first), int(last or first) + 1)
    (folder / "elements").write_text(" ".join(map(str, elements)))
    (folder / "state").write_text("COMPLETED")
    for element in elements or [None]:
        extra = {{}} if element is None else {{"SLURM_ARRAY_TASK_ID": str(element)}}
        subprocess.run(["bash", args[-1]], env={{**os.environ, "SLURM_JOB_ID": "42", **extra}})
    print("42;cluster")
elif name == "squeue" and any(arg.startswith("--user") for arg in args):
    if (folder / "taken").exists():
        print("41|" + re.search(r"--comment=(\S+)", (folder / "taken").read_text()).group(1))
elif name == "squeue":
    if (folder / "forgotten").exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    if not (folder / "state").exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    state = (folder / "state").read_text()
    for element in (folder / "elements").read_text().split() or [None]:
        print("42" + ("" if element is None else "_" + element) + "|" + state + "|None|node1")
"""


@pytest.fixture()
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with stand-ins on the search path; tests run in an empty recipe folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        path = folder / name
        path.write_text(STAND_IN.format(python=sys.executable))
        path.chmod(0o755)
    recipe = tmp_path / "corpus"
    recipe.mkdir()
    monkeypatch.chdir(recipe)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "I2SRF_STAGE", "I2SRF_SLURM"))]:
        monkeypatch.delenv(name)
    return folder


def configure(**sections: Dict[str, Any]) -> None:
    path = Path("conf/slurm.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(sections))


def script(name: str) -> str:
    return Path(f"logs/{name}.slurm/job.sbatch").read_text()


def test_array_runs_and_its_script_says_what_was_asked_for(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(default={"partition": "cpu", "account": "lab 1"}, data={"time": "1:00:00", "extra": ["--exclude=node7"]})
    monkeypatch.setenv("I2SRF_STAGE", "stage2")
    words = ["--backend", "slurm", "--kind", "data", "--mem", "4G", "--time", "4:00:00", "--num_threads", "3"]
    words += ["--max_jobs", "2", "--name", "format train", "JOB=1:3", "logs/x.JOB.log", "echo", "part", "JOB/3"]
    assert main(words) == 0
    for index in (1, 2, 3):
        assert f"\npart {index}/3\n" in Path(f"logs/x.{index}.log").read_text()
    lines = [line.removeprefix("#SBATCH ") for line in script("x").splitlines() if line.startswith("#SBATCH ")]
    assert {"--job-name=i2srf.corpus.stage2.format_train", "--array=1-3%2", "--cpus-per-task=3", "--nodes=1"} <= {
        *lines
    }
    assert {"--partition=cpu", '--account="lab 1"', "--mem=4G", "--time=1:00:00", "--exclude=node7"} <= {*lines}
    configure(default={"max_jobs": 1})
    assert main(words) == 0 and "--array=1-3%1\n" in script("x")
    assert "--requeue" in lines and not any("gpu" in line for line in lines)


def test_only_trainings_are_asked_to_save_before_their_time_limit(stand_in: Path) -> None:
    configure(default={"signal_seconds": 60, "time": "1:00:00"})
    for kind in ("data", "train", "decode", "score", ""):
        assert main(["--backend", "slurm", "--kind", kind, "logs/x.log", "true"]) == 0
        assert ("--signal=B:USR1@60\n" in script("x")) == (kind == "train")


def test_a_step_that_cannot_save_is_queued_again_where_trainings_are(stand_in: Path) -> None:
    for kind, code in (("train", 75), ("score", 138)):
        words = ["--backend", "slurm", "--kind", kind, "logs/x.log", "bash", "-c", "kill -s USR1 $$"]
        assert main(words) == code
        queued = "scontrol --oneliner show job 42" in (stand_in / "calls").read_text()
        assert queued == (kind == "train")
        (stand_in / "calls").unlink()


def test_failed_element_is_named_with_its_log_and_its_exit_code(stand_in: Path, capfd: Any) -> None:
    command = ["bash", "-c", "echo line of JOB; exit $((JOB == 2 ? 7 : 0))"]
    assert main(["--backend", "slurm", "--name", "score", "JOB=1:3", "logs/x.JOB.log", *command]) == 7
    error = capfd.readouterr().err
    assert "error: score JOB=2 failed with exit code 7; log: logs/x.2.log" in error
    assert "  | line of 2" in error and "  | line of 1" not in error and "# Command" not in error


@pytest.mark.parametrize(
    "state, code, words", [("OUT_OF_MEMORY", 137, "ran out of memory"), ("TIMEOUT", 124, "reached its time limit")]
)
def test_what_slurm_did_to_a_job_is_said(stand_in: Path, capfd: Any, state: str, code: int, words: str) -> None:
    command = f"printf {state} > '{stand_in}/state'; kill -9 $PPID"
    assert main(["--backend", "slurm", "logs/x.log", "bash", "-c", command]) == code
    assert words in capfd.readouterr().err


def test_exit_75_is_passed_on(stand_in: Path, capfd: Any) -> None:
    assert main(["--backend", "slurm", "logs/x.log", "bash", "-c", "exit 75"]) == 75
    assert "run again" in capfd.readouterr().err
    assert "scontrol --oneliner show job 42" in (stand_in / "calls").read_text()


def test_a_forgotten_job_is_judged_by_its_exit_code_file(stand_in: Path) -> None:
    (stand_in / "forgotten").touch()
    assert main(["--backend", "slurm", "logs/x.log", "bash", "-c", "exit 3"]) == 3


def test_a_controller_that_is_away_is_waited_for(stand_in: Path, capfd: Any) -> None:
    (stand_in / "sbatch.away").write_text("1")
    (stand_in / "squeue.away").write_text("2")
    assert main(["--backend", "slurm", "logs/x.log", "true"]) == 0
    assert "does not answer" in capfd.readouterr().err
    assert (stand_in / "calls").read_text().count("sbatch --parsable") == 2


def test_a_job_is_not_submitted_twice_when_the_answer_was_lost(stand_in: Path, capfd: Any) -> None:
    (stand_in / "sbatch.away").write_text("1")
    (stand_in / "takes_it_all_the_same").touch()
    assert main(["--backend", "slurm", "--detach", "logs/x.log", "true"]) == 0
    assert capfd.readouterr().out == "41\n"
    assert (stand_in / "calls").read_text().count("sbatch --parsable") == 1


def test_a_job_that_is_still_queued_is_not_submitted_again(stand_in: Path) -> None:
    words = ["--backend", "slurm", "--detach", "logs/x.log", "true"]
    assert main(words) == 0
    (stand_in / "state").write_text("RUNNING")
    with pytest.raises(UserError, match="still running: wait for Slurm job 42, or cancel it: scancel 42"):
        main(words)


def test_a_controller_that_is_away_does_not_hide_a_job_that_is_queued(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--backend", "slurm", "--detach", "logs/x.log", "true"]
    assert main(words) == 0
    (stand_in / "state").write_text("RUNNING")
    (stand_in / "squeue.away").write_text("1")
    with pytest.raises(UserError, match="still running: wait for Slurm job 42"):
        main(words)
    (stand_in / "squeue.away").write_text("99")
    monkeypatch.setattr("i2srf_kd.jobs.slurm._SUBMIT_SECONDS", 0.0)
    with pytest.raises(UserError, match="controller does not answer"):
        main(words)
    assert (stand_in / "calls").read_text().count("sbatch --parsable") == 1
    assert Path("logs/x.slurm/job.id").read_text() == "42\n"


def test_dependent_job(stand_in: Path) -> None:
    assert main(["--backend", "slurm", "--detach", "--after", "7", "logs/x.log", "true"]) == 0
    assert "#SBATCH --dependency=afterok:7\n#SBATCH --kill-on-invalid-dep=yes\n" in script("x")
    with pytest.raises(UserError, match="--detach and --after need a queue"):
        main(["--detach", "logs/x.log", "true"])


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_only_what_is_missing_is_run_again(stand_in: Path, backend: str) -> None:
    def run(key: str) -> List[str]:
        command = ["bash", "-c", "echo JOB >> ran; test JOB != 2 -o -e mended"]
        words = ["--backend", backend, "--max_jobs", "1", "--resume_key", key, "JOB=1:3", "logs/x.JOB.log", *command]
        Path("ran").unlink(missing_ok=True)
        main(words)
        return Path("ran").read_text().split()

    assert run("a") == ["1", "2", "3"]
    assert run("a") == ["2"]
    assert run("b") == ["1", "2", "3"]  # what they read has changed
    Path("mended").touch()
    assert run("b") == ["2"]
    assert run("b") == ["1", "2", "3"] and not list(Path("logs").glob("*.finished"))


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"default": {"partitoin": "x"}}, "default has no option partitoin: .*did you mean partition"),
        ({"default": {"requeue": "yes please"}}, "requeue must be true or false"),
        ({"default": {"time": 3600}}, "put the time into quotes"),
        ({"default": {"max_jobs": 0}}, "max_jobs must be a whole number, 1 or more"),
        ({"default": {"extra": "--x"}}, "extra must be a list of texts"),
        ({"train": ["x"]}, "train must hold options"),
    ],
)
def test_wrong_configuration_is_refused(stand_in: Path, sections: Dict[str, Any], message: str) -> None:
    configure(**sections)
    with pytest.raises(UserError, match=message):
        slurm_options(JobArray(["true"], "x.log", kind="train"))


def test_default_wins_over_the_command_and_loses_to_kind_and_name(stand_in: Path) -> None:
    def options(**more: Any) -> SlurmOptions:
        return slurm_options(JobArray(["true"], "x.log", resources=Resources(mem="4G", time="4:00:00"), **more))

    configure(default={"mem": "9G", "time": "9:00:00"}, train={"mem": "8G"}, teacher={"time": "7:00:00"})
    assert (options().mem, options().time) == ("9G", "9:00:00")
    assert (options(kind="train", name="teacher").mem, options(kind="train", name="teacher").time) == ("8G", "7:00:00")
    configure(default={"partition": "gpu"})
    assert (options().mem, options().time) == ("4G", "4:00:00")


def test_sections_that_no_job_reads_are_named(stand_in: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2SRF_MODELS", "teacher\nkd7\nstudent")
    sections = ["default", "trian", "train", "kd7", "student_kd", "ablation paper", "format valid", "mine", "empty"]
    configure(**{name: {} if name == "empty" else {"requeue": True} for name in sections})

    def named(**more: Any) -> List[str]:
        slurm_options(JobArray(["true"], "x.log", **more))
        return re.findall(r"slurm.yaml: section (\S+) has no effect", capfd.readouterr().err)

    assert named(name="mine") == ["trian"]
    assert named(kind="mine") == ["trian"]
    assert named(name="student", detach=True) == ["kd7", "mine", "student_kd", "trian"]
    assert named(name="results", detach=True, after="7") == []
    slurm_options(JobArray(["true"], "x.log"))
    assert "trian has no effect, did you mean train? (kinds of work: data, train," in capfd.readouterr().err


def test_the_configurations_in_the_manual_have_an_effect(stand_in: Path, capfd: Any) -> None:
    texts = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/cluster.md").read_text(), re.DOTALL)
    assert len(texts) == 3
    for text in [*texts, (REPOSITORY / "egs/TEMPLATE/conf/slurm.yaml").read_text()]:
        configure(**yaml.safe_load(text))
        slurm_options(JobArray(["true"], "x.log", name="student", kind="train", detach=True))
    assert capfd.readouterr().err == ""


def test_refusal_of_slurm_is_shown(stand_in: Path) -> None:
    configure(default={"partition": "wrong"})
    with pytest.raises(UserError, match="sbatch refuses: sbatch: error: invalid partition specified: wrong"):
        main(["--backend", "slurm", "logs/x.log", "true"])


def test_indices_become_ranges() -> None:
    assert ranges([5, 1, 2, 3, 9, 8]) == "1-3,5,8-9"


def test_ranks_get_torchs_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    assert rank_environment(slurm) == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "NCCL_DEBUG": "WARN"}
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="--nodes 1 --tasks 2.*need --backend slurm"):
        step_command(["true"], Resources(tasks=2))
    assert step_command(["true"], Resources(tasks=2, start_once=True)) == ["true"]


# ---------------------------------------------------------------------------------------------------------------------
# With a real Slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.SlurmCluster]:
    reason = slurm_cluster.why_not()
    if reason:
        warnings.warn(f"cluster tests SKIPPED: {reason}", stacklevel=1)
        pytest.skip(reason)
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as running:
        yield running


class Run:
    """``run_jobs --backend slurm`` as a process of its own, in a recipe folder of its own."""

    def __init__(self, cluster: slurm_cluster.SlurmCluster, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(REPOSITORY)}
        (folder / "conf").mkdir(exist_ok=True)
        content = {"default": {"poll_seconds": 0.5, **settings}}
        (folder / "conf/slurm.yaml").write_text(yaml.safe_dump(content))

    def start(self, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "i2srf_kd.bin.run_jobs", "--backend", "slurm", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *words: str) -> "tuple[int, str, str]":
        process = self.start(*words)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err


@pytest.fixture()
def slurm_run(cluster: slurm_cluster.SlurmCluster, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    yield lambda **settings: Run(cluster, tmp_path, **settings)
    cluster.wait_for(lambda: not cluster.queue(), "an empty queue: a test left jobs behind")


@pytest.mark.cluster
def test_cluster_array(slurm_run: Callable[..., Run], tmp_path: Path) -> None:
    """Success, failure, exit codes, never more than max_jobs, missing elements only."""
    together = f"""
import os, sys, time
mine = {str(tmp_path)!r} + "/running." + sys.argv[1]
open(mine, "w").close()
print("together", len([n for n in os.listdir({str(tmp_path)!r}) if n.startswith("running.")]), flush=True)
time.sleep(0.5)
os.remove(mine)
sys.exit(7 if sys.argv[1] == "2" and not os.path.exists("mended") else 0)
"""
    run = slurm_run()
    words = ["--max_jobs", "2", "--name", "score", "--resume_key", "a", "JOB=1:4", "logs/x.JOB.log"]
    words += [sys.executable, "-c", together, "JOB"]
    code, _, err = run(*words)
    assert code == 7, err
    assert "error: score JOB=2 failed with exit code 7; log: logs/x.2.log" in err and "4 of 4 done, 1 failed" in err
    seen = [int(re.search(r"together (\d+)", p.read_text()).group(1)) for p in tmp_path.glob("logs/x.*.log")]
    assert len(seen) == 4 and max(seen) <= 2
    (tmp_path / "mended").touch()
    code, _, err = run(*words)
    assert code == 0 and "3 of 4 succeeded before" in err and "1 of 1 done" in err


@pytest.mark.cluster
def test_cluster_interrupt_cancels(
    slurm_run: Callable[..., Run], cluster: slurm_cluster.SlurmCluster, tmp_path: Path
) -> None:
    process = slurm_run().start("--max_jobs", "1", "JOB=1:3", "logs/x.JOB.log", "bash", "-c", "echo ready; sleep 600")
    log = tmp_path / "logs/x.1.log"
    cluster.wait_for(lambda: log.exists() and "ready" in log.read_text(), "the first element")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, 143), err
    assert "received SIGINT; cancelling Slurm job" in err
    assert not cluster.queue() and not (tmp_path / "logs/x.2.log").exists()


@pytest.mark.cluster
def test_cluster_requeues_what_saved_its_state(slurm_run: Callable[..., Run]) -> None:
    """Exit code 75 puts the job back, the log of each run is shown, and the end counts."""
    command = "echo attempt ${SLURM_RESTART_COUNT:-0}; test ${SLURM_RESTART_COUNT:-0} = 1 || exit 75"
    code, out, err = slurm_run()("--follow", "--name", "train", "logs/x.log", "bash", "-c", command)
    assert code == 0, err
    assert "attempt 0\n" in out and "attempt 1\n" in out
    code, _, _ = slurm_run(requeue=False)("logs/y.log", "bash", "-c", "exit 75")
    assert code == 75


@pytest.mark.cluster
def test_cluster_outlives_its_controller(
    slurm_run: Callable[..., Run], cluster: slurm_cluster.SlurmCluster, tmp_path: Path
) -> None:
    """A controller that is away for a while costs nothing but time."""
    process = slurm_run().start(
        "logs/x.log", "bash", "-c", "echo ready; while ! test -e go; do sleep 0.1; done; exit 3"
    )
    log = tmp_path / "logs/x.log"
    cluster.wait_for(lambda: log.exists() and "ready" in log.read_text(), "the job")
    cluster.stop_daemon("slurmctld")
    time.sleep(3)
    cluster.start_daemon("slurmctld")
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err


@pytest.mark.cluster
def test_cluster_lost_rank_ends_the_job(slurm_run: Callable[..., Run]) -> None:
    command = 'if [ "$RANK" = 1 ]; then sleep 1; kill -9 $$; fi; sleep 600'
    start = time.monotonic()
    code, _, err = slurm_run()("--tasks", "2", "logs/x.log", "bash", "-c", command)
    assert code == 137, err
    assert time.monotonic() - start < 120


def toy_training(folder: Path, cluster_folder: Path, *more: str) -> List[str]:
    """Options of a distilled toy training; data and teacher are made once in ``cluster_folder``."""
    import toy

    from i2srf_kd.espnet.task import DistillEnhancementTask

    data, teacher = cluster_folder / "toy_data", cluster_folder / "toy_teacher"
    if not data.exists():
        toy.write_data(data)
        assert toy.join([toy.start_child(toy.dpdcrn_command(data, teacher, 12), task=DistillEnhancementTask)]) == [0]
    method = {"middle_channels": 4, "calibration": {"gather": True}}
    (folder / "distill.yaml").write_text(yaml.safe_dump({"method": "i2srf_tfckd", "method_conf": method}))
    distilled = ["--max_epoch", "6", "--distill_config", str(folder / "distill.yaml"), "--teacher_exp", str(teacher)]
    return toy.dpdcrn_command(data, folder / "exp", 8, *distilled, *more)


def two_local_ranks(cluster_folder: Path) -> Dict[str, Any]:
    """Weights of the toy training by two processes of this machine, which is carried out once."""
    import toy

    from i2srf_kd.espnet.task import DistillEnhancementTask

    folder = cluster_folder / "local"
    if not folder.exists():
        folder.mkdir()
        arguments = toy_training(folder, cluster_folder)
        assert toy.join(toy.start_ranks(arguments, 2, task=DistillEnhancementTask), 240) == [0, 0]
    return toy.weights(folder / "exp")


DISTRIBUTED = ["--dist_backend", "gloo", "--multiprocessing_distributed", "false"]


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_cluster_two_machines_train_as_two_local_ranks(
    slurm_run: Callable[..., Run], cluster: slurm_cluster.SlurmCluster, tmp_path: Path, monkeypatch: Any
) -> None:
    """One process on each, and both read a copy of the data on the machine's own disk: the same weights bit by bit."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "test/espnet"))
    import toy

    arguments = toy_training(tmp_path, cluster.folder, *DISTRIBUTED)
    train = [sys.executable, "-m", "i2srf_kd.bin.train", *arguments]
    sets = [str(cluster.folder / "toy_data" / name) for name in ("train", "valid")]
    scratch = ["--scratch", f"{tmp_path}/$SLURMD_NODENAME", "--sets", *sets, "--"]
    noting = f'ls -d {tmp_path}/*/i2srf-* >"{tmp_path}/seen.$SLURMD_NODENAME"; exec "$@"'
    command = [sys.executable, "-m", "i2srf_kd.bin.with_scratch", *scratch, "bash", "-c", noting, "bash", *train]
    code, _, err = slurm_run()("--nodes", "2", "--tasks", "1", "logs/x.log", *command)
    assert code == 0, err + (tmp_path / "logs/x.log").read_text()
    for node in cluster.nodes:
        assert f"{tmp_path}/{node}/i2srf-" in (tmp_path / f"seen.{node}").read_text()
        assert not list((tmp_path / node).iterdir())
    assert toy.same(toy.weights(tmp_path / "exp"), two_local_ranks(cluster.folder))


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_cluster_two_tasks_train_as_two_local_ranks(
    slurm_run: Callable[..., Run], cluster: slurm_cluster.SlurmCluster, tmp_path: Path, monkeypatch: Any
) -> None:
    """The distilled student, its frequency stream over both ranks: the same weights bit by bit, interrupted or not."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "test/espnet"))
    import toy

    arguments = toy_training(tmp_path, cluster.folder, *DISTRIBUTED)
    run, log = slurm_run(), tmp_path / "logs/x.log"
    words = ["--tasks", "2", "logs/x.log", sys.executable, "-m", "i2srf_kd.bin.train", *arguments]
    process = run.start(*words)
    cluster.wait_for((tmp_path / "exp/checkpoint.pth").exists, "the first epoch", 240)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 75, err + log.read_text()
    assert "received SIGUSR1; asking Slurm job" in err
    code, _, err = run(*words)
    assert code == 0, err + log.read_text()
    assert toy.same(toy.weights(tmp_path / "exp"), two_local_ranks(cluster.folder))


@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_cluster_recipe_gives_the_local_table(cluster: slurm_cluster.SlurmCluster, tmp_path: Path) -> None:
    """A tiny recipe: on this machine, stage by stage through Slurm, and as one submitted chain."""
    recipe = TinyRecipe(cluster, tmp_path)
    recipe.run("local")
    recipe.run("staged", "--cmd_backend", "slurm", "--ngpu", "0")
    output = recipe.run("chain", "--submit", "--ngpu", "0")
    jobs = re.search(r"squeue --jobs=([0-9,]+)", output)
    assert jobs and len(jobs.group(1).split(",")) == 6
    cluster.wait_for(lambda: not cluster.queue(), "the end of the chain", 900)
    logs = tmp_path / "chain/exp/logs"
    table = tmp_path / "chain/exp/RESULTS.md"
    assert table.exists(), "\n".join(path.read_text()[-1500:] for path in sorted(logs.glob("stage_*.log")))
    assert re.search(r"^6 +results +finished", recipe.run("chain", "--status"), re.MULTILINE)
    for kind in ("staged", "chain"):
        assert recipe.table(kind) == recipe.table("local"), kind
    assert list((tmp_path / "staged/exp/logs").glob("train_teacher.slurm/job.sbatch"))


@pytest.mark.cluster
def test_cluster_status_of_a_chain_that_was_cancelled(cluster: slurm_cluster.SlurmCluster, tmp_path: Path) -> None:
    """Stages that will never run are told from those that wait, and the same command submits them again."""
    recipe = TinyRecipe(cluster, tmp_path)

    def states() -> Dict[str, str]:
        return dict(re.findall(r"^([1-5]) +\w+ +(\w+)", recipe.run("gone", "--status"), re.MULTILINE))

    for _ in range(2):
        output = recipe.run("gone", "--submit", "--ngpu", "0", "--stop_stage", "5")
        (jobs,) = re.findall(r"cancel: scancel ([0-9 ]+)$", output, re.MULTILINE)
        assert len(jobs.split()) == 5 and states()["5"] == "pending"
        cluster.output("scancel", *jobs.split())
        cluster.wait_for(lambda: not cluster.queue(), "an empty queue")
        after = states()
        assert after["4"] == after["5"] == "cancelled", after


class TinyRecipe:
    """The VoiceBank recipe without anything that is not needed for a table."""

    def __init__(self, cluster: slurm_cluster.SlurmCluster, root: Path) -> None:
        from i2srf_kd.bin import mini_corpus

        self.root = root
        self.environment = {**os.environ, **cluster.environment, "I2SRF_SLURM_CONFIG": str(root / "slurm.yaml")}
        (root / "slurm.yaml").write_text("default: {poll_seconds: 0.5}\n")
        mini_corpus.main([str(root / "corpus"), "--train_utts", "8", "--valid_utts", "4", "--test_utts", "3"])
        conf = REPOSITORY / "egs/voicebank/conf/mini"
        for name, channels in (("teacher", 12), ("student", 8)):
            options = yaml.safe_load((conf / "train_student.yaml").read_text())
            options["separator_conf"] = {"channels": channels, "blocks": 1, "heads": 2}
            options.update(chunk_length=4000, batch_size=2, num_iters_per_epoch=3, max_epoch=1, quality_utts=0)
            options.update(scheduler_conf={"max_lr": 3e-3, "total_steps": 3, "pct_start": 0.1})
            (root / f"{name}.yaml").write_text(yaml.safe_dump(options))
        (root / "distill.yaml").write_text("method: i2srf_tfckd\nmethod_conf: {middle_channels: 4}\n")

    def run(self, kind: str, *more: str) -> str:
        options = {
            "python": sys.executable, "corpus_dir": self.root / "corpus", "datadir": self.root / kind / "data",
            "dumpdir": self.root / kind / "dump", "expdir": self.root / kind / "exp",
            "teacher_config": self.root / "teacher.yaml", "student_config": self.root / "student.yaml",
            "distill_config": self.root / "distill.yaml", "check_counts": "false", "nj": 2, "inference_nj": 1,
            "num_threads": 1, "stage": 1, "stop_stage": 6, "results_title": "Tiny",
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        command = [str(REPOSITORY / "egs/voicebank/run.sh"), *words, *more]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False, timeout=900)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def table(self, kind: str) -> List[str]:
        lines = (self.root / kind / "exp/RESULTS.md").read_text().splitlines()
        return [line for line in lines if line.startswith("|")]
