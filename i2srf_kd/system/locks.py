"""Locks between processes, also on several machines that share a file system."""

import fcntl
import logging
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from i2srf_kd.system.errors import UserError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0


@contextmanager
def held(path: Path, what: str, wait: float = WAIT_SECONDS) -> Iterator[int]:
    """Hold a lock; its descriptor may be inherited by programs, which then hold it as well until they end.

    Args:
        path: file of the lock; it names its holder.
        what: said to be in use, when it is.
        wait: seconds to wait for another holder.

    Raises:
        UserError: it is still held after that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:

        def holder() -> str:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return ""
            except BlockingIOError:
                return path.read_text(encoding="utf-8").strip() or "another process"
            except OSError as error:  # a file system without locks
                logger.warning(
                    "%s cannot be locked (%s): make sure that nobody else uses %s", path, error.strerror, what
                )
                return ""

        wait_for(holder, what, wait)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield file.fileno()


def wait_for(holder: Callable[[], str], what: str, wait: float = WAIT_SECONDS) -> None:
    """Wait until ``holder`` says that nobody holds it."""
    end = time.monotonic() + wait
    said = False
    while True:
        name = holder()
        if not name:
            return
        if time.monotonic() >= end:
            raise UserError(f"{what} is in use by {name}: wait for it or end it, then run the same command again")
        if not said:
            print(f"{what} is in use by {name}; waiting up to {wait:.0f} s", file=sys.stderr, flush=True)
            said = True
        time.sleep(0.2)
