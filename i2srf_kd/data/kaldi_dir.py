"""Kaldi data folders: one line per utterance in ``wav.scp`` (mixture), ``spk1.scp`` (reference), ``utt2spk``, ...

Format: https://kaldi-asr.org/doc/data_prep.html. The first blank ends the utterance id, so paths may hold blanks.
Recordings whose channels lie in several files have the further ones in ``wav_2.scp``, ``wav_3.scp``, ... (ours);
formatting joins them. Formatting also takes what else Kaldi allows: commands that print audio (``sph2pipe x.sph |``)
and ``segments`` (``<utterance> <recording> <begin> <end>``, in seconds), which make utterances of parts of recordings.
"""

import codecs
import io
import itertools
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

from i2srf_kd.audio.ark import file_of
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, write_text

Table = Dict[str, str]
Span = Tuple[float, float]  # begin and end in seconds; an end below 0 is that of the recording
SEGMENTS = "segments"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
EXTRA_TABLES = ("utt2snr", "utt2noise", "utt2num_samples", "text")


def read_table(path: PathLike, ordered: bool = True) -> Table:
    """Read a file of ``<id> <value>`` lines.

    Args:
        path: the file.
        ordered: refuse a file that is not sorted by id.

    Raises:
        UserError: the file is missing, not UTF-8, not sorted, or has a line without value or with an id seen before.
    """
    table: Table = {}
    previous = ""
    for number, line in enumerate(read_lines(path), 1):
        key, value = (re.split(r"[ \t]+", line.strip(" \t\r"), maxsplit=1) + [""])[:2]
        where = f"{path}:{number}"
        if not key or not value:
            raise UserError(f"{where}: expected '<id> <value>', found {line!r}")
        if key in table:
            raise UserError(f"{where}: {key} is listed twice; remove one of the lines")
        if ordered and key < previous:
            raise UserError(f"{where}: {key} comes after {previous}; sort the file with LC_ALL=C sort -o {path} {path}")
        table[key] = value
        previous = key
    return table


def read_audio_table(path: PathLike, ordered: bool = True) -> Table:
    """Read an scp whose values are audio files; the arguments are those of :func:`read_table`.

    Raises:
        UserError: as :func:`read_table`; or it is empty, has commands (pipes) in place of files, or lies beside a file
            ``segments``, so that it lists recordings.
    """
    table = beside_table(read_table(path, ordered), path)
    _refuse_segments(Path(path).parent)
    _check_audio_files(str(path), table)
    return table


def beside_table(table: Table, path: PathLike) -> Table:
    """Audio files of a table, where they are now when the table's folder was moved or copied with the audio in it.

    Args:
        table: as it was read.
        path: where from.
    """
    folder = Path(os.path.abspath(path)).parent

    def moved(value: str) -> str:
        _, within, name = value.rpartition(f"/{folder.name}/")
        return str(Path(path).parent / name) if within else value

    first = next(iter(table.values()), "")
    if os.path.exists(file_of(first)) or not os.path.exists(file_of(moved(first))):
        return table
    return {utt_id: moved(value) for utt_id, value in table.items()}


def _refuse_segments(folder: Path) -> None:
    if (folder / SEGMENTS).is_file():
        raise UserError(f"{folder / SEGMENTS}: utterances are parts of recordings; format the set first (stage 2)")


def _check_audio_files(name: str, table: Table) -> None:
    if not table:
        raise UserError(f"{name}: no utterances")
    pipes = sorted(utt_id for utt_id, value in table.items() if is_command(value))
    if pipes:
        raise UserError(f"{name}: commands (pipes) in place of audio files for {describe(pipes)}; format the set first")


def is_command(value: str) -> bool:
    """Whether an entry of an scp is a command that prints audio, not a file."""
    return value.endswith("|")


def _read_segments(path: Path) -> Dict[str, Tuple[str, Span]]:
    """Recording and span of every utterance.

    Raises:
        UserError: as :func:`read_table`, or a line is malformed, or there is none.
    """
    segments = {}
    for utt_id, value in read_table(path).items():
        try:
            recording, begin, end = value.split()
            span = (float(begin), float(end))
        except ValueError:
            raise UserError(f"{path}: {utt_id} {value}: expected '<utterance> <recording> <begin> <end>'") from None
        if not (0 <= span[0] < span[1] < math.inf or span[0] >= 0 > span[1]):
            raise UserError(f"{path}: {utt_id} begins at {begin} s and ends at {end} s")
        segments[utt_id] = (recording, span)
    if not segments:
        raise UserError(f"{path}: no utterances; remove it where the recordings are the utterances")
    return segments


