"""Lengths in the headers of audio files, which libsndfile believes or cuts off without a word.

A truncated file is not to pass for a shorter one, and one from a pipe, whose header was written before anybody knew its
length, not for an empty one.
"""

import io
import logging
import os
import re
from functools import lru_cache
from typing import BinaryIO, Dict, Literal, NamedTuple, Optional

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

logger = logging.getLogger(__name__)

_UNKNOWN = 1 << 62  # frames or bytes that no file has: the header leaves it open


class _Samples(NamedTuple):
    """Where the samples of a file are, by its header."""

    place: int
    length: int  # bytes
    lengths: Dict[int, int] = {}  # places of lengths in RIFF's header, and the bytes in front that they do not count
    width: int = 4  # bytes of such a length
    order: Literal["little", "big"] = "little"


def check_lengths(path: PathLike, stream: BinaryIO) -> Optional[BinaryIO]:
    """Compare the length in the header of an uncompressed file (WAV, RF64, W64, AIFF, AU, NIST) with the file.

    Args:
        path: what messages call it.
        stream: at its beginning, before and after.

    Returns:
        The file with the right lengths, where its header leaves them open in a way that libsndfile does not know; None
        for all others, with placeholders that it knows as well.

    Raises:
        UserError: it is truncated.
    """
    size = stream.seek(0, os.SEEK_END)
    samples = _find_samples(stream)
    chunk = _chunk_at(stream, samples.place + samples.length + samples.length % 2, samples.order) if samples else -1
    stream.seek(0)
    if samples is None:
        return None
    rest = size - samples.place - samples.length
    if not _is_placeholder(samples.length) and rest < 0:
        raise UserError(f"{path}: truncated, {-rest} bytes are missing at the end; get the file anew")
    if not samples.lengths or rest < 8 or 0 <= chunk <= rest:
        return None
    if samples.length:
        _tell_of_rest(str(path), rest)
        return None
    content = bytearray(stream.read())
    stream.seek(0)
    for place, before in samples.lengths.items():
        content[place : place + samples.width] = (size - before).to_bytes(samples.width, samples.order)
    return io.BytesIO(content)


def flac_with_length(stream: BinaryIO, frames: int) -> BinaryIO:
    """A FLAC file whose header leaves the number of samples per channel open, as one from a pipe does, with it."""
    stream.seek(0)
    content = bytearray(stream.read())
    place = content.index(b"fLaC") + 4 + 4 + 10  # STREAMINFO comes first; 28 bits for the rate and so on, 36 for these
    known = int.from_bytes(content[place : place + 8], "big") >> 36 << 36
    content[place : place + 8] = (known | frames).to_bytes(8, "big")
    return io.BytesIO(content)


def is_unknown(frames: int) -> bool:
    """Whether libsndfile says by this number that the header leaves the number of samples open."""
    return frames >= _UNKNOWN


def _is_placeholder(length: int) -> bool:
    """Whether a program that writes into a pipe puts this length into its header: a little below 2 or 4 GiB."""
    return length % 0x80000000 >= 0x7EFF0000 or length == 0x80000000


@lru_cache(maxsize=1 << 16)  # once for each file, however often it is opened
def _tell_of_rest(path: str, rest: int) -> None:
    logger.warning(
        "%s: %d bytes after the samples are passed over, its header knows nothing of them; if they are audio, get the "
        "file anew",
        path,
        rest,
    )


def _chunk_at(stream: BinaryIO, place: int, order: Literal["little", "big"]) -> int:
    """Length of the chunk of a WAV file at that place; -1 where there is none."""
    stream.seek(place)
    head = stream.read(8)
    is_chunk = len(head) == 8 and all(32 <= letter < 127 for letter in head[:4])
    return int.from_bytes(head[4:], order) if is_chunk else -1


def _find_samples(stream: BinaryIO) -> Optional[_Samples]:
    stream.seek(0)
    head = stream.read(1024)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return _find_in_riff(stream, "big" if head[:4] == b"RIFX" else "little")
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        return _find_in_chunks(stream, 12, b"SSND", "big")
    if head[:4] == b"riff" and head[24:28] == b"wave":
        return _find_in_chunks(stream, 40, b"data", "little", 16, 8)
    if head[:4] in (b".snd", b"dns.") and len(head) >= 12:
        order: Literal["little", "big"] = "big" if head[:1] == b"." else "little"
        return _Samples(int.from_bytes(head[4:8], order), int.from_bytes(head[8:12], order))
    nist = re.match(rb"NIST_1A\n +(\d{1,6})\n", head)
    sizes = [
        re.search(rb"^%s -i (\d{1,12})\s" % name, head, re.MULTILINE)
        for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
    ]
    if nist and all(sizes) and b"shorten" not in head:
        count, channels, width = (int(match[1]) for match in sizes if match)
        return _Samples(int(nist[1]), count * channels * width)
    return None


def _find_in_riff(stream: BinaryIO, order: Literal["little", "big"]) -> Optional[_Samples]:
    """The samples of a WAV file; those of RF64 have their lengths, of 64 bits, in a chunk of their own."""
    found = _find_in_chunks(stream, 12, b"data", order)
    if found is None:
        return None
    stream.seek(12)
    head = stream.read(24)
    if head[:4] != b"ds64" or len(head) < 24:
        return found._replace(lengths={4: 8, found.place - 4: found.place}, order=order)
    length = int.from_bytes(head[16:24], "little") if found.length == 0xFFFFFFFF else found.length
    if length >= _UNKNOWN:
        length = 0
    return _Samples(found.place, length, {20: 8, 28: found.place}, 8)


def _find_in_chunks(
    stream: BinaryIO, place: int, name: bytes, order: Literal["little", "big"], id_bytes: int = 4, width: int = 4
) -> Optional[_Samples]:
    """The samples in the chunk ``name`` of a file of chunks, of which the first is at ``place``.

    Args:
        id_bytes, width: of a chunk's name and its length. Where they are 16 and 8, as in W64, the length counts both,
            and chunks begin at multiples of 8, else of 2.
    """
    stream.seek(place)
    while len(head := stream.read(id_bytes + width)) == id_bytes + width:
        length = int.from_bytes(head[id_bytes:], order) - (id_bytes + width if width == 8 else 0)
        if head[:4] == name:
            skipped = 8 if name == b"SSND" else 0  # offset and block size
            return _Samples(stream.tell() + skipped, max(0, length - skipped))
        if not 0 <= length < _UNKNOWN:
            return None
        stream.seek(length + -length % (8 if width == 8 else 2), 1)
    return None
