"""Show how far the stages of a recipe are: ./run.sh --status

One line per stage and training, from what the stages leave behind (done files, metrics, logs) and from Slurm's queue
where there is one. Nothing is run and nothing is changed.
"""

import argparse
import fcntl
import getpass
import json
import os
import re
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from i2srf_kd.errors import run_command
from i2srf_kd.jobs.report import clock

_STEP = re.compile(r"epoch (\d+) (train|valid): (\d+)/(\d+) batch")
_ENDED = re.compile(r"^# Ended: (\S+), exit code (\d+)", re.MULTILINE)
_RECENT_EPOCHS = 3
_TAIL_BYTES = 65536
_EXIT_RUN_AGAIN = 75
# Logs of what a stage is made of.
_PARTS = {2: ["format_*.log"], 3: ["statistics.log"], 6: ["enhance_*.log", "score_*.log"], 7: ["export.log"]}
_FLOCK = "@hhqqi0q"  # struct flock of Linux: type, whence, start, length, process


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

    def describe(self) -> Tuple[str, str]:
        """State and details for a row."""
        if self.state == "RUNNING":
            return "running", f"Slurm job {self.job} on {self.nodes} for {self.elapsed}"
        return self.state.lower(), f"Slurm job {self.job} ({self.reason})"


def queue(recipe: str, folder: Path) -> Dict[str, List[Job]]:
    """This recipe's jobs in Slurm's queue by stage (``stage4``); empty where Slurm is absent or does not answer."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i|%j|%T|%r|%M|%N|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:
        return {}
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


def is_locked(model: Path) -> bool:
    """Whether a training on this machine holds the folder."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (model / ".lock").open("r+") as file:  # asks, and never takes the lock: a training may start just now
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except OSError:
        return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


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


def _json(line: str) -> Dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:  # a line that is being written
        return {}


def _max_epoch(model: Path) -> Optional[int]:
    for name in ("options.yaml", "config.yaml"):
        try:
            return int(yaml.safe_load((model / name).read_text(encoding="utf-8"))["max_epoch"])
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
            continue
    return None


def training_row(stage: str, model: Path, log: Path, jobs: List[Job]) -> Row:
    """The line of one training."""
    if (model / ".done_train").exists():
        return Row(stage, model.name, "finished", _date(model / ".done_train"))
    if jobs:
        state, details = jobs[0].describe()
    elif is_locked(model):
        state, details = "running", "on this machine"
    else:
        state, details = _ended_state(log)
    progress = training_progress(model, log) if (model / "metrics.jsonl").exists() or state == "running" else ""
    return Row(stage, model.name, state, "; ".join(text for text in (progress, details) if text))


def _ended_state(*logs: Path) -> Tuple[str, str]:
    """What the logs say about work that is neither finished nor queued."""
    codes = [(log, last_exit(log)) for log in logs if log.exists()]
    for log, code in codes:
        if code == _EXIT_RUN_AGAIN:
            return "interrupted", f"saved its state, run the same command again; log: {log}"
        if code:
            return "failed", f"exit code {code}; log: {log}"
    running = [log for log, code in codes if code is None]
    if running:
        idle = time.time() - max(log.stat().st_mtime for log in running)
        return "unfinished", f"no end in {running[0]}, last written {clock(max(0.0, idle))} ago"
    return "not started", ""


def work_row(stage: str, what: str, done: Sequence[Path], logs: Sequence[Path], jobs: List[Job]) -> Row:
    """The line of a stage that is finished when all of ``done`` are there."""
    present = [path for path in done if path.exists()]
    if len(present) == len(done):
        return Row(stage, what, "finished", _date(max(present, key=lambda path: path.stat().st_mtime)))
    count = f"{len(present)} of {len(done)} finished" if len(done) > 1 and present else ""
    state, details = jobs[0].describe() if jobs else _ended_state(*logs)
    if state == "not started" and present:
        state = "unfinished"
    return Row(stage, what, state, "; ".join(text for text in (count, details) if text))


def _date(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))


def rows(args: argparse.Namespace) -> List[Row]:
    """All lines, in the order of the stages."""
    jobs = queue(args.recipe, Path.cwd())

    def of(number: int) -> List[Job]:
        return jobs.get(f"stage{number}", [])

    logs: Path = args.logdir
    parts = {number: sorted(path for name in names for path in logs.glob(name)) for number, names in _PARTS.items()}
    models = [("4", args.teacher), *([("5", args.baseline)] if args.baseline else []), ("5", args.student)]
    sets = [args.rawdir / f".done_{name}" for name in args.sets]
    exported = args.student / ".done_export"
    return [
        work_row("1", "data", [args.datadir / ".done_data"], [logs / "stage_1_data.log"], of(1)),
        work_row("2", "format", sets, [logs / "stage_2_format.log", *parts[2]], of(2)),
        work_row("3", "statistics", [args.expdir / "stats/.done"], [logs / "stage_3_statistics.log", *parts[3]], of(3)),
        *(training_row(stage, model, logs / f"train_{model.name}.log", of(int(stage))) for stage, model in models),
        work_row("6", "results", [args.expdir / ".done_results"], [logs / "stage_6_results.log", *parts[6]], of(6)),
        work_row("7", "export", [exported], [logs / "stage_7_export.log", *parts[7]], of(7)),
    ]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="name of the recipe, as in the names of its jobs")
    for name in ("datadir", "rawdir", "expdir", "logdir", "teacher", "student"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="folder of the undistilled student")
    parser.add_argument("--sets", nargs="+", required=True, help="names of the data sets")
    lines = rows(parser.parse_args(argv))
    widths = [max(len(getattr(row, name)) for row in lines) for name in ("stage", "what", "state")]
    for row in lines:
        cells = (row.stage, row.what, row.state)
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        print(f"{text}  {row.details}".rstrip())
    return 0


if __name__ == "__main__":
    run_command(main)
