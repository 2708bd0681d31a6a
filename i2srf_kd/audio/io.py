"""Probing, reading and writing audio files, with errors that name the file and its problem."""

import logging
import os
import unicodedata
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional, Tuple, Union

import numpy as np
import soundfile

from i2srf_kd.audio.ark import open_entry, split_place
from i2srf_kd.audio.headers import check_lengths, flac_with_length, is_unknown
from i2srf_kd.audio.resample import resample
from i2srf_kd.system.errors import UserError, cannot_write, disk_full
from i2srf_kd.system.files import PathLike, atomic_path
from i2srf_kd.system.scratch import local_copy

logger = logging.getLogger(__name__)

MAX_FLAC_CHANNELS = 8  # limit of the format
_INTEGER_BITS = {"PCM_16": 16, "PCM_24": 24}
_FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")
_HIGHEST_PEAK = 16.0  # of floating-point files, 24 dB above full scale
SYSTEM_ERROR = 2  # libsndfile's code for an error of the operating system, such as a full disk


class AudioInfo(NamedTuple):
    """What the header of an audio file says."""

    frames: int  # samples per channel
    fs: int  # sampling rate in Hz
    channels: int
    subtype: str  # libsndfile's name of the sample format, such as PCM_16


def audio_source(path: PathLike) -> Union[str, BinaryIO]:
    """What soundfile is to open for an audio file, named by its path or as an entry of an archive (``x.ark:9``).

    Where the running job has a copy on its own machine (:mod:`i2srf_kd.system.scratch`), that is read.

    Raises:
        UserError: an archive is absent or damaged.
    """
    file, place = split_place(path)
    file = local_copy(file)
    return file if place is None else open_entry(file, place)


