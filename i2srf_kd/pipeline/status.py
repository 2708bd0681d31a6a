"""How far the stages of a recipe are, from their done files, metrics and logs, and from Slurm's queue."""

import getpass
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from i2srf_kd.jobs.slurm import JOB_ID
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.locks import holder_of
from i2srf_kd.system.progress import clock
from i2srf_kd.system.signals import EXIT_INTERRUPTED

_STEP = re.compile(r"epoch (\d+) (train|valid): (\d+)/(\d+) batch")
_WORK = re.compile(r": (\d+)/(\d+) (\w+) \(")
_PART = re.compile(r"\.\d+\.log$")
_STARTED = re.compile(r"^# Started: (\S+)", re.MULTILINE)
_ENDED = re.compile(r"^# Ended: (\S+), exit code (\d+)", re.MULTILINE)
_RECENT_EPOCHS = 3
_TAIL_BYTES = 65536
# Logs of what a stage is made of.
_PARTS = {2: ["format_*.log"], 3: ["statistics.log"], 6: ["enhance_*.log", "score_*.log"], 7: ["export.log"]}


@dataclass
class Row:
    """A line of the table."""

    stage: str
    what: str
    state: str
    details: str = ""


@dataclass(frozen=True)
class Job:
    """A line of Slurm's queue."""

    job: str
    state: str
    reason: str
    elapsed: str
    nodes: str

    @property
    def number(self) -> str:
        """The id without the index of an array's element."""
        return self.job.partition("_")[0]

    def describe(self) -> str:
        """Id, and where it runs or what it waits for."""
        if self.state == "RUNNING":
            return f"Slurm job {self.job} on {self.nodes} for {self.elapsed}"
        return f"Slurm job {self.job} ({self.reason})"


def describe_jobs(jobs: Sequence[Job]) -> Tuple[str, str]:
    """State and details of one job, or of the elements of an array: ``2 running, 6 pending (Resources)``."""
    if len(jobs) == 1:
        return jobs[0].state.lower(), jobs[0].describe()
    kinds = Counter(job.state.lower() + (f" ({job.reason})" if job.state == "PENDING" else "") for job in jobs)
    state = "running" if any(job.state == "RUNNING" for job in jobs) else jobs[0].state.lower()
    numbers = ", ".join(dict.fromkeys(job.number for job in jobs))
    return state, f"Slurm job {numbers}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def queue(recipe: str, folder: Path) -> Optional[Dict[str, List[Job]]]:
    """This recipe's jobs in Slurm's queue by stage (``stage4``); None where Slurm is absent or does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%j|%T|%r|%M|%N|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    jobs: Dict[str, List[Job]] = {}
    for line in done.stdout.splitlines():
        job, name, state, reason, elapsed, nodes, where = line.strip().split("|", 6)
        words = name.split(".")
        if words[0] == "i2srf" and len(words) > 2 and words[1] == recipe and Path(where) == folder:
            jobs.setdefault(words[2], []).append(Job(job, state, reason, elapsed, nodes))
    return jobs


def last_exit(log: Path) -> Optional[int]:
    """Exit code at the end of a log; None without a log or while it grows."""
    found = _ENDED.findall(_tail(log))
    return int(found[-1][1]) if found else None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def training_progress(model: Path, log: Path) -> str:
    """``epoch 3 of 10, train 20/200, loss 0.042, 0:12:00 left``, as far as it is known."""
    records = [record for record in map(_json, _lines(model / "metrics.jsonl")) if record]
    epochs = _max_epoch(model)
    finished = [record for record in records if record.get("phase") == "valid"]
    done = int(finished[-1]["epoch"]) if finished else 0
    parts = [f"epoch {done} of {epochs or '?'} finished"]
    steps = _STEP.findall(_tail(log))
    part = 0.0
    if steps and int(steps[-1][0]) == done + 1:
        epoch, phase, step, total = steps[-1]
        parts = [f"epoch {epoch} of {epochs or '?'}", f"{phase} {step}/{total}"]
        part = int(step) / int(total) if phase == "train" else 1.0
    if finished and finished[-1].get("loss") is not None:
        parts.append(f"valid loss {finished[-1]['loss']:.4g}")
    if finished and epochs:
        recent = [sum(r.get("seconds") or 0.0 for r in records if r["epoch"] == e) for e in range(1, done + 1)]
        recent = recent[-_RECENT_EPOCHS:]
        left = max(0.0, (epochs - done - part) * sum(recent) / len(recent))
        parts.append(f"about {clock(left)} left")
    return ", ".join(parts)


def _lines(path: Path) -> List[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _json(text: str) -> Dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:  # absent, or being written
        return {}


def _max_epoch(model: Path) -> Optional[int]:
    for name in ("options.yaml", "config.yaml"):
        try:
            return int(read_yaml(model / name)["max_epoch"])
        except (KeyError, TypeError, ValueError):  # a UserError is a ValueError
            continue
    return None


def submitted_as(log: Path) -> str:
    """Id of the Slurm job that was last submitted with this log; empty where there was none."""
    try:
        return (_control(log) / JOB_ID).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _control(log: Path) -> Path:
    """What :func:`i2srf_kd.jobs.slurm.control_folder` says for the log of a job or of one of an array's elements."""
    return log.with_name(_PART.sub(".log", log.name)).with_suffix(".slurm")


