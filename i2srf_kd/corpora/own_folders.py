"""A corpus of one's own in Kaldi style, from folders of speech and noise, or from pairs of mixture and reference.

The training set is speech: mixtures of it are made while training (:mod:`i2srf_kd.data.mixing`). Validation and test
mixtures are made once and lie on the disk. Speakers and files of noise belong to one set each.
"""

import logging
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.folders import find_audio
from i2srf_kd.audio.io import probe, read_audio, write_audio
from i2srf_kd.audio.level import noise_gain
from i2srf_kd.corpora.preparation import hold_out, listing, search
from i2srf_kd.data.kaldi_dir import DataDir, Table, describe, raise_problems
from i2srf_kd.data.mixture_sources import AUDIO_SUFFIXES, draw_stretch, load_recordings
from i2srf_kd.data.pairs import check_pairs, match_pairs
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

HELD_OUT = ("valid", "test")
PEAK = 0.99  # of a mixture that would be clipped otherwise
_FILE_ID = re.compile(r"fileid_(\d+)$")  # as the DNS Challenge names the two files of a pair


@dataclass(frozen=True)
class FolderOptions:
    """How folders become sets."""

    fs: int = 16000  # Hz, of noise, responses and mixtures; speech is resampled in stage 2
    speaker_regex: Optional[str] = None  # its first group, found in a file's path below the folder, is the speaker
    held_out: float = 0.05  # share of speakers for validation and for test each, and of files of noise
    mixtures: int = 100  # for validation and for test each, at most
    snr: Tuple[float, float] = (0.0, 15.0)  # dB, on active speech
    seconds: float = 10.0  # of a mixture at most
    seed: int = 0


class Mixture(NamedTuple):
    """What is to be mixed."""

    utt_id: str
    speech: str
    noises: Tuple[str, ...]  # to choose from


def read_speech(folder: PathLike, speaker_regex: Optional[str]) -> DataDir:
    """Speech at any depth below a folder, as mixture and reference at once.

    The speaker is the first group of ``speaker_regex`` in a file's path below the folder; without it, the file's folder
    where there are several, else what comes before the first hyphen or underscore of its name.

    Raises:
        UserError: there is none, or the expression fits none or not all of them.
    """
    files = _list_audio(folder, "speech")
    names = {path: path.relative_to(folder).with_suffix("").as_posix() for path in files}
    speakers = _speakers(names, speaker_regex)
    table: Table = {}
    utt2spk: Table = {}
    for path, name in names.items():
        utt_id = re.sub(r"[\s/]+", "-", name)
        if utt_id in table:
            raise UserError(f"{table[utt_id]} and {path} would be the same utterance {utt_id}; rename one of them")
        table[utt_id], utt2spk[utt_id] = str(path.absolute()), re.sub(r"[\s/]+", "-", speakers[path])
    return DataDir(table, dict(table), utt2spk)


def _speakers(names: Dict[Path, str], speaker_regex: Optional[str]) -> Dict[Path, str]:
    if speaker_regex is None:
        folders = {path: name.rpartition("/")[0] for path, name in names.items()}
        several = len(set(folders.values())) > 1
        return {path: folders[path] if several else re.split("[-_]", path.stem)[0] for path in names}
    try:
        expression = re.compile(speaker_regex)
    except re.error as error:
        raise UserError(f"--speaker_regex {speaker_regex!r} is no regular expression: {error}") from None
    if expression.groups < 1:
        raise UserError(f"--speaker_regex {speaker_regex!r} needs a group, such as 'reader_([0-9]+)'")
    found = {path: expression.search(name) for path, name in names.items()}
    strangers = [names[path] for path, match in found.items() if not (match and match[1])]
    if strangers:
        raise UserError(f"--speaker_regex {speaker_regex!r} finds no speaker in {describe(strangers)}")
    return {path: match[1] for path, match in found.items() if match}


