"""Long recordings in constant memory: overlapping windows, cross-faded, from a file to a file.

Neighbouring windows share ``overlap`` samples, over which the earlier one fades out and the later one fades in; the two
weights sum to one. All windows of a recording have the same length, the last one too: it begins earlier than the
others would, so that it ends with the recording. A recording no longer than a window is done in one piece.
"""

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Optional, Tuple

import numpy as np
import soundfile

from i2srf_kd.audio.io import (
    SYSTEM_ERROR,
    as_samples,
    check_samples,
    check_written,
    count_clipped,
    open_audio,
    probe,
    write_failure,
)
from i2srf_kd.system.errors import UserError, cannot_write, disk_full
from i2srf_kd.system.files import PathLike, atomic_path

Process = Callable[[np.ndarray], np.ndarray]


def fade_in(overlap: int) -> np.ndarray:
    """Raised cosine from 0 to 1 over ``overlap`` samples; the fade-out is one minus it.

    Both cross-faded signals stem from the same input and are in phase, so their amplitudes are weighted, not powers.
    """
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / max(overlap, 1))


def check_window(window: int, overlap: int) -> None:
    """Raise :class:`UserError` for lengths in samples that cannot be cross-faded."""
    if window < 1:
        raise UserError(f"a window of {window} samples is too short: make it longer")
    if not 0 <= overlap <= window // 2:
        raise UserError(f"an overlap of {overlap} samples does not fit windows of {window}: use at most half a window")


def overlap_add_blocks(
    blocks: Iterable[np.ndarray], process: Process, window: int, overlap: int
) -> Iterator[np.ndarray]:
    """Process a recording that arrives in blocks.

    Args:
        blocks: consecutive pieces ``(samples, ...)`` of any lengths.
        process: maps a window ``(samples, ...)`` to as many samples ``(samples, ...)``.
        window: length of a window in samples.
        overlap: samples that neighbouring windows are cross-faded over, at most half a window.

    Yields:
        Consecutive pieces of the result, as many samples in all as went in.

    Raises:
        UserError: ``window`` and ``overlap`` do not fit together.
    """
    check_window(window, overlap)
    weights = fade_in(overlap)
    source = iter(blocks)
    hop = window - overlap
    buffer = _fill(None, source, window + 1)
    if buffer is None:
        return
    if len(buffer) <= window:
        yield process(buffer)
        return
    result = process(buffer[:window])
    yield result[:hop]
    tail = result[hop:]  # of the window that begins where the buffer begins; it waits for its neighbour
    while len(buffer) > window:
        buffer = _fill(buffer, source, hop + window)
        start = min(hop, len(buffer) - window)
        result = process(buffer[start : start + window])[hop - start :]
        fade = weights.reshape(-1, *[1] * (result.ndim - 1)).astype(result.dtype)
        # a + w (b - a) rather than (1 - w) a + w b: where both windows agree, the result equals them bit by bit
        mixed = tail + fade * (result[:overlap] - tail)
        result = np.concatenate([mixed, result[overlap:]])
        yield result[: len(result) - overlap]
        tail = result[len(result) - overlap :]
        buffer = _fill(buffer[start:], source, window + 1)
    yield tail


def _fill(buffer: Optional[np.ndarray], source: Iterator[np.ndarray], wanted: int) -> Any:
    """Append blocks until there are ``wanted`` samples or no more blocks; None when there was none at all."""
    parts = [] if buffer is None else [buffer]
    length = sum(map(len, parts))
    while length < wanted:
        block = next(source, None)
        if block is None:
            break
        parts.append(block)
        length += len(block)
    if not length:
        return None
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def overlap_add(wave: np.ndarray, process: Process, window: int, overlap: int) -> np.ndarray:
    """Process a recording that is in memory; arguments and errors as for :func:`overlap_add_blocks`.

    Args:
        wave: ``(samples, ...)``, at least one sample.
    """
    result, done = np.empty(0), 0
    for piece in overlap_add_blocks([wave], process, window, overlap):
        if not done:
            result = np.empty((len(wave), *piece.shape[1:]), piece.dtype)
        result[done : done + len(piece)] = piece
        done += len(piece)
    return result


