"""A corpus in L3DAS23's layout from any dry speech and noise, in simulated rooms.

    simulate_corpus("speech", "noise", "corpus", RoomOptions(seed=0), nj=4)

Every utterance has a place, noises and a level of its own, which depend on the seed and on its name alone. Rooms are
shared by several utterances and belong to one set, like speakers and noises.
"""

import json
import logging
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.folders import find_audio
from i2srf_kd.audio.io import read_audio, write_audio
from i2srf_kd.audio.level import active_power
from i2srf_kd.corpora.ambisonics_rooms import Recording, draw_room, draw_scene, record
from i2srf_kd.corpora.l3das23 import MAX_SECONDS, SET_PREFIX, speaker_of
from i2srf_kd.corpora.preparation import hold_out
from i2srf_kd.corpora.synthesis import MiniCorpusOptions, between_pauses, write_once, write_sources
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

VERSION = 1  # to be raised when the same options give other audio
SETS = ("train", "dev")  # as folders of the sources
_AUDIO = (".wav", ".flac", ".ogg")
_NOISES = (1, 2)  # the fewest and the most sources of noise of an utterance
_DEV_SPEAKERS, _DEV_NOISES = 0.1, 0.2  # shares held out for dev where the folders do not say


@dataclass(frozen=True)
class RoomOptions:
    """What a simulated corpus depends on beside speech and noise."""

    seed: int = 0
    fs: int = 16000  # Hz
    rooms: int = 40  # per set
    train_utts: int = 0  # 0: all speech
    dev_utts: int = 0
    rt60: Tuple[float, float] = (0.2, 0.5)  # s
    snr: Tuple[float, float] = (0.0, 15.0)  # dB


class Utterance(NamedTuple):
    """What is to be recorded."""

    utt_id: str
    name: str  # of the set, "train" or "dev"
    speech: Path
    noises: Tuple[Path, ...]  # to choose from


def simulate_corpus(
    speech_dir: PathLike, noise_dir: PathLike, folder: PathLike, options: RoomOptions, nj: int = 1
) -> Path:
    """Write the corpus; a complete one of the same options and sources is kept, an interrupted one is continued.

    Args:
        speech_dir: dry speech of any rate, ``<speaker>-...`` or ``<speaker>_...`` in any depth, of which the first
            12 s are used. Folders
            ``train`` and ``dev`` directly in it are the sets; else some speakers are held out for ``dev``.
        noise_dir: noise, likewise; else some files are held out for ``dev``.
        folder: gets ``L3DAS23_Task1_{train100,dev}/{data,labels}`` with ``<utterance>_A.wav``, ``<utterance>_B.wav``
            and ``<utterance>.wav`` (16 bit).
        options: seed, size, rooms.
        nj: processes.

    Returns:
        ``folder``.

    Raises:
        UserError: an option is out of range, or sources are missing or bad.
    """
    _check_options(options)
    speech = _split_speech(Path(speech_dir), options)
    noise = _split_noise(Path(noise_dir), options)
    work = _plan(speech, noise, options)
    files = [(utt.name, utt.speech) for utt in work] + [(name, file) for name in SETS for file in noise[name]]
    digest = zlib.crc32(json.dumps([[name, file.name, file.stat().st_size] for name, file in files]).encode())
    contents = json.dumps({"version": VERSION, **asdict(options), "sources": digest}) + "\n"
    return write_once(folder, contents, lambda target: _write_sets(target, work, options, nj), resume=True)


def simulate_mini_corpus(folder: PathLike, options: MiniCorpusOptions, nj: int = 1) -> Path:
    """The mini corpus in a few small rooms; its dry speech and noises are kept in ``<folder>/sources``."""
    rooms = RoomOptions(options.seed, options.fs, rooms=8, rt60=(0.15, 0.3))
    contents = json.dumps({"version": VERSION, **asdict(options), **asdict(rooms)}) + "\n"

    def write(target: Path) -> None:
        speech, noise = target / "sources" / "speech", target / "sources" / "noise"
        write_sources(target / "sources", options)
        _write_sets(target, _plan(_given_split(speech), _given_split(noise), rooms), rooms, nj)

    return write_once(folder, contents, write)


def _plan(speech: Dict[str, List[Path]], noise: Dict[str, List[Path]], options: RoomOptions) -> List[Utterance]:
    return [
        Utterance(path.stem, name, path, tuple(noise[name]))
        for name in SETS
        for path in _choose(speech[name], getattr(options, f"{name}_utts"), options.seed)
    ]


def _write_sets(folder: Path, work: Sequence[Utterance], options: RoomOptions, nj: int) -> None:
    with process_map(partial(_write_utterance, folder=folder, options=options), work, nj) as results:
        for _ in progress(results, total=len(work), desc="simulate rooms"):
            pass


def _check_options(options: RoomOptions) -> None:
    for name in ("seed", "train_utts", "dev_utts"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} {getattr(options, name)}: must be 0 or more")
    if options.fs < 8000:
        raise UserError(f"--fs {options.fs}: must be 8000 or more")
    if options.rooms < 1:
        raise UserError(f"--rooms {options.rooms}: must be 1 or more")
    for name, lowest in (("rt60", 0.0), ("snr", -100.0)):
        low, high = getattr(options, name)
        if not lowest <= low <= high:
            raise UserError(f"--{name} {low} {high}: give the least and the most, from {lowest} on")