def split(names: Sequence[str], share: float, seed: int, parts: int) -> List[List[str]]:
    """Names for training, and for each of ``parts`` further sets a share of them; at least one each."""
    rest, held_out = sorted(set(names)), []
    for _ in range(parts):
        held_out.append(hold_out(rest, min(1.0, share * len(set(names)) / len(rest)), seed))
        rest = [name for name in rest if name not in held_out[-1]]
    return [rest, *held_out]


def split_speech(data: DataDir, options: FolderOptions, parts: int) -> List[DataDir]:
    """The speech of training, validation and, with two ``parts``, test; by speaker where there are enough of them."""
    speakers = list(data.spk2utt)
    if len(speakers) > parts:
        sets = split(speakers, options.held_out, options.seed, parts)
        return [data.subset(u for u, speaker in data.utt2spk.items() if speaker in chosen) for chosen in sets]
    if len(data) <= parts:
        raise UserError(f"{len(data)} file(s) of speech are too few for training, validation and test")
    logger.warning(
        f"speech: {len(speakers)} speaker(s) can be told apart ({describe(speakers)}), so that those of the training "
        "are heard in validation and test; --speaker_regex says where a file's path names its speaker"
    )
    return [data.subset(chosen) for chosen in split(data.utterances, options.held_out, options.seed, parts)]


def prepare_noise(folder: PathLike, out: Path, options: FolderOptions, parts: int, nj: int) -> List[Table]:
    """Files of noise, by name, at the rate of the training: those of training, validation and test.

    Raises:
        UserError: there are none, or one is silent or cannot be read.
    """
    files = at_rate(_list_audio(folder, "noise"), folder, out, options.fs, nj)
    load_recordings(files, options.fs, "--noise_dir")  # silent ones are named now, not when the training begins
    if len(files) > parts:
        sets = split(list(files), options.held_out, options.seed, parts)
    else:
        logger.warning(f"{folder}: {len(files)} file(s) of noise, heard in training, validation and test")
        sets = [list(files)] * (parts + 1)
    return [{name: files[name] for name in sorted(chosen)} for chosen in sets]


def at_rate(files: Sequence[Path], folder: PathLike, out: Path, fs: int, nj: int) -> Dict[str, str]:
    """Paths by name; files of another rate are copied to ``out`` at ``fs``, with one channel."""
    names = {re.sub(r"[\s/]+", "-", path.relative_to(folder).as_posix()): path for path in files}
    if len(names) < len(files):
        raise UserError(f"{folder}: two files have the same name but for white space; rename one of them")
    with ThreadPoolExecutor(nj) as threads:
        found = threads.map(partial(_at_rate, out=out, fs=fs), names.items())
        return dict(progress(found, total=len(names), desc=f"read {Path(folder).name}"))


def _at_rate(item: Tuple[str, Path], out: Path, fs: int) -> Tuple[str, str]:
    name, path = item
    if probe(path).fs == fs:
        return name, str(path.absolute())
    copy = out / f"{name}.flac"
    if not copy.is_file() or copy.stat().st_mtime < path.stat().st_mtime:
        write_audio(copy, read_audio(path, fs=fs, mono=True)[0], fs)
    return name, str(copy.absolute())


def write_mixtures(speech: DataDir, noises: Sequence[str], out: Path, options: FolderOptions, nj: int) -> DataDir:
    """Mix some utterances of a set, drawn by the seed, with noise, and write mixtures and references.

    Each depends on the seed and its own name alone.

    Raises:
        UserError: an utterance is silent.
    """
    order = np.random.default_rng(options.seed).permutation(speech.utterances)
    work = [Mixture(str(utt_id), speech.wav[str(utt_id)], tuple(noises)) for utt_id in order[: options.mixtures]]
    with ThreadPoolExecutor(nj) as threads:
        found = threads.map(partial(_mix, out=out, options=options), sorted(work))
        snrs = dict(progress(found, total=len(work), desc=f"mix {out.name}"))
    chosen = speech.subset(snrs)
    chosen.wav = {utt_id: str((out / "noisy" / f"{utt_id}.flac").absolute()) for utt_id in snrs}
    chosen.spk1 = {utt_id: str((out / "clean" / f"{utt_id}.flac").absolute()) for utt_id in snrs}
    chosen.extra = {"utt2snr": {utt_id: f"{snr:.2f}" for utt_id, snr in snrs.items()}}
    return chosen


