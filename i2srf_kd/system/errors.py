"""Errors that a user can cause and mend."""

import errno
import gc
import io
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Tuple, Union

#: Numbers of the operating system's errors for want of space.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Of a place that cannot be written to: forbidden, of the wrong kind, with a name that the file system does not take, or
# on a disk or server that fails.
_NO_PLACE = tuple(
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ELOOP", "ENAMETOOLONG", "EINVAL"),
        *("EIO", "ESTALE", "ENODEV", "ENXIO", "EBUSY", "ETXTBSY", "ENOTEMPTY"),
    )
)
_EXIT_INTERRUPTED = 130  # as of a program that SIGINT ended


class UserError(ValueError):
    """Bad input. The message names the file, utterance or option and says what to do."""


class NotWritten(UserError):
    """A file could not be written. What was to be in it is not to blame."""


class DiskFull(NotWritten):
    """A file could not be written for want of space."""


def disk_full(path: Union[str, "os.PathLike[str]"], reason: Optional[str] = None, needed_bytes: int = 0) -> DiskFull:
    """The error of a file that could not be written for want of space: the folder, what is left, what to do.

    Args:
        path: the file, or a folder of several.
        reason: what the operating system says.
        needed_bytes: size of the file, as far as it is known; by default that of the one that it was to replace.
    """
    path = Path(path).absolute()
    folder = next(folder for folder in (path, *path.parents) if folder.is_dir())
    left = f"{folder} has {shutil.disk_usage(folder).free / 1e6:.2f} MB left"
    if path.is_file():
        needed_bytes = max(needed_bytes, path.stat().st_size)
    needed = f", {needed_bytes / 1e6:.2f} MB are needed" if needed_bytes else ""
    reason = reason or os.strerror(errno.ENOSPC)
    return DiskFull(f"cannot write {path}: {reason} ({left}{needed}); free space and run the same command again")


def run_command(main: Callable[[Optional[Sequence[str]]], Optional[int]]) -> None:
    """Run a command's ``main``.

    An error of the user, a full disk or a file that cannot be used becomes one line and exit code 2, Ctrl-C one line
    and 130.
    """
    code, message = _outcome(main)
    if message:
        # The error is gone by now, and the files that it kept open: one of them, removed but open, may fill the disk
        # that this message goes to.
        gc.collect()
        _leave(message, code)
    sys.exit(code)


def _outcome(main: Callable[[Optional[Sequence[str]]], Optional[int]]) -> Tuple[int, str]:
    """Exit code of a command, and what it is to say at its end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it, for names that are not UTF-8
    try:
        code = main(None) or 0
        sys.stdout.flush()
        return code, ""
    except UserError as error:
        return 2, f"error: {error}"
    except BrokenPipeError:
        return 141, ""
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED, "interrupted"
    except OSError as error:
        if error.errno in FULL:
            return 2, f"error: {disk_full(error.filename or _output_file() or 'a file', error.strerror)}"
        if error.filename is None:
            raise
        return 2, f"error: {error.filename}: {error.strerror}; mend that and run the same command again"


@contextmanager
def writing(path: Union[str, "os.PathLike[str]"], needed_bytes: int = 0) -> Iterator[None]:
    """Name the file or folder whose writing fails, and why.

    Args:
        path: what is written.
        needed_bytes: its size, as far as it is known.

    Raises:
        DiskFull: no space is left, or a quota is used up.
        NotWritten: it cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *_NO_PLACE):
            raise
        raise cannot_write(path, error, needed_bytes) from None


def cannot_write(path: Union[str, "os.PathLike[str]"], error: OSError, needed_bytes: int = 0) -> UserError:
    """The error of a file that could not be written.

    It is :class:`NotWritten`, for want of space :class:`DiskFull` (see :func:`disk_full`), and neither of them where
    the file system does not take the name of this file alone.
    """
    if error.errno in FULL:
        return disk_full(path, error.strerror, needed_bytes)
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
        return UserError(f"cannot write {path}: {error.strerror}; give it a shorter or plainer name")
    return NotWritten(f"cannot write {path}: {error.strerror or error}; mend that and run the same command again")


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