def read_lines(path: PathLike) -> List[str]:
    """Lines of a text file in UTF-8, or in UTF-16 with a byte order mark, as Windows writes it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        text = content.decode("utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: not UTF-8 text ({error.reason} in line {line}, at byte {error.start}); convert it with iconv, "
            "and rename files whose names are not UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: not UTF-8 text but UTF-16, or no text; convert it with iconv -f UTF-16LE -t UTF-8")
    lines = io.StringIO(text, newline=None).read().split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def write_table(path: PathLike, table: Mapping[str, object]) -> None:
    """Write ``<id> <value>`` lines sorted by id, atomically.

    Raises:
        UserError: an id is empty or holds white space, or a value is empty, holds a line break
            or begins or ends with white space, or one of them is not UTF-8.
    """
    for key, value in table.items():
        text = str(value)
        if problem := why_no_id(key):
            raise UserError(f"{path}: {key!r} {problem}")
        if not _is_utf8(text):
            raise UserError(f"{path}: {key!r} {text!r}: not UTF-8; rename the file")
        if not text or text != text.strip() or "\n" in text or "\r" in text:
            raise UserError(
                f"{path}: {text!r} cannot be the value of {key}: it is empty, begins or ends with white space, "
                "or holds a line break"
            )
    write_text(path, "".join(f"{key} {table[key]}\n" for key in sorted(table)))


def why_no_id(text: str) -> str:
    """What keeps a name from being an id; empty where it can be one."""
    if not text or re.search(r"\s", text):
        return "cannot be an id: it is empty or holds white space"
    return "" if _is_utf8(text) else "cannot be an id: not UTF-8; rename the file"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_shard(text: str) -> Tuple[int, int]:
    """``"i/N"`` to ``(i, N)``, with ``1 <= i <= N``.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: expected i/N with 1 <= i <= N, such as 1/4")
    return int(match[1]), int(match[2])