def _mix(work: Mixture, out: Path, options: FolderOptions) -> Tuple[str, float]:
    random = np.random.default_rng([options.seed, zlib.crc32(work.utt_id.encode())])
    speech, fs = read_audio(work.speech, fs=options.fs, mono=True)
    speech = speech[: round(options.seconds * fs)]
    snr = float(random.uniform(*options.snr))
    for place in random.permutation(len(work.noises))[:10]:
        (recording,) = load_recordings({"": work.noises[place]}, fs, "--noise_dir")
        noise, _ = draw_stretch(recording, len(speech), random)
        gain = noise_gain(speech, noise, snr, fs)
        if gain is not None:
            break
    else:
        raise UserError(f"{work.speech}: nobody speaks in its first {options.seconds:g} s, or the noise is silent")
    mixture = speech + gain * noise
    scale = min(1.0, PEAK / max(float(np.abs(mixture).max()), float(np.abs(speech).max())))
    for kind, wave in (("noisy", mixture), ("clean", speech)):
        write_audio(out / kind / f"{work.utt_id}.flac", scale * wave, fs)
    return work.utt_id, snr


def read_pairs(folder: PathLike, speaker_regex: Optional[str] = None, nj: int = 8) -> DataDir:
    """Pairs of mixture and reference: ``wav.scp`` and ``spk1.scp`` in a folder, or folders ``noisy`` and ``clean``.

    In two folders, files belong together whose names are the same, or end with the same ``fileid_<number>`` (DNS).

    Raises:
        UserError: there are none, or some lack their counterpart or differ from it in rate or length.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / "wav.scp").is_file():
        return DataDir.read(folder)
    noisy_dir, clean_dir = (_subfolder(folder, name) for name in ("noisy", "clean"))
    noisy, clean = _by_key(noisy_dir), _by_key(clean_dir)
    pairs, problems = match_pairs(noisy, clean, noisy_dir, clean_dir)
    problems += check_pairs(pairs, nj)
    raise_problems(f"{folder} has {len(problems)} problem(s)", problems)
    speakers = _speakers({pair.clean: key for key, pair in pairs.items()}, speaker_regex)
    return DataDir(
        {key: str(pair.noisy.absolute()) for key, pair in pairs.items()},
        {key: str(pair.clean.absolute()) for key, pair in pairs.items()},
        {key: re.sub(r"[\s/]+", "-", speakers[pair.clean]) for key, pair in pairs.items()},
    )


def _subfolder(folder: Path, name: str) -> Path:
    found = search(folder, name, Path.is_dir)
    if found is None:
        raise UserError(
            f"{folder}: no folder {name}, and no wav.scp and spk1.scp, to find pairs in; there is {listing(folder)}"
        )
    return found


def _by_key(folder: Path) -> Dict[str, Path]:
    found: Dict[str, Path] = {}
    for path in _list_audio(folder, "pairs"):
        match = _FILE_ID.search(path.stem)
        name = f"fileid_{int(match[1])}" if match else path.relative_to(folder).with_suffix("").as_posix()
        key = re.sub(r"[\s/]+", "-", name)
        if key in found:
            raise UserError(f"{found[key]} and {path} are the same utterance {key}; remove one of them")
        found[key] = path
    return found


def _list_audio(folder: PathLike, use: str) -> List[Path]:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of {use}")
    passed_over: List[str] = []
    found = find_audio(folder, AUDIO_SUFFIXES, passed_over.append)
    if passed_over:  # half a corpus would be used without anybody noticing
        raise_problems(f"{folder}: {len(passed_over)} problem(s)", passed_over)
    if not found:
        raise UserError(
            f"{folder}: no audio files of {use} ({' '.join(sorted(AUDIO_SUFFIXES))}) in it or below, but "
            f"{listing(folder)}"
        )
    return found
