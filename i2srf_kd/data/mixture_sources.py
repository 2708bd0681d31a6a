"""Recordings that mixtures are made of: found in folders and tables, checked, read piece by piece."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.audio import folders
from i2srf_kd.audio.ark import split_place
from i2srf_kd.audio.io import probe, read_audio
from i2srf_kd.data.kaldi_dir import read_audio_table
from i2srf_kd.system.errors import UserError

AUDIO_SUFFIXES = frozenset(".wav .flac .ogg .opus .mp3 .aiff .aif .au .sph .w64 .caf".split())
_SILENCE = 1e-4  # peak below which nothing can be heard: 80 dB below full scale


class Recording(NamedTuple):
    """An audio file, or an entry of an archive."""

    name: str
    path: str
    frames: int
    speaker: str


def find_audio(places: Sequence[str], option: str) -> Dict[str, str]:
    """Audio files by name, in the order of their names.

    Args:
        places: folders, searched at any depth, where what is passed over is logged as a warning, tables
            ``<name> <file>`` (``.scp``, entries of archives as well), and audio files.
        option: how errors call them.

    Raises:
        UserError: a place does not exist or has no audio.
    """
    found: Dict[str, str] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            here = {}
            for file in folders.find_audio(path, AUDIO_SUFFIXES, folders.warn_once):
                name = file.relative_to(path).with_suffix("").as_posix()
                here[name if name not in here else file.relative_to(path).as_posix()] = str(file)
        elif path.suffix == ".scp":
            here = read_audio_table(path, ordered=False)
        elif path.is_file():
            here = {path.stem: str(path)}
        else:
            raise UserError(f"{option}: there is no {place}")
        if not here:
            raise UserError(f"{option}: {place} has no audio files ({' '.join(sorted(AUDIO_SUFFIXES))})")
        # Folders may have files of the same names.
        found.update({name if name not in found else f"{place}/{name}": file for name, file in here.items()})
    return dict(sorted(found.items()))


def load_recordings(files: Dict[str, str], fs: int, option: str, speakers: Optional[str] = None) -> List[Recording]:
    """What the headers of audio files say.

    Args:
        files: by name, as from :func:`find_audio`.
        fs: rate in Hz that all must have.
        option: how errors call them.
        speakers: regular expression whose first group, found in the last part of a name, is the speaker. Where it finds
            none, each recording has a speaker of its own.

    Raises:
        UserError: a file cannot be read, has another rate or is silent.
    """

    def load(name: str) -> Recording:
        path = files[name]
        info = probe(path)
        if info.fs != fs:
            raise UserError(f"{option}: {path} has {info.fs} Hz, the training {fs} Hz: resample it (stage 2, --fs)")
        if _is_silent(path, info.frames, fs):
            raise UserError(f"{option}: {path} is silent: remove it")
        return Recording(name, path, info.frames, speaker_of(name, speakers))

    with ThreadPoolExecutor(8) as threads:  # reading waits for the disk
        return list(threads.map(load, files))


def speaker_of(name: str, pattern: Optional[str]) -> str:
    """Who speaks in a recording of that name, by the regular expression's first group; else the name itself."""
    match = re.search(pattern, name.rsplit("/", 1)[-1]) if pattern else None
    return (match and match[1]) or name


def read_stretch(recording: Recording, start: int, frames: int) -> np.ndarray:
    """Samples ``(frames,)`` from ``start`` on, the mean of the channels; zeros after the end."""
    wave, _ = read_audio(recording.path, start=start, frames=min(frames, recording.frames - start), mono=True)
    return np.pad(wave, (0, frames - len(wave)))


def draw_stretch(recording: Recording, frames: int, random: np.random.Generator) -> Tuple[np.ndarray, int]:
    """A random stretch ``(frames,)`` and its start; shorter recordings are repeated."""
    start = int(random.integers(0, max(1, recording.frames - frames + 1)))
    wave = read_stretch(recording, start, min(frames, recording.frames))
    return np.resize(wave, frames), start


def fingerprint(places: Sequence[str], option: str) -> bytes:
    """Changes when a file is added, removed, renamed or replaced by another of other size or beginning."""
    total = hashlib.sha256()
    for name, path in find_audio(places, option).items():
        file, place = split_place(path)
        try:
            with open(file, "rb") as stream:
                stream.seek(place or 0)
                head = stream.read(4096)
        except OSError as error:
            raise UserError(f"{option}: cannot read {file}: {error.strerror}") from None
        total.update(f"{name} {Path(file).stat().st_size} {place}\n".encode() + head)
    return total.digest()


def _is_silent(path: str, frames: int, fs: int) -> bool:
    """Whether nothing in a file can be heard; mostly its first half second tells."""
    for start in range(0, frames, fs // 2):
        wave, _ = read_audio(path, start=start, frames=min(fs // 2, frames - start))
        if np.abs(wave).max() > _SILENCE:
            return False
    return True
