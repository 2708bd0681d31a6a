"""Part ``loader``: how much audio the chunk iterator of the training reads in a second, mixture and reference.

The plain reference reads whole files and cuts the chunk out. Files lie in the system's cache: decoding and copying
are measured, not the disk. What a file system with slow metadata would add is told by the files that an epoch opens:
one for every signal of a chunk, or (``.ark``) a few for all.
"""

import argparse
import ctypes
import os
import struct
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Sequence

import kaldiio
import numpy as np
import soundfile
from reference.loader import whole_file_batches

from bench.measure import Turns, median_seconds, ratio
from bench.report import Report
from i2srf_kd.corpora.noises import pink
from i2srf_kd.data.augmentation import MIXTURE
from i2srf_kd.data.chunk_dataset import ChunkDataset, ParallelFiles
from i2srf_kd.data.chunk_loader import ChunkLoaders
from i2srf_kd.data.chunks import training_batches
from i2srf_kd.data.kaldi_dir import write_table
from i2srf_kd.data.mixing import REFERENCE, MixedSource, MixingOptions
from i2srf_kd.system.markdown import Column

FS = 16000
FORMATS = ("wav", "flac", "wav.ark", "flac.ark")
WORKERS = (0, 1, 2)
COUNTED = {"reads": "segments", "workers": 0}  # the rows whose opened files are counted


_IN_OPEN = 0x20  # <sys/inotify.h>
_EVENT = struct.Struct("iIII")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    parser.add_argument("--utterances", type=int, default=48, help="files of each signal (default: 48)")
    parser.add_argument("--utterance_seconds", type=float, default=10.0, help="their length (default: 10)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a chunk (default: 2)")
    parser.add_argument("--batch", type=int, default=8, help="chunks in a batch (default: 8)")