@dataclass
class DataDir:
    """Utterances of a set: mixtures, references and speakers, all with the same ids.

    Attributes:
        wav: audio file of the mixture per utterance (``wav.scp``).
        spk1: audio file of the clean reference per utterance (``spk1.scp``).
        utt2spk: speaker per utterance.
        extra: further tables by file name (those in ``EXTRA_TABLES``); they may lack utterances.
        more_wav: further audio files of the mixture, whose channels follow those of ``wav`` (``wav_2.scp``, ...).
        spans: the part of its recordings that an utterance is, for all utterances or for none.
    """

    wav: Table
    spk1: Table
    utt2spk: Table
    extra: Dict[str, Table] = field(default_factory=dict)
    more_wav: List[Table] = field(default_factory=list)
    spans: Dict[str, Span] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.wav)

    @property
    def utterances(self) -> List[str]:
        """Sorted ids."""
        return sorted(self.wav)

    def mixture_files(self, utt_id: str) -> Tuple[str, ...]:
        """Audio files of a mixture, in the order of its channels."""
        return (self.wav[utt_id], *(table[utt_id] for table in self.more_wav))

    @property
    def spk2utt(self) -> Dict[str, List[str]]:
        """Sorted utterances of each speaker, speakers sorted."""
        speakers: Dict[str, List[str]] = {speaker: [] for speaker in sorted(set(self.utt2spk.values()))}
        for utt_id in sorted(self.utt2spk):
            speakers[self.utt2spk[utt_id]].append(utt_id)
        return speakers

    @classmethod
    def read(cls, path: PathLike, unformatted: bool = False) -> "DataDir":
        """Read and validate a folder; without ``utt2spk`` each utterance is its own speaker, as in Kaldi.

        Args:
            path: the folder.
            unformatted: also take commands in place of audio files, and ``segments``.

        Raises:
            UserError: a file is missing, malformed, unsorted, or disagrees with ``wav.scp`` about the utterances.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{path}: no such data folder")
        if not unformatted:
            _refuse_segments(folder)
        segments = _read_segments(folder / SEGMENTS) if (folder / SEGMENTS).is_file() else {}

        def read_scp(file: Path) -> Table:
            table = beside_table(read_table(file), file)
            absent = sorted({recording for recording, _ in segments.values()} - table.keys())
            if segments and absent:
                raise UserError(f"{file} lacks {describe(absent)}, recordings of {folder / SEGMENTS}")
            return {utt_id: table[recording] for utt_id, (recording, _) in segments.items()} if segments else table

        wav = read_scp(folder / "wav.scp")
        has_speakers = (folder / "utt2spk").is_file()
        data = cls(
            wav=wav,
            spk1=read_scp(folder / "spk1.scp"),
            utt2spk=read_table(folder / "utt2spk") if has_speakers else {utt_id: utt_id for utt_id in wav},
            extra={name: read_table(folder / name) for name in EXTRA_TABLES if (folder / name).is_file()},
            more_wav=[read_scp(file) for file in _further_files(folder)],
            spans={utt_id: span for utt_id, (_, span) in segments.items()},
        )
        data.validate(str(folder), unformatted)
        if (folder / "spk2utt").is_file():
            written = {speaker: " ".join(utts.split()) for speaker, utts in read_table(folder / "spk2utt").items()}
            if written != {speaker: " ".join(utts) for speaker, utts in data.spk2utt.items()}:
                raise UserError(f"{folder / 'spk2utt'} does not agree with utt2spk; delete it or make it anew")
        return data

    def validate(self, name: str = "data", commands: bool = False) -> None:
        """Check that all tables hold the same utterances, at least one, and audio files or, if allowed, commands.

        Raises:
            UserError: naming the table and the first utterances in question.
        """
        if not self.wav:
            raise UserError(f"{name}/wav.scp: no utterances")
        further = {_further_name(number): table for number, table in enumerate(self.more_wav)}
        tables = {"spk1.scp": self.spk1, "utt2spk": self.utt2spk, **further}
        for file, table in tables.items():
            missing = sorted(self.wav.keys() - table.keys())
            surplus = sorted(table.keys() - self.wav.keys())
            if missing:
                raise UserError(f"{name}/{file} lacks {describe(missing)} of wav.scp")
            if surplus:
                raise UserError(f"{name}/{file} has {describe(surplus)} that wav.scp lacks")
        for file, table in self.extra.items():
            surplus = sorted(table.keys() - self.wav.keys())
            if surplus:
                raise UserError(f"{name}/{file} has {describe(surplus)} that wav.scp lacks")
        for file, table in {"wav.scp": self.wav, "spk1.scp": self.spk1, **further}.items():
            if not commands:
                _check_audio_files(f"{name}/{file}", table)

    def write(self, path: PathLike) -> None:
        """Write the folder; ``wav.scp`` comes last, so that its presence means a complete folder.

        Raises:
            UserError: the tables do not fit together or hold something that cannot be written.
        """
        folder = Path(path)
        assert not self.spans, "parts of recordings have no form but segments, which is not written"
        self.validate(str(folder))
        (folder / "wav.scp").unlink(missing_ok=True)
        for file in [*(folder / name for name in EXTRA_TABLES), *_further_files(folder)]:
            file.unlink(missing_ok=True)
        for number, table in enumerate(self.more_wav):
            write_table(folder / _further_name(number), table)
        for name, table in self.extra.items():
            write_table(folder / name, table)
        write_table(folder / "utt2spk", self.utt2spk)
        write_table(folder / "spk2utt", {speaker: " ".join(utts) for speaker, utts in self.spk2utt.items()})
        write_table(folder / "spk1.scp", self.spk1)
        write_table(folder / "wav.scp", self.wav)

    def subset(self, utterances: Iterable[str]) -> "DataDir":
        """The named utterances.

        Raises:
            UserError: one of them is not there.
        """
        wanted = sorted(set(utterances))
        unknown = [utt_id for utt_id in wanted if utt_id not in self.wav]
        if unknown:
            raise UserError(f"the data lack {describe(unknown)}")
        extra = {name: {u: table[u] for u in wanted if u in table} for name, table in self.extra.items()}
        return DataDir(
            wav={u: self.wav[u] for u in wanted},
            spk1={u: self.spk1[u] for u in wanted},
            utt2spk={u: self.utt2spk[u] for u in wanted},
            extra={name: table for name, table in extra.items() if table},
            more_wav=[{u: table[u] for u in wanted} for table in self.more_wav],
            spans={u: self.spans[u] for u in wanted if u in self.spans},
        )

    def joined(self, other: "DataDir") -> "DataDir":
        """The utterances of both, which must be different ones and lie in as many files each.

        Raises:
            UserError: they are not.
        """
        shared = sorted(self.wav.keys() & other.wav.keys())
        if shared or len(self.more_wav) != len(other.more_wav):
            why = f"both hold {describe(shared)}" if shared else "their mixtures lie in different numbers of files"
            raise UserError(f"two sets cannot be joined: {why}")
        names = self.extra.keys() | other.extra.keys()
        return DataDir(
            wav={**self.wav, **other.wav},
            spk1={**self.spk1, **other.spk1},
            utt2spk={**self.utt2spk, **other.utt2spk},
            extra={name: {**self.extra.get(name, {}), **other.extra.get(name, {})} for name in sorted(names)},
            more_wav=[{**a, **b} for a, b in zip(self.more_wav, other.more_wav, strict=True)],
        )

    def shard(self, index: int, count: int) -> "DataDir":
        """Part ``index`` (1-based) of ``count``: every ``count``-th utterance; it may be empty."""
        return self.subset(self.utterances[index - 1 :: count])


def _further_name(number: int) -> str:
    return f"wav_{number + 2}.scp"


def _further_files(folder: Path) -> List[Path]:
    """``wav_2.scp`` and so on, as far as they are there without a gap."""
    files = (folder / _further_name(number) for number in itertools.count())
    return list(itertools.takewhile(Path.is_file, files))


def describe(names: Sequence[str], limit: int = 5) -> str:
    """Some names and how many more there are, for messages."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ("utterance " if len(names) == 1 else "utterances ") + ", ".join(names[:limit]) + more


def raise_problems(title: str, problems: Sequence[str], limit: int = 20) -> None:
    """Report all problems of a corpus at once.

    Raises:
        UserError: there are problems; the message shows the first ``limit`` and says how many more there are.
    """
    if problems:
        more = [f"... and {len(problems) - limit} more"] if len(problems) > limit else []
        raise UserError("\n  ".join([f"{title}:", *problems[:limit], *more]))
