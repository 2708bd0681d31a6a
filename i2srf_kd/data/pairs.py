"""Mixtures and clean references: corpora that keep them in two folders under the same names, and clips of a set."""

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from i2srf_kd.audio.folders import Report, find_audio
from i2srf_kd.audio.io import AudioInfo, probe, read_audio
from i2srf_kd.data.kaldi_dir import read_audio_table, why_no_id
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.progress import progress


class NoisyClean(NamedTuple):
    """Audio files of an utterance."""

    noisy: Path
    clean: Path


def find_pairs(noisy_dir: PathLike, clean_dir: PathLike) -> Tuple[Dict[str, NoisyClean], List[str]]:
    """Match the .wav files of two folders, and of those below them, by name.

    Args:
        noisy_dir: folder of the mixtures.
        clean_dir: folder of the references.

    Returns:
        Pairs by utterance (file name without suffix), sorted, and a description of every file without counterpart, or
        with a name that cannot be an id, and of what was passed over.

    Raises:
        UserError: a folder is missing or without audio files, or an utterance is there twice.
    """
    problems: List[str] = []
    noisy, clean = list_audio(noisy_dir, problems.append), list_audio(clean_dir, problems.append)
    for folder, found in ((noisy_dir, noisy), (clean_dir, clean)):
        if not found:
            raise UserError("\n  ".join([f"{folder}: no .wav files there", *problems]))
    problems += [f"{noisy[utt_id]}: {why_no_id(utt_id)}" for utt_id in sorted(noisy) if why_no_id(utt_id)]
    pairs, lone = match_pairs(noisy, clean, noisy_dir, clean_dir)
    return pairs, problems + lone


def match_pairs(
    noisy: Mapping[str, Path], clean: Mapping[str, Path], noisy_dir: PathLike, clean_dir: PathLike
) -> Tuple[Dict[str, NoisyClean], List[str]]:
    """Pairs of the files of two folders, by utterance, sorted; and a description of every file without counterpart."""
    lone = [f"{noisy[utt_id]}: no clean counterpart in {clean_dir}" for utt_id in sorted(noisy.keys() - clean)]
    lone += [f"{clean[utt_id]}: no noisy counterpart in {noisy_dir}" for utt_id in sorted(clean.keys() - noisy)]
    return {utt_id: NoisyClean(noisy[utt_id], clean[utt_id]) for utt_id in sorted(noisy.keys() & clean)}, lone


def list_audio(folder: PathLike, report: Report) -> Dict[str, Path]:
    """The .wav files of a folder (in any case) and those below it, by name without suffix, sorted.

    Args:
        folder: where to look; hidden files are ignored.
        report: is told what is passed over, see :func:`i2srf_kd.audio.folders.find_audio`.

    Raises:
        UserError: the folder is missing, or two files differ in their folder, in the case of their suffix alone, or in
            how Unicode spells their name.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    found: Dict[str, Path] = {}
    for path in find_audio(folder, {".wav"}, report):
        name = unicodedata.normalize("NFC", path.stem)  # systems differ in how they spell letters with accents
        if name in found:
            raise UserError(f"{found[name]} and {path} are the same utterance; remove one of them")
        found[name] = path
    return found


def check_pairs(pairs: Mapping[str, NoisyClean], threads: int = 8, desc: str = "check headers") -> List[str]:
    """Read the headers of all files and compare mixture and reference.

    Returns:
        A description of every pair with an unreadable file or with different sampling rates or lengths.
    """
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda utt_id: _compare(utt_id, pairs[utt_id]), pairs)
        return [problem for problem in progress(found, total=len(pairs), desc=desc) if problem]


def _compare(utt_id: str, pair: NoisyClean) -> Optional[str]:
    try:
        noisy, clean = probe(pair.noisy), probe(pair.clean)
    except UserError as error:
        return f"{utt_id}: {error}"
    differences = _differences(noisy, clean)
    return f"{utt_id}: {pair.noisy} and {pair.clean} differ in {differences}" if differences else None


def _differences(noisy: AudioInfo, clean: AudioInfo) -> str:
    found = []
    if noisy.fs != clean.fs:
        found.append(f"sampling rate ({noisy.fs} and {clean.fs} Hz)")
    if noisy.frames != clean.frames:
        found.append(f"length ({noisy.frames} and {clean.frames} samples)")
    return " and ".join(found)


def read_clips(data_dir: PathLike, clips: int, samples: int, fs: int) -> np.ndarray:
    """Mixtures and clean speech ``(2, clips, samples)``, float32: the middle of the first long enough utterances.

    Args:
        data_dir: a set, with ``wav.scp`` and ``spk1.scp``.
        clips: how many.
        samples: length of each.
        fs: rate in Hz that the set has.

    Raises:
        UserError: there are too few of them, at another rate, or without clean speech.
    """
    mixtures, references = (read_audio_table(Path(data_dir) / name) for name in ("wav.scp", "spk1.scp"))
    batch: List[np.ndarray] = []
    for utt_id, path in mixtures.items():
        if len(batch) == clips:
            break
        if utt_id not in references:
            raise UserError(f"{Path(data_dir) / 'spk1.scp'} has no {utt_id}, which wav.scp has")
        pair = [read_audio(file) for file in (path, references[utt_id])]
        if any(rate != fs for _, rate in pair):
            raise UserError(f"{path} is not at {fs} Hz: give a folder that stage 2 wrote")
        start = (len(pair[0][0]) - samples) // 2
        if start >= 0:
            batch.append(np.stack([wave[start : start + samples] for wave, _ in pair]))
    if len(batch) < clips:
        length = f"{samples / fs:g} s"
        raise UserError(f"{data_dir} has fewer than {clips} utterances of {length}: lower --batch or --seconds")
    return np.stack(batch, 1)