def probe(path: PathLike) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        UserError: the file is missing, of 0 bytes, no audio file, or a WAV file shorter than its header says.
    """
    with open_audio(path) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels, file.subtype)


def read_audio(
    path: PathLike, fs: Optional[int] = None, start: int = 0, frames: int = -1, mono: bool = False
) -> Tuple[np.ndarray, int]:
    """Read an audio file or a part of it.

    Args:
        path: any format that libsndfile reads, or an entry of an archive (``x.ark:9``).
        fs: resample to this rate in Hz; default: the file's own.
        start: first sample, counted at the file's own rate.
        frames: number of samples at the file's own rate, -1 for all up to the end.
        mono: average the channels.

    Returns:
        float32 in [-1, 1] for integer formats, ``(samples,)`` for one channel and ``(samples, channels)`` for more,
        and the rate in Hz.

    Raises:
        UserError: as :func:`probe`; or the file is truncated, holds no samples, NaN or infinite values, or does not
            reach as far as asked for, or is of floating-point numbers at the scale of integers.
    """
    with open_audio(path) as file:
        wanted = _wanted_frames(file, path, start, frames)
        try:
            file.seek(start)
            wave = file.read(wanted, dtype="float32")
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: damaged or truncated audio ({error.error_string}); get the file anew") from None
        file_fs = file.samplerate
    if len(wave) < wanted:
        raise UserError(
            f"{path}: truncated, {wanted} samples expected but only {len(wave)} can be read; get the file anew"
        )
    check_samples(wave, path, start)
    if mono and wave.ndim > 1:
        wave = wave.mean(axis=1)
    if fs is None:
        return wave, file_fs
    return resample(wave, file_fs, fs), fs


def write_audio(path: PathLike, wave: np.ndarray, fs: int, subtype: str = "PCM_16") -> int:
    """Write an audio file atomically; the suffix decides the format.

    Integer samples are ``round(wave * 2**(bits - 1))``, the inverse of what reading does, so that 16-bit audio
    survives reading and writing bit by bit. Values beyond [-1, 1] are clipped, counted and logged as a warning.

    Args:
        path: file to write, such as ``x.wav`` or ``x.flac``; its folder is made if absent.
        wave: ``(samples,)`` or ``(samples, channels)``.
        fs: sampling rate in Hz.
        subtype: libsndfile's name of the sample format.

    Returns:
        Number of clipped samples.

    Raises:
        UserError: NaN or infinite values, more than 8 channels for FLAC, an unknown format, or a failing disk.
        DiskFull: there is no space left.
    """
    samples, clipped = checked_samples(path, wave, Path(path).suffix[1:], subtype)
    try:
        with atomic_path(path) as temporary:
            try:
                soundfile.write(os.fsencode(temporary), samples, fs, subtype=subtype)
            except (soundfile.LibsndfileError, AssertionError) as error:
                # soundfile asserts that all samples were written; on a full disk they are not
                raise write_failure(temporary, path, f"is the disk full? {error}") from None
            check_written(temporary, len(samples), path)
    except UserError:  # it is a ValueError
        raise
    except OSError as error:
        raise cannot_write(path, error) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be written as {subtype} at {fs} Hz ({error})") from None
    return clipped


def checked_samples(name: PathLike, wave: np.ndarray, kind: str, subtype: str) -> Tuple[np.ndarray, int]:
    """What soundfile is to be given for a format, and how many samples were clipped for it.

    Args:
        name: what messages call it.
        wave, subtype: as for :func:`write_audio`.
        kind: the format, such as ``flac``.

    Raises:
        UserError: NaN or infinite values, or more than 8 channels for FLAC.
    """
    wave = np.asarray(wave)
    n_channels = wave.shape[1] if wave.ndim > 1 else 1
    if kind.lower() == "flac" and n_channels > MAX_FLAC_CHANNELS:
        raise UserError(f"{name}: FLAC holds at most {MAX_FLAC_CHANNELS} channels, not {n_channels}; write wav instead")
    _check_finite(wave, name)
    clipped = count_clipped(wave, subtype)
    if clipped:
        share = 100.0 * clipped / wave.size
        logger.warning("%s: %d samples (%.2g %%) beyond full scale were clipped", name, clipped, share)
    return as_samples(wave, subtype), clipped


def open_audio(path: PathLike) -> soundfile.SoundFile:
    """Open an audio file, or an entry of an archive, for reading.

    Raises:
        UserError: as :func:`probe`.
    """
    source = audio_source(path)
    try:
        if isinstance(source, str):
            file = Path(source)
            if not file.is_file():
                raise UserError(
                    f"{path}: not a file" if file.exists() else f"{path}: no such file{_looks_alike(source)}"
                )
            if file.stat().st_size == 0:
                raise UserError(f"{path}: empty file (0 bytes)")
            with file.open("rb") as stream:
                mended = check_lengths(path, stream)
        else:
            mended = check_lengths(path, source)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    # Names that are not UTF-8 reach the system as they are.
    name = os.fsencode(source) if isinstance(source, str) else source
    try:
        file = soundfile.SoundFile(mended or name)
        if is_unknown(file.frames) and file.format == "FLAC":
            frames = _count_frames(file)
            with file, open(name, "rb") if isinstance(name, bytes) else name as stream:
                return soundfile.SoundFile(flac_with_length(stream, frames))
        return file
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: {_describe_unreadable(source, error)}") from None


def _count_frames(file: soundfile.SoundFile) -> int:
    """Samples per channel from here on, of a file whose header does not know them."""
    file._info.seekable = False  # else soundfile seeks after each reading, which fails at the end
    return sum(iter(lambda: len(file.read(1 << 16)), 0))


def _looks_alike(path: str) -> str:
    """A remark where a file is absent but one whose name Unicode spells otherwise is there."""
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, path)  # type: ignore[arg-type]
        if os.path.exists(other):
            return f"; one whose name looks the same, in Unicode's form {form}, is there: use its spelling"
    return ""


def _describe_unreadable(source: Union[str, BinaryIO], error: soundfile.LibsndfileError) -> str:
    try:
        with open(source, "rb") if isinstance(source, str) else source as stream:
            stream.seek(0)
            head = stream.read(512).lstrip()
    except OSError as os_error:
        return f"cannot be read ({os_error.strerror})"
    if head[:1] == b"<":
        return "an HTML or XML page, not audio; the download went wrong, get the file anew"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not audio; run git lfs pull"
    if _is_text(head):
        return "a text file, not audio"
    return f"not a readable audio file ({error.error_string.rstrip('.')}): get it anew, or convert it to wav"


def _is_text(head: bytes) -> bool:
    try:
        return all(character.isprintable() or character.isspace() for character in head.decode("utf-8"))
    except UnicodeDecodeError:
        return False


def _wanted_frames(file: soundfile.SoundFile, path: PathLike, start: int, frames: int) -> int:
    if file.frames == 0:
        raise UserError(f"{path}: holds no samples")
    wanted = file.frames - start if frames < 0 else frames
    if start < 0 or wanted < 1 or start + wanted > file.frames:
        raise UserError(f"{path}: has {file.frames} samples, cannot read {frames} from sample {start} on")
    return wanted


def check_samples(wave: np.ndarray, path: PathLike, start: int = 0) -> None:
    """Check what was read from sample ``start`` on.

    Raises:
        UserError: NaN or infinite values, or floating-point numbers at the scale of integers.
    """
    _check_finite(wave, path, start)
    peak = np.abs(wave).max(initial=0.0)
    if peak > _HIGHEST_PEAK:
        raise UserError(
            f"{path}: samples of up to {peak:.0f} in a floating-point file, where full scale is 1; they look like "
            "integers, divide them by 32768 (16 bit) or what their full scale is"
        )


def _check_finite(wave: np.ndarray, path: PathLike, start: int = 0) -> None:
    if np.issubdtype(wave.dtype, np.floating) and not np.isfinite(wave).all():
        first = int(np.argwhere(~np.isfinite(wave))[0][0]) + start
        raise UserError(f"{path}: NaN or infinite values, the first at sample {first}")


def write_failure(temporary: PathLike, path: PathLike, reason: str) -> UserError:
    """The error of a file that libsndfile could not write.

    libsndfile calls everything a system error, so the system is asked whether it is the folder that forbids writing.

    Args:
        temporary: what could not be written.
        path: what it was to become, which the message names.
        reason: what to say where the folder may be written to.
    """
    try:
        open(temporary, "ab").close()
    except OSError as error:
        return cannot_write(path, error)
    return disk_full(path, reason)


def check_written(temporary: PathLike, frames: int, path: PathLike) -> None:
    """Make sure that a closed file holds ``frames`` samples: encoders write the rest on closing, and libsndfile says
    nothing when that fails.

    Raises:
        UserError: it does not; the message names ``path``, which ``temporary`` was to become.
    """
    try:
        complete = probe(temporary).frames >= frames
    except UserError:
        complete = frames == 0
    if not complete:
        raise disk_full(path, "not all samples could be written, is the disk full?")


def count_clipped(wave: np.ndarray, subtype: str) -> int:
    """How many samples lie beyond full scale and cannot be held by a sample format (libsndfile's name)."""
    if subtype in _FLOAT_SUBTYPES or np.issubdtype(wave.dtype, np.integer):
        return 0
    return int(np.count_nonzero(np.abs(wave) > 1.0))


def as_samples(wave: np.ndarray, subtype: str) -> np.ndarray:
    """What soundfile is to be given for a sample format, the inverse of what reading does.

    Args:
        wave: any shape, floating point with full scale 1; integers are left as they are.
        subtype: libsndfile's name of the sample format.

    Returns:
        For 16 and 24 bit ``round(wave * 2**(bits - 1))``, 24-bit values in the upper bits of int32; for floating-point
        formats ``wave``; else (8 bit, compressed formats) ``wave`` clipped to [-1, 1].
    """
    if subtype in _FLOAT_SUBTYPES or np.issubdtype(wave.dtype, np.integer):
        return wave
    if subtype not in _INTEGER_BITS:
        return np.clip(wave, -1.0, 1.0)
    bits = _INTEGER_BITS[subtype]
    full_scale = 2.0 ** (bits - 1)
    values = np.clip(np.rint(wave.astype(np.float64) * full_scale), -full_scale, full_scale - 1)
    return values.astype(np.int16) if bits == 16 else values.astype(np.int32) << (32 - bits)
