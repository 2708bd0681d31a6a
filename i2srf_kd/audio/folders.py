"""Looking for files in folders, such that nothing is passed over without a word."""

import errno
import logging
import os
import stat
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Callable, Collection, Iterator, List, Set, Tuple

from i2srf_kd.system.files import PathLike

logger = logging.getLogger(__name__)

Report = Callable[[str], None]  # is told what is passed over
# Recordings that libsndfile does not read, and those that it does.
_UNREADABLE = frozenset(
    (
        ".m4a .m4b .mp4 .aac .wma .webm .weba .amr .3gp .ape .mka .mkv .mov .dsf .ac3 .dts .wv .mpc .spx .tta .shn "
        ".raw .pcm"
    ).split()
)
_READABLE = frozenset(".wav .flac .ogg .oga .opus .mp3 .aiff .aif .au .snd .caf .w64 .rf64 .sph".split())
_DEPTH = 32  # of folders
ABSENT = "no such file or folder"


@lru_cache(maxsize=1 << 16)
def warn_once(problem: str) -> None:
    """A :data:`Report` that warns, and of the same thing once however often a folder is searched."""
    logger.warning("%s", problem)


def why_absent(path: Path) -> str:
    """What keeps a file or folder from being read; empty where it seems to be readable."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if os.path.islink(path) and error.errno in (errno.ENOENT, errno.ELOOP):
            return "a link to nothing"
        return f"cannot be read ({error.strerror})" if error.errno != errno.ENOENT else ABSENT
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "neither a file nor a folder"


def is_hidden(name: str) -> bool:
    """Whether a folder or file of this name holds nothing of interest: hidden, or what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


def walk(root: PathLike, report: Report, depth: int = _DEPTH) -> Iterator[Tuple[Path, List[str], List[str]]]:
    """Folders with their subfolders and files, hidden ones left out, from ``root`` down; each folder once.

    Links to folders are followed. Who removes names from the list of subfolders keeps them from being entered.

    Args:
        root: where to begin.
        report: is told of folders that may not be read.
        depth: folders below ``root``.
    """

    def closed(error: OSError) -> None:
        report(f"{error.filename}: cannot be read ({error.strerror})")

    seen: Set[Path] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=closed):
        place = Path(folder).resolve()
        if place in seen:
            subfolders.clear()
            continue
        seen.add(place)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        yield Path(folder), subfolders, sorted(name for name in files if not is_hidden(name))
        if len(Path(folder).relative_to(root).parts) >= depth:
            subfolders.clear()


def find_audio(root: PathLike, suffixes: Collection[str], report: Report) -> List[Path]:
    """Audio files below a folder, sorted.

    Args:
        root: the folder.
        suffixes: of the files, in small letters.
        report: is told of folders that may not be read, links to nothing, and audio of other formats.
    """
    found: List[Path] = []
    others: Counter[str] = Counter()
    for folder, _, files in walk(root, report):
        for path in (folder / name for name in files):
            suffix = path.suffix.lower()
            if suffix not in suffixes:
                others[suffix] += suffix in _UNREADABLE | _READABLE
            elif problem := why_absent(path):
                report(f"{path}: {problem}")
            else:
                found.append(path)
    for suffix, count in sorted((+others).items()):
        why = (
            "cannot be read: convert them to wav or flac" if suffix in _UNREADABLE else "are passed over: convert them"
        )
        report(f"{root}: {count} {suffix} file(s), which {why}")
    return sorted(found)
