"""Bring a data folder to one sampling rate and one audio format.

    format_data("data/train", "dump/raw/train", FormatOptions(fs=16000, audio_format="flac"), nj=4)

With ``flac.ark`` or ``wav.ark`` the audio of each shard goes into two archives (:mod:`i2srf_kd.audio.ark`), for file
systems on which opening many files is slow.

What happens to bad audio: pairs of mixture and reference that are broken (unreadable, truncated, NaN, different length
or rate) are all named and end the run with an error, after the good ones are written. Pairs without samples or with a
silent side are left out, counted in a warning and listed in ``dropped.tsv``.
"""

import io
import json
import logging
import os
import subprocess
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import soundfile

from i2srf_kd.audio.ark import file_of, split_place
from i2srf_kd.audio.io import MAX_FLAC_CHANNELS, AudioInfo, checked_samples, probe, read_audio, write_audio
from i2srf_kd.audio.resample import resample
from i2srf_kd.data.kaldi_dir import DataDir, Span, describe, is_command, raise_problems
from i2srf_kd.system.errors import NotWritten, UserError, cannot_write
from i2srf_kd.system.files import PathLike, atomic_path, remove_temporaries, write_text
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

AUDIO_FORMATS = ("flac", "wav", "flac.ark", "wav.ark")
MAX_CHANNELS = 16
SILENCE = 2.0**-15  # one step of 16 bit
_SUBTYPE = "PCM_16"
_OVERSHOOT = 0.5  # seconds that a segment may end after its recording, as in Kaldi
_SAVE_EVERY = 200  # utterances between two savings of the record


class FormatOptions(NamedTuple):
    """What the formatted audio depends on beside its source."""

    fs: int = 16000  # Hz
    audio_format: str = "flac"  # one of AUDIO_FORMATS, all with 16 bit

    @property
    def codec(self) -> str:
        """``flac`` or ``wav``."""
        return self.audio_format.removesuffix(".ark")

    @property
    def in_arks(self) -> bool:
        """Whether the audio goes into archives."""
        return self.audio_format.endswith(".ark")


class Utterance(NamedTuple):
    """An utterance and its audio files; the channels of several files of the mixture follow each other."""

    utt_id: str
    noisy: Tuple[str, ...]
    clean: str
    span: Optional[Span] = None  # of the recordings, in seconds; None: all of them

    @property
    def files(self) -> List[str]:
        """All files or commands, with the mixture's first one and the reference at the beginning."""
        return [self.noisy[0], self.clean, *self.noisy[1:]]

    @property
    def source(self) -> List[Any]:
        """What tells where the utterance is from, as records hold it."""
        return [*self.files, *(self.span or ())]

    @property
    def has_commands(self) -> bool:
        """Whether a command prints some of the audio. Nobody knows whether it would print the same again."""
        return any(is_command(file) for file in self.files)


class Record(NamedTuple):
    """What became of an utterance. ``key`` tells whether it would come out the same again."""

    key: List[Any]
    samples: int = 0  # per channel, after resampling
    clipped: int = 0  # samples
    sizes: Tuple[int, ...] = ()  # bytes of the written files or entries, mixture first
    dropped: str = ""  # reason, empty when it was written
    broken: str = ""  # reason, likewise
    places: Tuple[str, ...] = ()  # of the entries in archives, likewise: "<file in audio/>:<place>"


def format_data(in_dir: PathLike, out_dir: PathLike, options: FormatOptions, nj: int = 1) -> DataDir:
    """Format a whole data folder with ``nj`` processes; see :func:`format_shard` and :func:`collect`."""
    format_shard(in_dir, out_dir, options, nj=nj)
    return collect(in_dir, out_dir, options)