def _list_audio(folder: Path) -> List[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = find_audio(folder, _AUDIO, logger.warning)
    if not found:
        raise UserError(f"{folder}: no audio files ({', '.join(_AUDIO)}) in it")
    return found


def _given_split(folder: Path) -> Dict[str, List[Path]]:
    """Files of the folders ``train`` and ``dev``, empty where there are none."""
    if all((folder / name).is_dir() for name in SETS):
        return {name: _list_audio(folder / name) for name in SETS}
    return {}


def _split_speech(folder: Path, options: RoomOptions) -> Dict[str, List[Path]]:
    files = _list_audio(folder)
    first: Dict[str, Path] = {}
    for path in files:
        if path.stem in first:
            raise UserError(f"{first[path.stem]} and {path} would be the same utterance; rename one of them")
        if any(letter.isspace() for letter in path.stem):
            raise UserError(f"{path}: its name is to be the utterance's, which holds no white space; rename the file")
        first[path.stem] = path
    split = _given_split(folder)
    if split:
        both = {speaker_of(path.stem) for path in split["train"]} & {speaker_of(path.stem) for path in split["dev"]}
        if both and len({speaker_of(path.stem) for path in files}) == 1:
            logger.warning("%s: all names begin with %s, so speakers of train may be heard in dev", folder, *both)
        elif both:
            raise UserError(f"{folder}: speakers {' '.join(sorted(both))} are in train and in dev; move their files")
        return split
    speakers = sorted({speaker_of(path.stem) for path in files})
    if len(speakers) < 2:
        raise UserError(
            f"{folder}: 1 speaker by the names of the files (what comes before the first hyphen or "
            "underscore), too few to train with some and to test with others; folders train and dev in it say which "
            "files are for what"
        )
    dev = set(hold_out(speakers, _DEV_SPEAKERS, options.seed))
    return {
        "train": [path for path in files if speaker_of(path.stem) not in dev],
        "dev": [path for path in files if speaker_of(path.stem) in dev],
    }


def _split_noise(folder: Path, options: RoomOptions) -> Dict[str, List[Path]]:
    files = _list_audio(folder)
    split = _given_split(folder)
    if split:
        return split
    if len(files) == 1:
        logger.warning("%s: one file of noise, heard in training and in testing", folder)
        return dict.fromkeys(SETS, files)
    dev = set(hold_out([str(path) for path in files], _DEV_NOISES, options.seed))
    return {"train": [p for p in files if str(p) not in dev], "dev": [p for p in files if str(p) in dev]}


def _choose(files: Sequence[Path], count: int, seed: int) -> List[Path]:
    if count == 0:
        return list(files)
    if count > len(files):
        raise UserError(f"{count} utterances are wanted, there are {len(files)}, such as {files[0]}")
    return sorted(np.random.default_rng(seed).permutation(np.array(files, dtype=object))[:count].tolist())


def _write_utterance(utt: Utterance, folder: Path, options: RoomOptions) -> None:
    """Record an utterance unless its files are there."""
    part = folder / f"{SET_PREFIX}{'train100' if utt.name == 'train' else utt.name}"
    files = [part / "data" / f"{utt.utt_id}_A.wav", part / "data" / f"{utt.utt_id}_B.wav"]
    files.append(part / "labels" / f"{utt.utt_id}.wav")
    if all(file.is_file() for file in files):
        return
    for file, wave in zip(files, _record(utt, options), strict=True):
        write_audio(file, wave, options.fs)


def _record(utt: Utterance, options: RoomOptions) -> Recording:
    random = np.random.default_rng([options.seed, 1, zlib.crc32(utt.utt_id.encode())])
    room = [options.seed, 2, SETS.index(utt.name), int(random.integers(options.rooms))]
    size, rt60 = draw_room(np.random.default_rng(room), options.rt60)
    n_noises = int(random.integers(_NOISES[0], _NOISES[1] + 1))
    scene = draw_scene(size, rt60, random, n_noises)
    speech = between_pauses(_read_sound(utt.speech, options.fs, "speech"), options.fs, random)
    speech = speech[: int(MAX_SECONDS * options.fs)]
    if not active_power(speech, options.fs):
        raise UserError(f"{utt.speech}: its first {MAX_SECONDS:g} s, of which the utterance is made, are silent")
    chosen = random.permutation(np.array(utt.noises, dtype=object))[:n_noises]
    noises = [_cut_noise(path, len(speech), options.fs, random) for path in np.resize(chosen, n_noises)]
    return record(scene, speech, noises, float(random.uniform(*options.snr)), options.fs)


def _read_sound(path: Path, fs: int, use: str) -> np.ndarray:
    wave, _ = read_audio(path, fs=fs, mono=True)
    if not np.any(wave):
        raise UserError(f"{path}: silent, so it cannot be used as {use}")
    return wave


def _cut_noise(path: Path, n_samples: int, fs: int, random: np.random.Generator) -> np.ndarray:
    """A stretch from a random place on, or from the next one with sound; short files are repeated."""
    wave = _read_sound(path, fs, "noise")
    place = int(random.integers(len(wave)))
    stretch = np.resize(np.roll(wave, -place), n_samples)
    if not np.any(stretch):
        sounding = np.flatnonzero(wave)
        place = int(sounding[int(np.searchsorted(sounding, place)) % len(sounding)])
        stretch = np.resize(np.roll(wave, -place), n_samples)
    return stretch.astype(np.float64)
