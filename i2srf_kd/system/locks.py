"""Locks between processes, also on several machines that share a file system.

There are two kinds. A lock of :func:`held` is kept by everything that its holder starts as well, so that the next one
waits for what a killed holder left behind. One of :func:`hold_alone` ends with its process, whatever its workers do.
"""

import contextlib
import fcntl
import logging
import math
import os
import struct
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

from i2srf_kd.system.errors import UserError, cannot_write

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0
_FLOCK = "@hhqqi0q"  # struct flock of Linux: type, whence, start, length, process


@contextmanager
def held(path: Path, what: str, wait: float = WAIT_SECONDS) -> Iterator[int]:
    """Hold a lock; its descriptor may be inherited by programs, which then hold it as well until they end.

    Args:
        path: file of the lock, which names its holder and is removed at the end.
        what: said to be in use, when it is.
        wait: seconds to wait for another holder.

    Raises:
        UserError: it is still held after that time, or the file cannot be made.
    """
    descriptor = take(path, what, wait)
    try:
        _sign(descriptor)
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            if _is_file_of(descriptor, path):
                path.unlink()
        os.close(descriptor)


def take(path: Path, what: str, wait: float = WAIT_SECONDS) -> int:
    """Take a lock as :func:`held` does, but for as long as this process and those that inherit it live.

    Returns:
        The descriptor that holds it.

    Raises:
        UserError: it is still held after ``wait`` seconds, or the file cannot be made.
    """
    taken = -1

    def holder() -> str:
        nonlocal taken
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return _read(path)
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): make sure that nobody else uses %s", path, error.strerror, what)
        else:
            if not _is_file_of(descriptor, path):  # its last holder has just removed it: it would keep nobody out
                os.close(descriptor)
                return holder()
        taken = descriptor
        return ""

    wait_for(holder, what, wait)
    return taken


def hold_alone(path: Path) -> str:
    """Take a lock for this process until it ends, and not for its children.

    Returns:
        Who holds it; empty when it was taken, or where the file system has no locks (which is said).

    Raises:
        UserError: the file cannot be made.
    """
    descriptor = _open(path)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return _read(path)
    except OSError as error:
        logger.warning("%s cannot be locked (%s): make sure that nobody else works there", path, error.strerror)
        return ""
    _sign(descriptor)  # never closed: the lock would be lost
    return ""


def holder_of(path: Path) -> str:
    """Which process of this machine holds a lock of :func:`hold_alone`; empty when none does. Takes nothing."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with path.open("r+") as file:
            answer = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:
        return ""
    return "" if answer[0] == fcntl.F_UNLCK else _read(path)


def wait_for(holder: Callable[[], str], what: str, wait: float = WAIT_SECONDS) -> None:
    """Wait until ``holder`` says that nobody holds it.

    Raises:
        UserError: somebody still does after ``wait`` seconds.
    """
    end = time.monotonic() + wait
    said = False
    while name := holder():
        if time.monotonic() >= end:
            raise UserError(f"{what} is in use by {name}: wait for it or end it, then run the same command again")
        if not said:
            limit = "" if math.isinf(wait) else f" for up to {wait:.0f} s"
            print(f"in use, waiting for {name} or what it started{limit}: {what}", file=sys.stderr, flush=True)
            said = True
        time.sleep(0.2)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from None


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    text = f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"