def format_shard(
    in_dir: PathLike, out_dir: PathLike, options: FormatOptions, index: int = 1, count: int = 1, nj: int = 1
) -> None:
    """Format every ``count``-th utterance into ``out_dir/audio/{noisy,clean}/<utterance>.<format>``, or into archives,
    ``out_dir/audio/{noisy,clean}.<index>-of-<count>.ark``.

    A mixture in several files (``wav.scp``, ``wav_2.scp``, ...) becomes one with the channels of all. An entry that
    ends with ``|`` is a command whose output is read; with ``segments``, it runs once for each utterance.

    Audio that is already there, complete and from the same unchanged source with the same options, is kept, also if
    it was made with another number of shards; that of commands never is. Archives are kept or written anew as a whole.

    Args:
        in_dir: data folder with ``wav.scp`` (and where the mixture lies in several files ``wav_2.scp``, ...) and
            ``spk1.scp``.
        out_dir: where audio and records go; not ``in_dir``.
        options: rate and format.
        index: number of this shard, 1-based.
        count: number of shards.
        nj: processes.

    Raises:
        UserError: an option is out of range, or pairs are broken; the message names the first of them.
    """
    data = _read_source(in_dir, out_dir, options).shard(index, count)
    out = Path(out_dir)
    records = _load_records(out)
    todo = _utterances(data)
    shard_file = _shard_file(out, index, count)
    title = f"format {Path(in_dir).name}"
    if options.in_arks:
        mine = _format_arks(todo, records, _arks(out, index, count), options, nj, title)
    else:
        mine = {}
        work = partial(_format_or_keep, out=out, options=options)
        jobs = [(pair, records.get(pair.utt_id)) for pair in todo]
        with process_map(work, jobs, nj) as results:
            for number, (pair, record) in enumerate(
                zip(todo, progress(results, total=len(todo), desc=title), strict=True), 1
            ):
                mine[pair.utt_id] = record
                if number % _SAVE_EVERY == 0:
                    _save_records(shard_file, options, mine, complete=False)
    _save_records(shard_file, options, mine, complete=True)
    _raise_broken(in_dir, mine)
    clipped = [utt_id for utt_id, record in mine.items() if record.clipped]
    if clipped:
        logger.warning("%s: %d utterances were clipped by resampling: %s", in_dir, len(clipped), describe(clipped))


def collect(in_dir: PathLike, out_dir: PathLike, options: FormatOptions, count: int = 1) -> DataDir:
    """Merge ``count`` shards: write ``wav.scp``, ``spk1.scp``, ``utt2spk``, ``spk2utt``, ``utt2num_samples``.

    Tables of the source such as ``utt2snr`` are carried over. ``dropped.tsv`` lists what was left out and why.

    Raises:
        UserError: a shard is absent, unfinished, was made with other options or from other data, or no utterance is
            left.
    """
    source = _read_source(in_dir, out_dir, options)
    out = Path(out_dir)
    records: Dict[str, Record] = {}
    for index in range(1, count + 1):
        records.update(_finished_shard(out, options, index, count))
    unlike = sorted(source.wav.keys() ^ records.keys())
    stale = [p.utt_id for p in _utterances(source) if p.utt_id in records and not _is_from(records[p.utt_id], p)]
    if unlike or stale:
        raise UserError(f"{in_dir} has changed since it was formatted ({describe(unlike or stale)}): format it again")
    _raise_broken(in_dir, records)
    dropped = {utt_id: records[utt_id].dropped for utt_id in source.utterances if records[utt_id].dropped}
    write_text(out / "dropped.tsv", "".join(f"{utt_id}\t{reason}\n" for utt_id, reason in dropped.items()))
    if len(dropped) == len(source):
        raise UserError(f"{in_dir}: no utterance is usable, all were dropped, see {out / 'dropped.tsv'}")
    if dropped:
        logger.warning(
            "%s: %d of %d utterances dropped, listed in %s", in_dir, len(dropped), len(source), out / "dropped.tsv"
        )
    data = _formatted(source.subset(source.wav.keys() - dropped.keys()), records, out, options)
    data.write(out)
    for folder in (out, _records_folder(out), *(path.parent for path in _outputs(out, "", options))):
        remove_temporaries(folder)  # of runs that were killed; all shards are finished
    for file in [*_record_files(out), *out.glob("audio/*.[0-9]*-of-*.ark")]:
        if not file.stem.endswith(f"-of-{count}"):
            file.unlink()
    return data


def _utterances(data: DataDir) -> List[Utterance]:
    return [
        Utterance(utt_id, data.mixture_files(utt_id), data.spk1[utt_id], data.spans.get(utt_id))
        for utt_id in data.utterances
    ]


def _is_from(record: Record, pair: Utterance) -> bool:
    return record.key[: len(pair.source)] == pair.source


def _formatted(source: DataDir, records: Dict[str, Record], out: Path, options: FormatOptions) -> DataDir:
    files: Dict[str, Sequence[PathLike]] = {
        utt_id: [out / "audio" / place for place in records[utt_id].places] or _outputs(out, utt_id, options)
        for utt_id in source.utterances
    }
    samples = {utt_id: str(records[utt_id].samples) for utt_id in source.utterances}
    return DataDir(
        wav={utt_id: str(noisy) for utt_id, (noisy, _) in files.items()},
        spk1={utt_id: str(clean) for utt_id, (_, clean) in files.items()},
        utt2spk=source.utt2spk,
        extra={**source.extra, "utt2num_samples": samples},
    )