def write_corpus(folder: Path, args: argparse.Namespace, suffix: str) -> None:
    """Write pink noise in bursts, 16 bit, to parallel files or archives, and ``wav.scp`` and ``spk1.scp``."""
    folder.mkdir(parents=True)
    samples = round(args.utterance_seconds * FS)
    random = np.random.default_rng(0)
    bursts = np.abs(np.sin(np.arange(samples) * (2 * np.pi * 1.5 / FS)))
    for table in ("wav", "spk1"):
        waves = {}
        for i in range(args.utterances):
            noise = pink(samples, FS, random)
            waves[f"utt{i:03}"] = (FS, 0.3 * bursts * noise / np.abs(noise).max())
        scp = folder / f"{table}.scp"
        if suffix.endswith(".ark"):
            form = {"format": suffix.removesuffix(".ark"), "subtype": "PCM_16"}
            ark = str(folder / f"{table}.ark")
            kaldiio.save_ark(ark, waves, scp=str(scp), write_function="soundfile", write_kwargs=form)
        else:
            files = {utt_id: folder / f"{table}_{utt_id}.{suffix}" for utt_id in waves}
            for utt_id, (fs, wave) in waves.items():
                soundfile.write(files[utt_id], wave, fs, subtype="PCM_16")
            write_table(scp, files)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    chunk = round(args.seconds * FS)
    lengths = {f"utt{i:03}": round(args.utterance_seconds * FS) for i in range(args.utterances)}
    batches = partial(training_batches, lengths, chunk, chunk // 2, args.batch, 0)
    readers: Dict[str, Any] = {}
    facts: Dict[str, Dict[str, Any]] = {}
    opened: Dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for suffix in FORMATS:
            folder = Path(temporary) / suffix
            write_corpus(folder, args, suffix)
            files = ParallelFiles({table: str(folder / f"{table}.scp") for table in ("wav", "spk1")}, lengths)
            dataset = ChunkDataset(files, chunk)
            for workers in WORKERS[:1] if suffix.endswith(".ark") else WORKERS:
                name = f"{suffix}, {workers} workers"
                readers[name] = ChunkLoaders(dataset, batches, num_workers=workers).build_iter
                facts[name] = {"format": suffix, "reads": "segments", "workers": workers}
                if workers == 0:
                    opened[suffix] = files_opened(folder, readers[name], 1)
            if not suffix.endswith(".ark"):
                mixed = ChunkDataset(mixtures(folder, lengths, chunk, suffix), chunk)
                for workers in WORKERS:
                    name = f"{suffix}, mixed, {workers} workers"
                    readers[name] = ChunkLoaders(mixed, batches, num_workers=workers).build_iter
                    facts[name] = {"format": suffix, "reads": "mixtures made anew", "workers": workers}
                name = f"{suffix}, whole files"
                readers[name] = partial(whole_file_batches, files.files, batches)
                facts[name] = {"format": suffix, "reads": "whole files", "workers": 0}
        turns = _in_turns(readers, args.repeats)
    audio = len(batches(1)) * args.batch * args.seconds
    rows: List[Dict[str, Any]] = [
        {
            **facts[name],
            "seconds": seconds,
            "audio": audio / seconds,
            "opened": opened[facts[name]["format"]] if facts[name] == {**facts[name], **COUNTED} else None,
            "faster": ratio(turns, name, f"{facts[name]['format'].removesuffix('.ark')}, whole files"),
        }
        for name, seconds in median_seconds(turns).items()
    ]
    columns = (
        Column("format", "format"),
        Column("reads", "reads"),
        Column("workers", "workers"),
        Column("audio", "seconds of audio per second", "{:.0f}"),
        Column("faster", "times faster than whole files", "{:.2f}"),
        Column("opened", "files opened in an epoch", "{:d}"),
    )
    chunks = len(batches(1)) * args.batch
    conditions = {
        "chunks in an epoch": chunks,
        "utterances": f"{args.utterances} of {args.utterance_seconds:g} s",
        "chunk": f"{args.seconds:g} s",
    }
    notes = ["Elapsed time of an epoch, without the start of the workers. A second of audio is one of mixture and one "
             "of reference."]  # fmt: skip
    return Report("loader", columns, rows, conditions, notes)


def mixtures(folder: Path, lengths: Dict[str, int], chunk: int, suffix: str) -> MixedSource:
    """Mixtures that are made while training, with a second noise in a third of them and random filters."""
    pairs = ParallelFiles({MIXTURE: str(folder / "wav.scp"), REFERENCE: str(folder / "spk1.scp")}, lengths)
    noise = [str(path) for path in sorted(folder.glob(f"wav_*.{suffix}"))]
    section = {"noise": noise, "second_noise": 0.3, "speech_shaped": 0.1, "equalisation_db": 3, "gain_db": [-10, 5]}
    return MixedSource(pairs, MixingOptions.from_section(section), chunk)


def files_opened(folder: Path, read: Any, epoch: int) -> int:
    """How often a file of a folder is opened while an epoch is read (Linux's inotify); -1 where that is not known."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        return -1
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    try:
        if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN) < 0:
            return -1
        count = 0
        for _ in read(epoch):
            count += _events(descriptor)  # often: the kernel keeps a limited number, and joins equal neighbours
        return count + _events(descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _events(descriptor: int) -> int:
    count = 0
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return count
        place = 0
        while place < len(data):  # struct inotify_event: watch, mask, cookie, length of the name, name
            place += _EVENT.size + _EVENT.unpack_from(data, place)[3]
            count += 1


def _in_turns(readers: Dict[str, Any], repeats: int) -> Turns:
    """Seconds from the first batch to the last, scaled to all batches; the first turn does not count."""
    turns: Turns = {name: [] for name in readers}
    for epoch in range(1, repeats + 2):
        for name, read in readers.items():
            seconds = seconds_of_epoch(read, epoch)
            if epoch > 1:
                turns[name].append(seconds)
    return turns


def seconds_of_epoch(read: Any, epoch: int) -> float:
    """Duration of an epoch from the first batch on, to which the start of the workers would add, for all batches."""
    iterator = iter(read(epoch))
    next(iterator)
    begin, count = time.perf_counter(), 0
    for _ in iterator:
        count += 1
    return (time.perf_counter() - begin) * (count + 1) / max(count, 1)
