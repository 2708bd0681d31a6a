"""Finding the processes of a run: all of them, wherever they moved, carry a mark in their environment."""

import os
import signal
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

MARK = "I2SRF_FAULT_RUN"


class Process(NamedTuple):
    """A running process; ``command`` is its command line, words separated by blanks."""

    pid: int
    parent: int
    command: str
    environment: Dict[str, str]

    @property
    def is_trainer(self) -> bool:
        """Whether this is a rank of a training, and not one of its helpers."""
        return "i2srf_kd.bin.train" in self.command and not self.is_wrapper

    @property
    def is_wrapper(self) -> bool:
        """Whether this program starts the one that its command line names."""
        first = self.command.split(" ", 1)[0].rpartition("/")[2]
        return first in ("bash", "env", "srun", "setpriv") or "bin.run_jobs" in self.command


def marked(mark: str) -> List[Process]:
    """Processes of the run, oldest first; those that have ended and are not waited for do not count."""
    found = []
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            text = (folder / "environ").read_bytes()
            if f"{MARK}={mark}".encode() not in text.split(b"\0"):
                continue
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if state != "Z" and command:
            words = (word.decode(errors="replace").partition("=") for word in text.split(b"\0"))
            found.append(Process(int(folder.name), int(parent), command, {name: value for name, _, value in words}))
    return found


def kill(processes: List[Process], number: int = signal.SIGKILL) -> int:
    """Signal processes; how many were still there."""
    reached = 0
    for process in processes:
        try:
            os.kill(process.pid, number)
            reached += 1
        except ProcessLookupError:
            continue
    return reached


def wait_for(condition: Callable[[], object], seconds: float, step: float = 0.05) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True


def outlived(mark: str, seconds: float) -> List[Process]:
    """Processes that are still there after so many seconds."""
    wait_for(lambda: not marked(mark), seconds, 0.1)
    return marked(mark)


def trainers(mark: str) -> List[Process]:
    """The ranks of a training, without the processes that read its data."""
    found = [process for process in marked(mark) if process.is_trainer]
    ranks = {process.pid for process in found}
    return [process for process in found if process.parent not in ranks]


def first(processes: List[Process], *words: str) -> Optional[Process]:
    """The oldest process that does work of its own and has all words in its command line."""
    return next((p for p in processes if not p.is_wrapper and all(word in p.command for word in words)), None)
