"""Looking for files in folders, such that nothing is passed over without a word."""

import os
from collections import Counter
from pathlib import Path
from typing import Callable, Collection, Iterator, List, Set, Tuple

from i2srf_kd.system.files import PathLike

Report = Callable[[str], None]  # is told what is passed over
# Recordings that libsndfile does not read.
_OTHER_AUDIO = (".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".ape", ".mka", ".dsf", ".ac3", ".sph")
_DEPTH = 32  # of folders


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
                others[suffix] += suffix in _OTHER_AUDIO
            elif path.exists():
                found.append(path)
            else:
                report(f"{path}: a link to nothing")
    for suffix, count in sorted((+others).items()):
        report(f"{root}: {count} {suffix} file(s), which cannot be read: convert them to wav or flac")
    return sorted(found)
