"""What is to be run (:class:`JobArray`) and what became of it (:class:`JobResult`)."""

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional, Sequence

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.signals import EXIT_INTERRUPTED

# Stands alone, and in no name of a folder: JOBS, JOB_2024 and data/JOB/x stay what they are, JOB/4 is a share.
_JOB = re.compile(r"(?<![A-Za-z0-9])JOB(?![\w-])(?:(?<=^JOB)|(?<=[\s=]JOB)|(?![^/\s]*/))")


@dataclass(frozen=True)
class Resources:
    """What one element of an array needs.

    Args:
        num_threads: CPU threads of one process.
        gpu: number of GPUs on each machine.
        mem: memory of each machine such as ``4G``; only for backends that reserve it.
        time: longest run such as ``1:00:00``; only for backends that reserve it.
        nodes: number of machines.
        tasks: processes on each machine. With more than one process in all, each is a rank of one job.
        start_once: reserve all that, but start the command once; it starts the processes of its steps itself.
    """

    num_threads: int = 1
    gpu: int = 0
    mem: Optional[str] = None
    time: Optional[str] = None
    nodes: int = 1
    tasks: int = 1
    start_once: bool = False

    def __post_init__(self) -> None:
        for option in ("num_threads", "nodes", "tasks"):
            if getattr(self, option) < 1:
                raise UserError(f"--{option} {getattr(self, option)}: must be at least 1")
        if self.gpu < 0:
            raise UserError(f"--gpu {self.gpu}: must not be negative")

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks


@dataclass(frozen=True)
class JobArray:
    """One command, or the same command for each index of a range.

    Args:
        command: program and arguments; ``JOB`` in them stands for the index.
        log: path of the log, with ``JOB`` in it when there is more than one element.
        indices: the indices to run; ``None`` for a single command in which ``JOB`` has no meaning.
        name: what the lines on the terminal call it.
        max_jobs: how many run at a time at most; ``None`` lets the backend choose.
        follow: copy the log of a single command to standard output while it grows.
        resources: needs of one element.
        after: id of a queued job that must succeed before this one starts; only for backends with a queue.
        detach: submit, print the id to standard output and do not wait; only for backends with a queue.
        kind: kind of work (``data``, ``train``, ``decode``, ``score``), by which a backend's configuration may differ.

    Raises:
        UserError: no command, an empty range, or elements that would share a log.
    """

    command: Sequence[str]
    log: str
    indices: Optional[Sequence[int]] = None
    name: str = "job"
    max_jobs: Optional[int] = None
    follow: bool = False
    resources: Resources = field(default_factory=Resources)
    kind: str = ""
    after: Optional[str] = None
    detach: bool = False

    def __post_init__(self) -> None:
        if not self.command:
            raise UserError(f"nothing to run: no command after the log path {self.log}")
        if self.max_jobs is not None and self.max_jobs < 1:
            raise UserError(f"--max_jobs {self.max_jobs}: must be at least 1")
        if self.indices is not None and not self.indices:
            raise UserError("the range of JOB is empty: give JOB=FIRST:LAST with FIRST <= LAST")
        if self.indices is not None and len(self.indices) > 1 and not _JOB.search(self.log):
            raise UserError(f"log path {self.log}: needs JOB in it, or all {len(self.indices)} jobs write to one file")
        if self.follow and len(self.elements()) > 1:
            raise UserError("--follow shows the log of one command; it cannot be used with a range of JOB")

    def elements(self) -> List[Optional[int]]:
        """Indices to run; ``[None]`` for a single command."""
        return [None] if self.indices is None else list(self.indices)

    def command_of(self, index: Optional[int]) -> List[str]:
        """The command of one element."""
        return [self._fill(word, index) for word in self.command]

    def log_of(self, index: Optional[int]) -> Path:
        """The log of one element."""
        return Path(self._fill(self.log, index))

    def title_of(self, index: Optional[int]) -> str:
        """What the element is called on the terminal."""
        return self.name if index is None else f"{self.name} JOB={index}"

    @staticmethod
    def _fill(text: str, index: Optional[int]) -> str:
        return text if index is None else _JOB.sub(str(index), text)


@dataclass(frozen=True)
class JobResult:
    """How one element ended.

    Args:
        index: its index, ``None`` for a single command.
        code: exit code; 128 + signal number when a signal ended it or kept it from starting, ``None`` when it was not
            started because another failed.
        seconds: how long it ran.
        log: its log.
    """

    index: Optional[int]
    code: Optional[int]
    seconds: float
    log: Path


def parse_range(text: str) -> List[int]:
    """Read ``JOB=1:4`` or ``JOB=3``.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"JOB=(\d+)(?::(\d+))?", text)
    if not match:
        raise UserError(f"{text}: a range is written JOB=FIRST:LAST, for example JOB=1:4")
    first = int(match.group(1))
    last = int(match.group(2) or first)
    if last < first:
        raise UserError(f"{text}: the last index is below the first")
    return list(range(first, last + 1))


def without_job(array: JobArray) -> Path:
    """One path for all elements: that of the log without ``JOB``."""
    return Path(array.log if array.indices is None else re.sub(r"[._-]?" + _JOB.pattern, "", array.log))


def quote(command: Sequence[str]) -> str:
    """The command as a shell would take it."""
    return " ".join(shlex.quote(word) for word in command)


def job_name(name: str) -> str:
    """Name in a queue, ``i2srf.<recipe>.<stage>.<name>``: the recipe is the current folder, the stage what the pipeline
    says (``I2SRF_STAGE``)."""
    words = ["i2srf", Path.cwd().name, os.environ.get("I2SRF_STAGE", ""), name]
    return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", word) for word in words if word)


def final_code(results: Sequence[JobResult]) -> int:
    """Exit code of the whole array: the first real failure, else 75 when one is to be run again, else 0.

    Args:
        results: in the order in which the elements ended.
    """
    codes = [result.code for result in results if result.code]
    return next((code for code in codes if code != EXIT_INTERRUPTED), EXIT_INTERRUPTED if codes else 0)
