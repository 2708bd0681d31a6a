"""L3DAS23 Task 1 (3D speech enhancement): finding the published folders, checking and reading them.

    folders = find_sets("/data/l3das23", ["train100", "dev"], unpack_dir="downloads")
    data, problems = read_set("dev", folders["dev"], num_mics=2)

Layout: ``L3DAS23_Task1_{train100,train360,dev}/{data,labels}``, train360 in two parts; ``data/<id>_A.wav`` and
``data/<id>_B.wav`` (two first-order Ambisonics microphones, 4 channels each, AmbiX order W, Y, Z, X),
``labels/<id>.wav`` (mono) and, if at all, ``labels/<id>.txt`` (transcript). 16 kHz.
"""

import logging
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from i2srf_kd.audio.folders import is_hidden, walk
from i2srf_kd.audio.io import probe
from i2srf_kd.corpora.archive import unzip
from i2srf_kd.corpora.preparation import DEPTH
from i2srf_kd.data.kaldi_dir import DataDir, raise_problems, read_lines
from i2srf_kd.data.pairs import list_audio
from i2srf_kd.system.errors import UserError, writing
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.locks import held
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

SETS = ("train100", "train360", "dev")
SET_PREFIX = "L3DAS23_Task1_"
FS = 16000  # Hz
MAX_SECONDS = 12.0
MICROPHONES = ("A", "B")
AMBISONICS_CHANNELS = 4
WAIT_SECONDS = 24 * 3600.0  # for another process that downloads or unpacks the corpus
_KINDS = ("data", "labels")
PARTS = {"train360": 2}  # of sets that are published in several
_TASK_2 = re.compile(r"(?:^|[_-])task[_-]?2", re.IGNORECASE)  # whose sets have the same names
# "L3DAS23_Task1_train360_2", "train360-part2", "l3das23_task1_dev"
_SET_NAME = re.compile(rf"(?:.*[_-])?({'|'.join(SETS)})(?:[_-]?(?:part[_-]?)?(\d))?", re.IGNORECASE)


class Part(NamedTuple):
    """A set, or the part of one that a folder or archive holds."""

    name: str  # one of SETS
    number: int  # 1-based; 0: the name does not say


class Utterance(NamedTuple):
    """Audio files of an utterance, one mixture per microphone."""

    mixtures: Tuple[Path, ...]
    label: Path


def speaker_of(utt_id: str) -> str:
    """What comes before the first hyphen or underscore (LibriSpeech's ``<speaker>-<chapter>-<number>``)."""
    return re.split("[-_]", utt_id, maxsplit=1)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Folders and archives


def find_sets(corpus_dir: PathLike, wanted: Sequence[str], unpack_dir: PathLike) -> Dict[str, List[Path]]:
    """Folders of sets, after unpacking what lies there only as zip archive.

    Args:
        corpus_dir: has folders or archives, in any depth up to 4; archives of one set, of a part or of all of them.
        wanted: names of sets.
        unpack_dir: for unpacked archives.

    Returns:
        Per set the folders with ``data/`` and ``labels/``, several for a set in parts.

    Raises:
        UserError: a set or a part of it is missing, or an archive is bad.
    """
    found = _find_parts(Path(corpus_dir))
    for archive in _find_archives(Path(corpus_dir)):
        inside = {part: files for part, files in _files_in(archive).items() if part.name in wanted}
        found += [there for part, files in inside.items() for there in _merged_by_hand(part, files, found)]
        if inside.keys() - {part for part, _ in found}:
            # Preparing for one and for two microphones may run at the same time, as jobs.
            with writing(unpack_dir), held(Path(unpack_dir, ".lock"), str(unpack_dir), WAIT_SECONDS):
                found += _find_parts(unzip(archive, Path(unpack_dir, archive.stem)))
    problems = [problem for name in wanted for problem in _missing(name, [p for p, _ in found if p.name == name])]
    raise_problems(f"--corpus_dir {corpus_dir}: not complete, neither as folders nor as zip archives", problems)
    return {name: sorted({folder for part, folder in found if part.name == name}) for name in wanted}


