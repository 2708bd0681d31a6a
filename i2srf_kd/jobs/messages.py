"""What a run tells on the terminal, whatever the backend."""

import os
import sys
import time
from pathlib import Path
from typing import List, Optional

from i2srf_kd.jobs.array import JobArray, JobResult
from i2srf_kd.system.progress import clock
from i2srf_kd.system.signals import EXIT_INTERRUPTED

_HEARTBEAT_SECONDS = 60.0
_LAST_LINES = 20
_HEADER = ("# Command: ", "# Host: ", "# Started: ")
_ENDED = "# Ended: "
HEADER_LINES = len(_HEADER)


def say(text: str) -> None:
    """One line to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def header(command: str, host: str, now: str) -> str:
    """First lines of a log."""
    return "".join(f"{name}{value}\n" for name, value in zip(_HEADER, (command, host, now), strict=True))


def footer(now: str, code: int, seconds: float) -> str:
    """Last line of a log."""
    return f"{_ENDED}{now}, exit code {code}, {seconds:.1f} seconds\n"


def last_lines(log: Path) -> List[str]:
    """End of the command's own output in a log; nothing when there is no log."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 65536))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if not line.startswith((*_HEADER, _ENDED))][-_LAST_LINES:]


class Report:
    """Collects the results of an array and says how it goes."""

    def __init__(self, array: JobArray) -> None:
        self.array = array
        self.total = len(array.elements())
        self.results: List[JobResult] = []
        self.failures = 0
        self.start = self._last_line = time.monotonic()

    def ended(self, result: JobResult, output: List[str], why: str = "") -> None:
        """Take in a result and tell it.

        Args:
            result: of one element that ran.
            output: last lines of a failed one, to be shown.
            why: what the backend knows about the end, such as "ran out of memory".
        """
        self.results.append(result)
        title = self.array.title_of(result.index)
        if result.code == EXIT_INTERRUPTED:
            say(f"{title}: saved its state and is to be run again (exit code {EXIT_INTERRUPTED}); log: {result.log}")
        elif result.code:
            self.failures += 1
            reason = f" ({why})" if why else ""
            say(f"error: {title} failed with exit code {result.code}{reason}; log: {result.log}")
            if not self.array.follow:
                for line in output:
                    say(f"  | {line}")
        self.progress_line()

    def not_started(self, index: Optional[int], code: Optional[int]) -> None:
        """Take in an element that never ran: it counts as ended by what stopped it."""
        self.results.append(JobResult(index, code, 0.0, self.array.log_of(index)))

    def progress_line(self, more: str = "") -> None:
        """How many are done, and how long the rest may take."""
        self._last_line = now = time.monotonic()
        done = len(self.results)
        failed = f", {self.failures} failed" if self.failures else ""
        left = f", {clock((now - self.start) / done * (self.total - done))} left" if 0 < done < self.total else ""
        say(f"{self.array.name}: {done} of {self.total} done{failed}{more}, {clock(now - self.start)} elapsed{left}")

    def heartbeat(self, more: str = "") -> None:
        """A sign of life after a while without news."""
        if not self.array.follow and time.monotonic() - self._last_line >= _HEARTBEAT_SECONDS:
            self.progress_line(more)
