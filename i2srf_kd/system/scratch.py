"""Copies of a job's files on its machine's own disk (scratch), made once for all jobs there and removed by the last.

    <folder>/i2srf-<user>-<key>/use.lock        held (shared) by everyone who reads the copy
                               /manifest.json   what was copied; written last, so that half a copy is none
                               /files/<path>    the copies, by the absolute paths of their sources
    <folder>/.i2srf-<user>.lock                 held while copies are made, taken up, given up or removed

A job that was killed leaves a copy that nobody holds: the next one takes it up after checking it, or removes it.
Programs find the copies through an environment variable (:func:`local_copy`), so that no table, option or record of a
training knows of them. Standard library only.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text
from i2srf_kd.system.progress import progress

#: Names the ``files`` folder of the copy that a program is to read.
VARIABLE = "I2SRF_SCRATCH_COPY"
_MANIFEST, _USE, _FILES = "manifest.json", "use.lock", "files"
_BLOCK = 1 << 20
_THREADS = 8  # hide the waiting for a file system across the network


def local_copy(path: str) -> str:
    """The copy of a file on this machine where the running job has one, else ``path``."""
    root = os.environ.get(VARIABLE)
    if not root:
        return path
    copy = root + os.path.abspath(path)
    return copy if os.path.exists(copy) else path


class ScratchCopy(NamedTuple):
    """A complete copy that this process holds."""

    root: Path  # for VARIABLE
    lock: int  # descriptor; a program that inherits it holds the copy as well


@contextmanager
def scratch_copy(folder: str, files: Sequence[str], version: str = "") -> Iterator[ScratchCopy]:
    """Copy files to a folder of this machine for as long as the context lasts.

    Processes that ask for the same files share one copy; the last one removes it. Every copy is read again and compared
    by size and SHA-256 before it is used.

    Args:
        folder: where; variables such as ``$TMPDIR`` are those of this machine. It is made if absent.
        files: to be copied.
        version: part of the identity; another text means another copy.

    Raises:
        UserError: a variable is not set, there is too little room, or a file cannot be copied.
    """
    base = resolve_folder(folder)
    paths = sorted({os.path.abspath(path) for path in files})
    key = hashlib.sha256("\0".join([version, *paths]).encode()).hexdigest()[:16]
    place = base / f"{_prefix()}{key}"
    lock: Optional[IO[Any]] = None
    try:
        with _changing(base):
            _remove_unused(base, place)
            lock = _take_up(place, paths, folder)
        yield ScratchCopy(place / _FILES, lock.fileno())
    finally:
        if lock is not None:
            with _changing(base), lock:
                if _try_lock(lock, fcntl.LOCK_EX):  # from shared to exclusive: only the last one succeeds
                    _remove(place)


def resolve_folder(folder: str) -> Path:
    """The folder that a text such as ``$TMPDIR/x`` means on this machine, made if absent.

    Raises:
        UserError: a variable is not set, or the folder cannot be made or written to.
    """
    path = os.path.expanduser(os.path.expandvars(folder))
    if "$" in path or not path:
        raise UserError(f"--scratch {folder}: a variable is not set on {_host()}; name a folder there")
    try:
        os.makedirs(path, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(f"--scratch {folder}: cannot make {path} on {_host()} ({error.strerror})") from None
    if not writable:
        raise UserError(f"--scratch {folder}: {path} on {_host()} cannot be written to")
    return Path(os.path.abspath(path))


def _host() -> str:
    return socket.gethostname()


def _prefix() -> str:
    return f"i2srf-{os.getuid()}-"


# Locks ----------------------------------------------------------------------------------------------------------------


def _try_lock(file: IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.name}: no locks there ({error.strerror}): name a folder on {_host()}'s own disk"
        ) from None


@contextmanager
def _changing(base: Path) -> Iterator[None]:
    """Be the only one who changes copies in a folder; the lock's file goes when no copy is left."""
    path = base / f".{_prefix()[:-1]}.lock"
    while True:
        file = path.open("a")
        if not _try_lock(file, fcntl.LOCK_EX):
            print(f"waiting for another job that uses {base} on {_host()}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            current = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            current = False
        if current:
            break
        file.close()  # its holder has just removed it
    with file:
        try:
            yield
        finally:
            if not any(base.glob(f"{_prefix()}*")):
                path.unlink()


def _remove_unused(base: Path, but: Path) -> None:
    """Remove what killed jobs have left."""
    for place in base.glob(f"{_prefix()}*"):
        try:
            with (place / _USE).open("a") as lock:
                if place != but and _try_lock(lock, fcntl.LOCK_EX):
                    _remove(place)
        except OSError:  # not one of ours
            continue


def _remove(place: Path) -> None:
    (place / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


# Copying --------------------------------------------------------------------------------------------------------------


def _take_up(place: Path, paths: Sequence[str], folder: str) -> IO[Any]:
    """Hold the copy, which is made where there is none that can be used."""
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise UserError(f"--scratch {folder}: {place} on {_host()} belongs to another user; name another folder")
    lock = (place / _USE).open("a")
    try:
        if _try_lock(lock, fcntl.LOCK_EX) and not _is_intact(place, paths):
            (place / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(place / _FILES, ignore_errors=True)
            _make(place, paths, folder)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return lock
    except BaseException:
        if _try_lock(lock, fcntl.LOCK_EX):
            _remove(place)
        lock.close()
        raise


def _state(path: str) -> Tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return status.st_size, status.st_mtime_ns


def _is_intact(place: Path, paths: Sequence[str]) -> bool:
    """Whether a copy that was left is complete, undamaged and that of the sources as they are now."""
    try:
        manifest: Dict[str, List[Any]] = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

    def intact(path: str) -> bool:
        size, changed, digest = manifest[path]
        return _state(path) == (size, changed) and _digest(str(place / _FILES) + path) == (size, digest)

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            return sorted(manifest) == list(paths) and all(pool.map(intact, paths))
    except (OSError, UserError):
        return False


def _make(place: Path, paths: Sequence[str], folder: str) -> None:
    """Copy, check every copy, and write the manifest."""
    root = str(place / _FILES)
    with ThreadPoolExecutor(_THREADS) as pool:
        states = dict(zip(paths, pool.map(_state, paths), strict=True))
    total = sum(size for size, _ in states.values())
    free = shutil.disk_usage(place).free
    if total > free:
        raise UserError(
            f"--scratch {folder}: {len(paths)} files of {total / 1e9:.2f} GB do not fit on {_host()}, where "
            f"{place.parent} has {free / 1e9:.2f} GB free: name another folder, or leave --scratch out"
        )
    for parent in sorted({os.path.dirname(path) for path in paths}):
        os.makedirs(root + parent, exist_ok=True)
    where = f"{_host()}:{place.parent}"
    digests = _in_threads(lambda path, stop: _copy(path, root + path, stop), paths, f"copy to {where}")
    copies = _in_threads(lambda path, stop: _digest(root + path, stop), paths, f"verify {where}")
    manifest: Dict[str, Tuple[int, int, str]] = {}
    for path, source, copy in zip(paths, digests, copies, strict=True):
        if copy != source or source[0] != states[path][0]:
            raise UserError(f"{path} and its copy on {where} differ: it has changed meanwhile, or the disk is damaged")
        manifest[path] = (*states[path], source[1])
    write_text(place / _MANIFEST, json.dumps(manifest) + "\n")


def _in_threads(work: Any, paths: Sequence[str], title: str) -> List[Tuple[int, str]]:
    """Results of ``work(path, stop)`` in order; an exception here stops the threads within a block."""
    stop = threading.Event()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            results = pool.map(lambda path: work(path, stop), paths)
            return list(progress(results, total=len(paths), desc=title, unit="file"))
        except OSError as error:
            raise UserError(f"{title}: {error.filename or ''}: {error.strerror or error}") from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _blocks(path: str, stop: Optional[threading.Event]) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as stream:
        while (block := stream.read(_BLOCK)) and not (stop and stop.is_set()):
            yield block


def _copy(source: str, target: str, stop: threading.Event) -> Tuple[int, str]:
    """Copy a file: its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(target, "wb", buffering=0) as output:
        for block in _blocks(source, stop):
            output.write(block)
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _digest(path: str, stop: Optional[threading.Event] = None) -> Tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    for block in _blocks(path, stop):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()