def _missing(name: str, parts: Sequence[Part]) -> List[str]:
    published = f"{SET_PREFIX}{name} with data/ and labels/"
    if not parts:
        return [f"no folder {published}"]
    numbers = {part.number for part in parts} - {0}
    absent = set(range(1, PARTS.get(name, 1) + 1)) - numbers if numbers else set()
    return [f"part {number} of {published}" for number in sorted(absent)]


def _walk(root: Path) -> Iterator[Tuple[Path, List[str], List[str]]]:
    """Folders, their subfolders and files, from ``root`` down to where sets may lie."""
    for folder, subfolders, files in walk(root, logger.warning, DEPTH):
        subfolders[:] = [name for name in subfolders if not _is_foreign(name)]
        yield folder, list(subfolders), files
        subfolders[:] = [name for name in subfolders if name not in _KINDS]


def _is_foreign(name: str) -> bool:
    """Whether a folder or archive of this name has nothing to do with the task."""
    return is_hidden(name) or _TASK_2.search(name) is not None


def _find_parts(root: Path) -> List[Tuple[Part, Path]]:
    """Folders below ``root`` (or itself) that hold ``data`` or ``labels``, with what their path says they are."""
    found = []
    for folder, subfolders, _ in _walk(root):
        part = _part_of([root.resolve().name, *folder.relative_to(root).parts])
        if part is not None and set(_KINDS) & set(subfolders):
            found.append((part, folder))
    return found


def _find_archives(root: Path) -> List[Path]:
    """Zip archives below ``root``, but for those of the other task."""
    names = ((folder, name) for folder, _, files in _walk(root) for name in files if not _is_foreign(name))
    return sorted(Path(folder, name) for folder, name in names if name.lower().endswith(".zip"))


def _part_of(names: Iterable[str]) -> Optional[Part]:
    """The innermost folder that is named after a set tells which; any on the way may tell the number of the part."""
    matches = [match for name in names if (match := _SET_NAME.fullmatch(name))]
    if not matches:
        return None
    numbers = [int(match[2]) for match in matches if match[2]]
    return Part(matches[-1][1].lower(), numbers[-1] if numbers else 0)