# ---------------------------------------------------------------------------------------------------------------------
# One utterance


def _format_or_keep(job: Tuple[Utterance, Optional[Record]], out: Path, options: FormatOptions) -> Record:
    """Format an utterance unless its record says that it is there; problems end up in the record."""
    pair, previous = job
    try:
        key = _key(pair, options)
    except OSError as error:
        return Record(pair.source, broken=f"{error.filename}: {error.strerror}")
    if previous is not None and _is_unchanged(previous, pair, key) and _is_kept(previous, pair, out, options):
        return previous
    try:
        record, waves = _formatted_waves(pair, key, options)
        clipped, sizes = 0, []
        for wave, path in zip(waves, _outputs(out, pair.utt_id, options), strict=False):
            clipped += write_audio(path, wave, options.fs)
            sizes.append(path.stat().st_size)
    except NotWritten:  # not the fault of this utterance
        raise
    except UserError as error:
        return Record(key, broken=str(error))
    return record._replace(clipped=clipped, sizes=tuple(sizes))


def _formatted_waves(pair: Utterance, key: List[Any], options: FormatOptions) -> Tuple[Record, List[np.ndarray]]:
    """Mixture and reference at the wanted rate; neither where the record says why not.

    Raises:
        UserError: unreadable audio.
    """
    with _printed(pair) as pair:
        headers = {path: probe(path) for path in pair.files}
        _check_headers(pair, headers, options)
        fs, total = headers[pair.noisy[0]].fs, headers[pair.noisy[0]].frames
        if not total:
            return Record(key, dropped="no samples"), []
        start, frames = _part(pair, fs, total)
        read = [read_audio(path, start=start, frames=frames)[0] for path in pair.noisy]
        clean, _ = read_audio(pair.clean, start=start, frames=frames)
    # The channels of all files, which are of one length and rate.
    noisy = read[0] if len(read) == 1 else np.concatenate([wave.reshape(len(wave), -1) for wave in read], axis=1)
    silent = " and ".join(name for name, wave in (("mixture", noisy), ("reference", clean)) if is_silent(wave))
    if silent:
        return Record(key, dropped=f"silent {silent}"), []
    waves = [resample(wave, fs, options.fs) for wave in (noisy, clean)]
    return Record(key, len(waves[0])), waves


@contextmanager
def _printed(pair: Utterance) -> Iterator[Utterance]:
    """The utterance with files of their own for what its commands print; messages name the commands.

    Raises:
        UserError: a command fails.
    """
    if not pair.has_commands:
        yield pair
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: _run(name, Path(folder) / str(i)) if is_command(name) else name for i, name in enumerate(pair.files)
        }
        try:
            yield pair._replace(noisy=tuple(files[name] for name in pair.noisy), clean=files[pair.clean])
        except UserError as error:
            message = str(error)
            for name, file in files.items():
                message = message.replace(file, name)
            raise UserError(message) from None


