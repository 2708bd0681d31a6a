"""A job's copies of its files on its machine's own disk (scratch): made, compared, and removed at the end.

Programs find the copies through an environment variable (:func:`local_copy`), so that no table, option or record of a
training knows of them. Standard library only.
"""

import hashlib
import os
import shutil
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import Callable, Iterator, List, Sequence

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.fingerprints import sha256_of
from i2srf_kd.system.processes import FORWARDED, call
from i2srf_kd.system.progress import progress
from i2srf_kd.system.signals import EXIT_INTERRUPTED, handled

#: Names the folder of the copies that a program is to read.
VARIABLE = "I2SRF_SCRATCH_COPY"
_BLOCK = 1 << 20
_THREADS = 8  # hide the waiting for a file system across the network


def local_copy(path: str) -> str:
    """The copy of a file on this machine where the running job has one, else ``path``."""
    root = os.environ.get(VARIABLE)
    if not root:
        return path
    copy = root + os.path.abspath(path)
    return copy if os.path.exists(copy) else path


def run_with_copy(command: Sequence[str], folder: str, files: Sequence[str]) -> int:
    """Run a program that reads copies of files, see :func:`scratch_copy`.

    Returns:
        Its exit code; after a signal that came before its start that of a program which can be run again.
    """
    received: List[int] = []
    with handled(FORWARDED, lambda number, frame: received.append(number)):
        with scratch_copy(folder, files, received) as root:
            if received:
                return _code_after(received[0])
            return call(command, environment={VARIABLE: str(root)}, received=received)


def _code_after(number: int) -> int:
    return 128 + number if number in (signal.SIGINT, signal.SIGHUP) else EXIT_INTERRUPTED


@contextmanager
def scratch_copy(folder: str, files: Sequence[str], stop: Sequence[int] = ()) -> Iterator[Path]:
    """Copy files to a new folder of this machine, for as long as the context lasts, and give that folder.

    Every copy is read again and compared with its source by size and SHA-256.

    Args:
        folder: in which the new one is made; variables such as ``$TMPDIR`` are those of this machine.
        files: to be copied; each lies below the new folder by its absolute path.
        stop: once something is in it, copying ends before its time.

    Raises:
        UserError: a variable is not set, there is too little room, or a file cannot be copied.
    """
    base = resolve_folder(folder)
    paths = sorted({os.path.abspath(path) for path in files})
    _check_room(base, paths, folder)
    place = Path(tempfile.mkdtemp(prefix="i2srf-", dir=base))
    try:
        _copy_all(paths, str(place), stop)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def resolve_folder(folder: str) -> Path:
    """The folder that a text such as ``$TMPDIR/x`` means on this machine, made if absent.

    Raises:
        UserError: a variable is not set, or the folder cannot be made or written to.
    """
    path = os.path.expanduser(os.path.expandvars(folder))
    if "$" in path or not path:
        raise UserError(f"--scratch {folder}: a variable is not set on {gethostname()}; name a folder there")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"--scratch {folder}: cannot make {path} on {gethostname()} ({error.strerror})") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--scratch {folder}: {path} on {gethostname()} cannot be written to")
    return Path(os.path.abspath(path))


def _check_room(base: Path, paths: Sequence[str], folder: str) -> None:
    def size_of(path: str) -> int:
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None

    with ThreadPoolExecutor(_THREADS) as pool:
        total = sum(pool.map(size_of, paths))
    free = shutil.disk_usage(base).free
    if total > free:
        raise UserError(
            f"--scratch {folder}: {len(paths)} files of {total / 1e9:.2f} GB do not fit on {gethostname()}, where "
            f"{base} has {free / 1e9:.2f} GB free: name another folder, or leave --scratch out"
        )


def _copy_all(paths: Sequence[str], root: str, stop: Sequence[int]) -> None:
    for parent in sorted({os.path.dirname(path) for path in paths}):
        os.makedirs(root + parent, exist_ok=True)
    failed = threading.Event()
    title = f"copy to {gethostname()}:{root}"

    def is_over() -> bool:
        return bool(stop) or failed.is_set()

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            copies = pool.map(lambda path: _copy(path, root + path, is_over), paths)
            for _ in progress(copies, total=len(paths), desc=title, unit="file"):
                pass
        except OSError as error:
            raise UserError(f"{title}: {error.filename or ''}: {error.strerror or error}") from None
        finally:
            failed.set()
            pool.shutdown(cancel_futures=True)


def _copy(source: str, target: str, is_over: Callable[[], bool]) -> None:
    """Copy a file and compare, unless it ``is_over``, which is asked before every block."""
    digest = hashlib.sha256()
    if is_over():
        return
    with open(source, "rb", buffering=0) as stream, open(target, "wb", buffering=0) as output:
        while (block := stream.read(_BLOCK)) and not is_over():
            output.write(block)
            digest.update(block)
    if not is_over() and sha256_of(target) != digest.hexdigest():
        raise UserError(f"{source} and its copy {gethostname()}:{target} differ: the disk is damaged")