def _files_in(archive: Path) -> Dict[Part, Set[str]]:
    """``data/<name>.wav`` and ``labels/<name>.wav`` of the parts that an archive holds, by its name and its folders."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [PurePosixPath(name) for name in file.namelist()]
    except (zipfile.BadZipFile, OSError):
        members = [PurePosixPath("data/?.wav")]  # its name decides, and unpacking says what is wrong with it
    by_folder: Dict[PurePosixPath, Set[str]] = {}
    for member in members:
        if member.suffix.lower() == ".wav" and member.parent.name in _KINDS:
            by_folder.setdefault(member.parent, set()).add(f"{member.parent.name}/{member.name}")
    found: Dict[Part, Set[str]] = {}
    for folder, files in by_folder.items():
        part = None if any(map(_is_foreign, folder.parts)) else _part_of([archive.stem, *folder.parts])
        if part is not None:
            found.setdefault(part, set()).update(files)
    return found


def _merged_by_hand(part: Part, files: Set[str], found: Sequence[Tuple[Part, Path]]) -> List[Tuple[Part, Path]]:
    """The folders of a set as those of a part of it, when they hold all its files and their names do not say so."""
    if part in {other for other, _ in found}:
        return []
    folders = sorted({folder for other, folder in found if other.name == part.name})
    there = {f"{kind}/{path.name}" for folder in folders for kind in _KINDS for path in folder.glob(f"{kind}/*")}
    return [(part, folder) for folder in folders] if files <= there else []


# ---------------------------------------------------------------------------------------------------------------------
# Utterances


def read_set(name: str, folders: Sequence[PathLike], num_mics: int, threads: int = 8) -> Tuple[DataDir, List[str]]:
    """Tables of a set and a description of everything that is wrong with it.

    Args:
        name: of the set, for the progress shown.
        folders: those of all its parts.
        num_mics: 1 for A alone, 2 for A and B.
        threads: that read headers.
    """
    mixtures, problems = _list_once(folders, "data")
    labels, more = _list_once(folders, "labels")
    problems += more
    if not mixtures and not labels:
        problems.append(f"{', '.join(map(str, folders))}: no .wav files in data/ and labels/")
    utterances, more = _match(mixtures, labels, MICROPHONES[:num_mics])
    problems += more
    with ThreadPoolExecutor(threads) as pool:
        checks = pool.map(_check_headers, utterances.values())
        for found in progress(checks, total=len(utterances), desc=f"check headers of {name}"):
            problems += found
    per_mic = [{u: _text(utt.mixtures[mic]) for u, utt in utterances.items()} for mic in range(num_mics)]
    transcripts = dict(_read_transcripts(utterances))
    return DataDir(
        wav=per_mic[0],
        spk1={u: _text(utt.label) for u, utt in utterances.items()},
        utt2spk={u: speaker_of(u) for u in utterances},
        extra={"text": transcripts} if transcripts else {},
        more_wav=per_mic[1:],
    ), problems


def _text(path: Path) -> str:
    return os.path.normpath(path)


def _list_once(folders: Sequence[PathLike], kind: str) -> Tuple[Dict[str, Path], List[str]]:
    """Files of ``data/`` or ``labels/`` over all parts, by name without suffix."""
    found: Dict[str, Path] = {}
    problems: List[str] = []
    for folder in folders:
        if not Path(folder, kind).is_dir():
            continue  # parts may divide data and labels
        for name, path in list_audio(Path(folder, kind), problems.append).items():
            if name in found:
                problems.append(f"{path}: also in another part, as {found[name]}; remove one of them")
            found.setdefault(name, path)
    return found, problems


def _match(
    mixtures: Dict[str, Path], labels: Dict[str, Path], microphones: Sequence[str]
) -> Tuple[Dict[str, Utterance], List[str]]:
    problems = []
    for name, path in sorted(mixtures.items()):
        utt_id, _, microphone = name.rpartition("_")
        if not utt_id or microphone not in MICROPHONES:
            problems.append(f"{path}: not called <utterance>_A.wav or <utterance>_B.wav")
        elif utt_id not in labels and microphone in microphones:
            problems.append(f"{path}: no label {utt_id}.wav")
    utterances = {}
    for utt_id, label in sorted(labels.items()):
        absent = [f"{utt_id}_{mic}.wav" for mic in microphones if f"{utt_id}_{mic}" not in mixtures]
        if absent:
            hint = "; --num_mics 1 needs A alone" if absent == [f"{utt_id}_B.wav"] else ""
            problems.append(f"{label}: no mixture {' and no '.join(absent)}{hint}")
        else:
            utterances[utt_id] = Utterance(tuple(mixtures[f"{utt_id}_{mic}"] for mic in microphones), label)
    return utterances, problems


def _check_headers(utt: Utterance) -> List[str]:
    """What is wrong with the files of one utterance."""
    try:
        label = probe(utt.label)
        headers = [(path, probe(path), AMBISONICS_CHANNELS) for path in utt.mixtures] + [(utt.label, label, 1)]
    except UserError as error:
        return [str(error)]
    problems = []
    for path, header, channels in headers:
        if header.channels != channels:
            problems.append(f"{path}: {header.channels} channel(s) instead of {channels}")
        if header.fs != FS:
            problems.append(f"{path}: {header.fs} Hz instead of {FS} Hz")
        elif label.fs == FS and header.frames != label.frames:
            problems.append(f"{path}: {header.frames} samples, its label {utt.label} has {label.frames}")
    return problems


def _read_transcripts(utterances: Dict[str, Utterance]) -> Iterator[Tuple[str, str]]:
    for utt_id, utt in utterances.items():
        file = utt.label.with_suffix(".txt")
        if file.is_file():
            text = " ".join(" ".join(read_lines(file)).split())
            if text:
                yield utt_id, text