def _run(command: str, output: Path) -> str:
    """Run a command of an scp; the file with what it printed."""
    with output.open("wb") as file:
        done = subprocess.run(
            command.removesuffix("|"), shell=True, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UserError(f"{command}: ended with code {done.returncode}: {said[-1]}")
    return str(output)


def _part(pair: Utterance, fs: int, total: int) -> Tuple[int, int]:
    """First sample and number of samples of an utterance in recordings of ``total`` samples, as Kaldi counts them.

    Raises:
        UserError: it ends after the recording; what rounding may add to an end is cut off.
    """
    if pair.span is None:
        return 0, total
    begin, end = int(pair.span[0] * fs), int(pair.span[1] * fs)
    last = total if end < 0 else min(end, total)
    if end > total + _OVERSHOOT * fs or begin >= last:
        raise UserError(f"segment of {pair.span[0]:g} to {pair.span[1]:g} s, but {pair.noisy[0]} has {total / fs:g} s")
    return begin, last - begin


def _check_headers(pair: Utterance, headers: Mapping[str, AudioInfo], options: FormatOptions) -> None:
    """Raise UserError where the files of an utterance do not fit together or into the format."""
    first = headers[pair.noisy[0]]
    for path, other in headers.items():
        for what, a, b, unit in (("rate", first.fs, other.fs, "Hz"), ("length", first.frames, other.frames, "samples")):
            if a != b:
                raise UserError(f"different {what}: {pair.noisy[0]} has {a} {unit}, {path} has {b} {unit}")
    mixture = sum(headers[path].channels for path in pair.noisy)
    for path, channels in ((" + ".join(pair.noisy), mixture), (pair.clean, headers[pair.clean].channels)):
        if options.codec == "flac" and MAX_FLAC_CHANNELS < channels <= MAX_CHANNELS:
            wav = options.audio_format.replace("flac", "wav")
            hint = f"FLAC holds at most {MAX_FLAC_CHANNELS}: give --audio_format {wav}"
            raise UserError(f"{path}: {channels} channels, but {hint}")
        if channels > MAX_CHANNELS:
            raise UserError(f"{path}: {channels} channels, at most {MAX_CHANNELS} are supported")


def is_silent(wave: np.ndarray) -> bool:
    """No channel moves by more than one step of 16 bit away from its mean; an offset alone is silence as well."""
    return bool(np.abs(wave - wave.mean(axis=0)).max(initial=0.0) <= SILENCE)


def _key(pair: Utterance, options: FormatOptions) -> List[Any]:
    stats = [Path(file_of(path)).stat() for path in pair.files if not is_command(path)]
    return [*pair.source, *(x for stat in stats for x in (stat.st_size, stat.st_mtime_ns)), *options]


def _is_unchanged(record: Record, pair: Utterance, key: List[Any]) -> bool:
    return record.key == key and not pair.has_commands


def _is_kept(record: Record, pair: Utterance, out: Path, options: FormatOptions) -> bool:
    if record.broken or record.dropped:
        return bool(record.dropped)
    try:
        return [path.stat().st_size for path in _outputs(out, pair.utt_id, options)] == list(record.sizes)
    except OSError:
        return False


def _outputs(out: Path, utt_id: str, options: FormatOptions) -> Tuple[Path, Path]:
    name = f"{utt_id}.{options.audio_format}"
    return out / "audio" / "noisy" / name, out / "audio" / "clean" / name


# ---------------------------------------------------------------------------------------------------------------------
# Archives


def _arks(out: Path, index: int, count: int) -> Tuple[Path, Path]:
    """The archives of a shard: mixtures, references."""
    return out / "audio" / f"noisy.{index}-of-{count}.ark", out / "audio" / f"clean.{index}-of-{count}.ark"


def _format_arks(
    todo: Sequence[Utterance],
    previous: Dict[str, Record],
    arks: Tuple[Path, Path],
    options: FormatOptions,
    nj: int,
    title: str,
) -> Dict[str, Record]:
    """Write both archives, unless they hold what is wanted already."""
    kept = {pair.utt_id: previous.get(pair.utt_id) for pair in todo}
    if _are_kept(todo, kept, arks, options):
        return {utt_id: record for utt_id, record in kept.items() if record is not None}
    mine: Dict[str, Record] = {}
    try:
        with (
            atomic_path(arks[0]) as noisy, atomic_path(arks[1]) as clean, noisy.open("wb") as a, clean.open("wb") as b,
            process_map(partial(_encode, options=options), todo, nj) as results,
        ):  # fmt: skip
            for pair, (record, contents) in zip(todo, progress(results, total=len(todo), desc=title), strict=True):
                head = len(f"{pair.utt_id} ".encode())  # an entry begins after the id
                places = tuple(f"{ark.name}:{file.tell() + head}" for ark, file in zip(arks, (a, b), strict=True))
                for file, content in zip((a, b), contents, strict=False):
                    file.write(content)
                sizes = tuple(len(content) - head for content in contents)
                mine[pair.utt_id] = record._replace(sizes=sizes, places=places[: len(sizes)])
    except OSError as error:
        raise cannot_write(arks[0].parent, error) from None
    return mine


def _encode(pair: Utterance, options: FormatOptions) -> Tuple[Record, List[bytes]]:
    """What an utterance adds to the two archives; nothing where the record says why not."""
    try:
        key = _key(pair, options)
    except OSError as error:
        return Record(pair.source, broken=f"{error.filename}: {error.strerror}"), []
    try:
        record, waves = _formatted_waves(pair, key, options)
        encoded = [_entry(pair.utt_id, wave, options) for wave in waves]
    except UserError as error:
        return Record(key, broken=str(error)), []
    return record._replace(clipped=sum(clipped for _, clipped in encoded)), [content for content, _ in encoded]


def _entry(utt_id: str, wave: np.ndarray, options: FormatOptions) -> Tuple[bytes, int]:
    """An entry of an archive, and the number of clipped samples."""
    import kaldiio

    samples, clipped = checked_samples(utt_id, wave, options.codec, _SUBTYPE)
    stream = io.BytesIO()
    form = {"format": options.codec, "subtype": _SUBTYPE}
    try:
        kaldiio.save_ark(stream, {utt_id: (options.fs, samples)}, write_function="soundfile", write_kwargs=form)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{utt_id}: cannot be written as {options.codec} at {options.fs} Hz ({error})") from None
    return stream.getvalue(), clipped


def _are_kept(
    todo: Sequence[Utterance], records: Dict[str, Optional[Record]], arks: Tuple[Path, Path], options: FormatOptions
) -> bool:
    """Whether archives are complete and hold these utterances, from the same sources with the same options."""
    ends = [0, 0]
    for pair in todo:
        record = records[pair.utt_id]
        try:
            if record is None or record.broken or not _is_unchanged(record, pair, _key(pair, options)):
                return False
        except OSError:
            return False
        for number, (entry, size) in enumerate(zip(record.places, record.sizes, strict=True)):
            name, place = split_place(entry)
            if name != arks[number].name or place is None:
                return False
            ends[number] = max(ends[number], place + size)
    try:
        return [ark.stat().st_size for ark in arks] == ends
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Options and records


def _read_source(in_dir: PathLike, out_dir: PathLike, options: FormatOptions) -> DataDir:
    """Check the options and read the data folder."""
    if options.audio_format not in AUDIO_FORMATS:
        raise UserError(f"--audio_format {options.audio_format}: must be one of {', '.join(AUDIO_FORMATS)}")
    if options.fs < 1:
        raise UserError(f"--fs {options.fs}: must be positive")
    if os.path.realpath(in_dir) == os.path.realpath(out_dir):
        raise UserError(f"{out_dir}: IN_DATA and OUT_DATA are the same folder")
    data = DataDir.read(in_dir, unformatted=True)
    odd = [utt_id for utt_id in data.utterances if "/" in utt_id or "\\" in utt_id or utt_id.startswith(".")]
    if odd:
        raise UserError(f"{in_dir}: {describe(odd)}: ids become file names, without slashes or a dot at the beginning")
    return data


def _records_folder(out: Path) -> Path:
    return out / ".format"


def _record_files(out: Path) -> List[Path]:
    """Records of all shards, without the temporary files of other processes."""
    return list(_records_folder(out).glob("[0-9]*-of-*.json"))


def _shard_file(out: Path, index: int, count: int) -> Path:
    return _records_folder(out) / f"{index}-of-{count}.json"


def _save_records(file: Path, options: FormatOptions, records: Dict[str, Record], complete: bool) -> None:
    contents = {"complete": complete, "options": list(options), "records": records}
    write_text(file, json.dumps(contents, ensure_ascii=False) + "\n")


def _read_records(file: Path) -> Dict[str, Any]:
    try:
        contents = json.loads(file.read_text(encoding="utf-8"))
        contents["records"] = {utt_id: Record(*fields) for utt_id, fields in contents["records"].items()}
        return contents
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _load_records(out: Path) -> Dict[str, Record]:
    """What earlier runs wrote, however they were split."""
    files = sorted(_record_files(out), key=lambda file: file.stat().st_mtime_ns)
    return {utt_id: record for file in files for utt_id, record in _read_records(file).get("records", {}).items()}


def _finished_shard(out: Path, options: FormatOptions, index: int, count: int) -> Dict[str, Record]:
    contents = _read_records(_shard_file(out, index, count))
    if not contents.get("complete"):
        state = "unfinished" if contents else "missing"
        raise UserError(f"{out}: shard {index}/{count} is {state}; run it again with --shard {index}/{count}")
    if contents["options"] != list(options):
        raise UserError(f"{out}: shard {index}/{count} was made with other options {contents['options']}; run it again")
    return contents["records"]


def _raise_broken(in_dir: PathLike, records: Dict[str, Record]) -> None:
    problems = [f"{utt_id}: {record.broken}" for utt_id, record in sorted(records.items()) if record.broken]
    raise_problems(f"{in_dir}: {len(problems)} of {len(records)} utterances are broken", problems)