def read_blocks(path: PathLike, block: int = 1 << 16) -> Iterator[np.ndarray]:
    """Read a file piece by piece.

    Args:
        path: any format that libsndfile reads.
        block: samples per piece.

    Yields:
        float32 ``(samples, channels)``.

    Raises:
        UserError: as :func:`i2srf_kd.audio.io.read_audio`.
    """
    expected = probe(path).frames
    done = 0
    with open_audio(path) as file:
        while True:
            try:
                samples = file.read(block, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise UserError(
                    f"{path}: damaged or truncated audio ({error.error_string}); get the file anew"
                ) from None
            if not len(samples):
                break
            check_samples(samples, path, done)
            done += len(samples)
            yield samples
    if not done:
        raise UserError(f"{path}: holds no samples")
    if done < expected:
        raise UserError(
            f"{path}: truncated, {expected} samples expected but only {done} can be read; get the file anew"
        )


class BlockWriter:
    """Write a file piece by piece, in the container, sample format and rate of another one.

    A context manager; the file appears under its name when the block ends without an error. Integer samples are rounded
    as :func:`i2srf_kd.audio.io.write_audio` does; what lies beyond full scale is clipped.

    Args:
        path: file to write; its folder is made if absent.
        like: the file whose format is taken over.
        channels: number of channels to write.

    Attributes:
        clipped: samples beyond full scale so far.

    Raises:
        UserError: on entry, when the format can be read but not written.
    """

    def __init__(self, path: PathLike, like: PathLike, channels: int):
        self.path = path
        self.like = like
        self.channels = channels
        self.clipped = 0
        self._frames = 0

    def __enter__(self) -> "BlockWriter":
        self._stack = ExitStack()
        try:
            temporary = self._stack.enter_context(atomic_path(self.path))
            # runs between the closing of the file and its renaming
            self._stack.push(partial(self._check_written, temporary))
            self._file = self._stack.enter_context(self._open(temporary))
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: Any) -> Optional[bool]:
        return self._stack.__exit__(*error)

    def _check_written(self, temporary: Path, kind: Optional[type], *_: Any) -> None:
        if kind is None:  # else the file is given up anyway
            check_written(temporary, self._frames, self.path)

    def _open(self, temporary: Path) -> soundfile.SoundFile:
        with open_audio(self.like) as model:
            fs, self.subtype, container, endian = model.samplerate, model.subtype, model.format, model.endian
        try:
            return soundfile.SoundFile(os.fsencode(temporary), "w", fs, self.channels, self.subtype, endian, container)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            if getattr(error, "code", None) == SYSTEM_ERROR:
                raise write_failure(temporary, self.path, "is the disk full?") from None
            raise UserError(
                f"{self.like}: {container} with {self.subtype}, {self.channels} channels and {fs} Hz cannot be written "
                f"({error}); convert it to wav first"
            ) from None

    def write(self, samples: np.ndarray) -> None:
        """Append ``(samples, channels)``.

        Raises:
            UserError: the disk is full or failing.
        """
        self.clipped += count_clipped(samples, self.subtype)
        try:
            self._file.write(as_samples(samples, self.subtype))
            self._frames += len(samples)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        except (soundfile.LibsndfileError, AssertionError) as error:
            # soundfile asserts that all samples were written; on a full disk they are not
            raise disk_full(self.path, f"is the disk full? {error}") from None


def window_in_samples(window_seconds: float, overlap_seconds: float, fs: int) -> Tuple[int, int]:
    """Window and overlap in samples.

    Raises:
        UserError: the overlap is negative or longer than half a window, or the window is empty.
    """
    if not window_seconds > 0:
        raise UserError(f"window_seconds {window_seconds}: must be positive")
    if not 0 <= overlap_seconds <= window_seconds / 2:
        raise UserError(
            f"overlap_seconds {overlap_seconds}: must lie between 0 and half of window_seconds {window_seconds}"
        )
    window = max(2, round(window_seconds * fs))
    return window, min(round(overlap_seconds * fs), window // 2)