def lost_job(logs: Sequence[Path], jobs: Optional[Dict[str, List[Job]]]) -> str:
    """Id of a job that left the queue before it could write an exit code; empty where there is none.

    Cancelled by hand, with the stage that it waited for, or with its machine: nothing else would tell of it.
    """
    if jobs is None:
        return ""
    queued = {job.number for stage in jobs.values() for job in stage}
    for control in dict.fromkeys(map(_control, logs)):
        number = submitted_as(control)
        if not number or number in queued:
            continue
        since = (control / JOB_ID).stat().st_mtime
        indices = (_json("\n".join(_lines(control / "job.json"))).get("array") or {}).get("indices")
        elements = (
            [(1, control.with_suffix(".log"))]
            if indices is None
            else [(index, control.with_suffix(f".{index}.log")) for index in indices]
        )
        if any(not (control / f"{index}.code").exists() and not _ended_since(log, since) for index, log in elements):
            return number
    return ""


def _ended_since(log: Path, since: float) -> bool:
    """Whether the same work has ended later, by another backend."""
    return log.exists() and log.stat().st_mtime >= since and last_exit(log) is not None


def training_row(stage: str, model: Path, logs: Sequence[Path], jobs: Optional[Dict[str, List[Job]]]) -> Row:
    """The line of one training.

    Args:
        stage: its number.
        model: its folder.
        logs: that of the training, and that of the stage, where the stage is a job.
        jobs: Slurm's queue.
    """
    if (model / ".done_train").exists():
        return Row(stage, model.name, "finished", _date(model / ".done_train"))
    of_stage = (jobs or {}).get(f"stage{stage}", [])
    # Several trainings of a stage are jobs of their own, or parts of one job.
    numbers = {submitted_as(log): log for log in logs if submitted_as(log)}
    mine = [job for job in of_stage if job.number in numbers] if numbers else of_stage
    log = logs[0]
    if mine:
        state, details = describe_jobs(mine[:1])
    elif holder_of(model / ".lock"):
        state, details = "running", "on this machine"
    else:
        state, details = _ended_state(logs, jobs)
    progress = training_progress(model, log) if (model / "metrics.jsonl").exists() or state == "running" else ""
    return Row(stage, model.name, state, "; ".join(text for text in (progress, details) if text))


def _ended_state(logs: Sequence[Path], jobs: Optional[Dict[str, List[Job]]]) -> Tuple[str, str]:
    """What the logs say about work that is neither finished nor queued."""
    lost = lost_job(logs, jobs)
    if lost:
        return "cancelled", f"Slurm job {lost} has left the queue without an exit code; give the same command again"
    codes = [(log, last_exit(log)) for log in logs if log.exists()]
    for log, code in codes:
        if code == EXIT_INTERRUPTED:
            return "interrupted", f"saved its state, run the same command again; log: {log}"
        if code:
            return "failed", f"exit code {code}; log: {log}"
    running = [log for log, code in codes if code is None]
    if running:
        idle = time.time() - max(log.stat().st_mtime for log in running)
        return "unfinished", f"no end in {running[0]}, last written {clock(max(0.0, idle))} ago"
    return "not started", ""


