"""Errors that a user can cause and mend."""

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Callable, Optional, Sequence, Union

#: Numbers of the operating system's errors for want of space.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_EXIT_INTERRUPTED = 130  # as of a program that SIGINT ended


class UserError(ValueError):
    """Bad input. The message names the file, utterance or option and says what to do."""


class DiskFull(UserError):
    """A file could not be written for want of space."""


def disk_full(path: Union[str, "os.PathLike[str]"], reason: Optional[str] = None, needed_bytes: int = 0) -> DiskFull:
    """The error of a file that could not be written for want of space: the folder, what is left, what to do.

    Args:
        path: the file.
        reason: what the operating system says.
        needed_bytes: size of the file, as far as it is known; by default that of the one that it was to replace.
    """
    path = Path(path).absolute()
    folder = next(folder for folder in path.parents if folder.is_dir())
    left = f"{folder} has {shutil.disk_usage(folder).free / 1e6:.2f} MB left"
    if path.is_file():
        needed_bytes = max(needed_bytes, path.stat().st_size)
    needed = f", {needed_bytes / 1e6:.2f} MB are needed" if needed_bytes else ""
    reason = reason or os.strerror(errno.ENOSPC)
    return DiskFull(f"cannot write {path}: {reason} ({left}{needed}); free space and run the same command again")


def run_command(main: Callable[[Optional[Sequence[str]]], Optional[int]]) -> None:
    """Run a command's ``main``.

    An error of the user or a full disk becomes one line and exit code 2, Ctrl-C one line and 130.
    """
    try:
        code = main(None) or 0
        sys.stdout.flush()
        sys.exit(code)
    except UserError as error:
        _leave(f"error: {error}", 2)
    except BrokenPipeError:
        sys.exit(141)
    except KeyboardInterrupt:
        _leave("interrupted", _EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _leave(f"error: {disk_full(error.filename or _output_file() or 'a file', error.strerror)}", 2)


def _output_file() -> Optional[str]:
    """The file that standard output goes to, such as a log; None elsewhere."""
    try:
        path = os.readlink("/proc/self/fd/1")
    except OSError:
        return None
    return path if os.path.isfile(path) else None


def _leave(message: str, code: int) -> None:
    """End with a message, also where that cannot be written, such as to a log on a full disk."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr:
                print(message, file=stream)
            stream.flush()
        except OSError:
            # What is still buffered would be written, and fail with a traceback, when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
