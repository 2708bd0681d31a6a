"""Kaldi archives of audio files: many FLAC or WAV files one after the other in a large one.

    spk1_001 AUDIO<length>fLaC...spk1_002 AUDIO<length>fLaC...

A table names an entry by archive and place, ``spk1_001 dump/noisy.ark:9``, where the place is that of ``AUDIO``.
kaldiio writes them (``write_function="soundfile"``); entries that are bare WAV files, as Kaldi's own ``wav-copy``
writes them, are read as well. Reading is here, because kaldiio reads an entry whole, where training wants a chunk of
it, and notices no truncated one. A process opens an archive once, whatever it reads from it.
"""

import functools
import io
import os
import re
from typing import BinaryIO, Optional, Tuple

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

_PLACE = re.compile(r"(.+\.ark):(\d+)")
_MARK = b"AUDIO"
_BUFFER_BYTES = 1 << 16
_OPEN_ARCHIVES = 64  # kept open by a process at most


def split_place(path: PathLike) -> Tuple[str, Optional[int]]:
    """``("x.ark", 9)`` for ``x.ark:9``, and ``(path, None)`` for a file of its own."""
    match = _PLACE.fullmatch(os.fspath(path))
    return (match[1], int(match[2])) if match else (os.fspath(path), None)


def file_of(path: PathLike) -> str:
    """The file that ``path`` lies in: the archive of an entry, else ``path`` itself."""
    return split_place(path)[0]


def open_entry(archive: str, place: int) -> BinaryIO:
    """An entry as a file of its own.

    Raises:
        UserError: no such archive, no audio at that place, or an archive that ends before its entry.
    """
    where = f"{archive}:{place}"
    try:
        stream = _archive(archive)
        size = os.fstat(stream.fileno()).st_size
        head = os.pread(stream.fileno(), len(_MARK) + 9, place)
    except OSError as error:
        raise UserError(f"{where}: cannot read the archive ({error.strerror})") from None
    start, length = _extent(head, place)
    if length is None:
        raise UserError(f"{where}: no audio at this place; format the set again (stage 2)")
    if start + length > size:
        raise UserError(f"{where}: truncated archive, {start + length - size} bytes are missing; format the set again")
    return io.BufferedReader(_Entry(stream, where, start, length), _BUFFER_BYTES)


def _extent(head: bytes, place: int) -> Tuple[int, Optional[int]]:
    """Where the audio file of an entry begins and how long it is; no length where there is no audio."""
    if head.startswith(_MARK) and len(head) > len(_MARK):
        first = len(_MARK) + 1
        width = head[first - 1]
        if 1 <= width <= 8 and len(head) >= first + width:
            return place + first + width, int.from_bytes(head[first : first + width], "little")
    if head.startswith(b"RIFF") and len(head) >= 8:
        return place, 8 + int.from_bytes(head[4:8], "little")
    return place, None


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _kept_open(archive: str) -> BinaryIO:
    return open(archive, "rb", buffering=0)  # noqa: SIM115  # closed with the last of its readers


def _archive(archive: str) -> BinaryIO:
    """The archive, opened anew where the file that is open was replaced or removed."""
    stream = _kept_open(archive)
    if os.fstat(stream.fileno()).st_nlink == 0:
        _kept_open.cache_clear()
        stream = _kept_open(archive)
    return stream


class _Entry(io.RawIOBase):
    """A stretch of a file. Readers of one file share its descriptor and do not move its position."""

    def __init__(self, stream: BinaryIO, name: str, start: int, length: int) -> None:
        self.stream, self.name, self.start, self.length = stream, name, start, length
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def, override]
        count = max(0, min(len(buffer), self.length - self.position))
        content = os.pread(self.stream.fileno(), count, self.start + self.position)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)