def work_progress(logs: Sequence[Path]) -> str:
    """``120 of 500 utt, about 0:01:10 left`` from what the parts that were written to last say in their logs."""
    running = [log for log in logs if log.exists() and last_exit(log) is None]
    if not running:
        return ""
    newest = _control(max(running, key=lambda log: log.stat().st_mtime))
    done = total = moved = 0
    unit, start = "", time.time()
    for log in logs:
        text = _tail(log) if _control(log) == newest else ""
        steps = _WORK.findall(text)
        if not steps:
            continue
        count, of, unit = steps[-1]
        done, total = done + int(count), total + int(of)
        if log in running:
            moved += int(count)
            begun = _STARTED.search(text)
            start = min(start, datetime.fromisoformat(begun[1]).timestamp() if begun else start)
    if not total:
        return ""
    left = f", about {clock((total - done) * (time.time() - start) / moved)} left" if moved else ""
    return f"{done} of {total} {unit}{left}"


def work_row(
    stage: str, what: str, done: Sequence[Path], logs: Sequence[Path], jobs: Optional[Dict[str, List[Job]]]
) -> Row:
    """The line of a stage that is finished when all of ``done`` are there."""
    present = [path for path in done if path.exists()]
    if len(present) == len(done):
        return Row(stage, what, "finished", _date(max(present, key=lambda path: path.stat().st_mtime)))
    count = f"{len(present)} of {len(done)} finished" if len(done) > 1 and present else ""
    queued = (jobs or {}).get(f"stage{stage}")
    state, details = describe_jobs(queued) if queued else _ended_state(logs, jobs)
    if state == "not started" and present:
        state = "unfinished"
    progress = work_progress(logs) if state in ("running", "unfinished") else ""
    return Row(stage, what, state, "; ".join(text for text in (count, progress, details) if text))


def _date(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))


def _logs(folder: Path, pattern: str) -> Set[Path]:
    """Logs that are there, and those of jobs that were submitted and have not begun."""
    submitted = folder.glob(pattern.replace(".log", ".slurm"))
    return {*folder.glob(pattern), *(control.with_suffix(".log") for control in submitted)}


@dataclass(frozen=True)
class Places:
    """Where the pipeline of a recipe leaves what it makes.

    Args:
        recipe: its name, as in the names of its jobs.
        stages: names of the stages, the first that of stage 1.
        sets: names of the data sets.
        baseline: folder of the undistilled student, where there is one.
    """

    recipe: str
    stages: Sequence[str]
    datadir: Path
    rawdir: Path
    expdir: Path
    logdir: Path
    teacher: Path
    student: Path
    sets: Sequence[str]
    baseline: Optional[Path] = None

    def logs(self, stage: int) -> List[Path]:
        """That of the stage, where the stage is a job, and those of its parts."""
        parts = {path for pattern in _PARTS.get(stage, ()) for path in _logs(self.logdir, pattern)}
        return [self.logdir / f"stage_{stage}_{self.stages[stage - 1]}.log", *sorted(parts)]


def rows(places: Places) -> List[Row]:
    """All lines, in the order of the stages."""
    jobs = queue(places.recipe, Path.cwd())

    def work(stage: int, *done: Path) -> Row:
        return work_row(str(stage), places.stages[stage - 1], done, places.logs(stage), jobs)

    def training(stage: int, model: Path) -> Row:
        return training_row(str(stage), model, [places.logdir / f"train_{model.name}.log", *places.logs(stage)], jobs)

    return [
        work(1, places.datadir / ".done_data"),
        work(2, *(places.rawdir / f".done_{name}" for name in places.sets)),
        work(3, places.expdir / "stats/.done"),
        training(4, places.teacher),
        *(training(5, model) for model in (places.baseline, places.student) if model is not None),
        work(6, places.expdir / ".done_results"),
        work(7, places.student / ".done_export"),
    ]


def table(lines: Sequence[Row]) -> str:
    """The lines as text in columns."""
    widths = [max(len(getattr(row, name)) for row in lines) for name in ("stage", "what", "state")]
    texts = []
    for row in lines:
        cells = zip((row.stage, row.what, row.state), widths, strict=True)
        texts.append(f"{'  '.join(f'{cell:<{width}}' for cell, width in cells)}  {row.details}".rstrip())
    return "\n".join(texts)
