"""Writing files so that a reader never sees half of one."""

import os
import re
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Union

from i2srf_kd.system.errors import FULL, cannot_write, writing

PathLike = Union[str, "os.PathLike[str]"]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.[^.]+)?")


@contextmanager
def atomic_path(path: PathLike, durable: bool = False) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success it replaces ``path``, on an error it is removed.

    The temporary name keeps the suffix, because writers such as soundfile choose the format by it.

    Args:
        path: the file to be written; its folder is made if absent.
        durable: flush to disk before the rename, for files that must survive a power cut (checkpoints).

    Raises:
        DiskFull: there is no space left, or a quota is used up.
        NotWritten: the folder or the file cannot be made.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if durable:
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL and str(error.filename) != str(temporary):
            raise
        needed = temporary.stat().st_size if temporary.exists() else 0
        raise cannot_write(path, error, needed) from None
    finally:
        with suppress(OSError):  # of a name that is too long, for one
            temporary.unlink()


def temporary_name(path: PathLike) -> Path:
    """A name beside ``path`` that nobody uses, with its suffix."""
    path = Path(path)
    # Cut, so that it is no longer than a name may be; that of the file itself may be that long.
    return path.with_name(f".{path.stem[:50]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")


def is_temporary(path: PathLike) -> bool:
    """Whether a file has a name as :func:`temporary_name` makes them."""
    return _TEMPORARY.fullmatch(Path(path).name) is not None


def remove_temporaries(folder: PathLike) -> None:
    """Remove what writers that were killed left in a folder (not below it).

    To be called only by a process that knows that nobody writes there.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if is_temporary(entry.path):
            Path(entry.path).unlink(missing_ok=True)


def write_text(path: PathLike, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
