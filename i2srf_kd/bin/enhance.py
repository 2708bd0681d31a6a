"""Enhance audio files.

    python -m i2srf_kd.bin.enhance exp/student noisy.wav recordings/ -o enhanced

MODEL is an experiment folder, a file of weights in one, or an exported folder. IN are files or folders, which are
searched for audio; the structure of a folder is kept. Outputs have their input's name, rate, container and sample
format. Where two outputs would have the same name, all are placed relative to the inputs' common folder instead.

A model for one microphone enhances each channel on its own. A model for several needs a file with at least so many
channels and writes one, its reference microphone. Recordings of any length take constant memory: they are enhanced in
windows that are cross-faded. What lies above half of the model's sampling rate is removed.

Exit code 0 when all files were done; 1 when some were not, which are listed at the end with the reason; 2 for a wrong
call.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
import soundfile

from i2srf_kd.audio.io import probe
from i2srf_kd.audio.overlap_add import BlockWriter, overlap_add_blocks, read_blocks
from i2srf_kd.errors import UserError, run_command
from i2srf_kd.progress import progress

if TYPE_CHECKING:  # torch takes seconds to import; --help and wrong calls need not wait for it
    from i2srf_kd.enhancer import Enhancer

# Suffixes of libsndfile's formats, without RAW, which needs a description of its content, and with other spellings.
_AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
_AUDIO_SUFFIXES |= {".aif", ".oga", ".opus", ".snd", ".mp3"}


class Job(NamedTuple):
    """One file to enhance."""

    source: Path
    target: Path


class Options(NamedTuple):
    """How files are enhanced."""

    window_seconds: float
    overlap_seconds: float
    keep_channels: bool
    overwrite: bool


def find_inputs(inputs: Sequence[str], out_dir: Path) -> List[Tuple[Path, Path]]:
    """Audio files and their names relative to the input they belong to, each file once.

    Raises:
        UserError: an input does not exist, or a folder has no audio.
    """
    found: List[Tuple[Path, Path]] = []
    seen: Set[Path] = set()
    out_dir = out_dir.resolve()
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = [f for f in sorted(path.rglob("*")) if _is_audio(f) and out_dir not in f.resolve().parents]
            if not files:
                raise UserError(f"{path}: no audio files in this folder")
        elif path.exists():
            files = [path]
        else:
            raise UserError(f"{path}: no such file or folder")
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                found.append((file, file.relative_to(path) if path.is_dir() else Path(file.name)))
    return found


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in _AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def plan(inputs: Sequence[str], out_dir: Path) -> List[Job]:
    """Decide where every output goes.

    Raises:
        UserError: as :func:`find_inputs`; or an output would be one of the inputs.
    """
    found = find_inputs(inputs, out_dir)
    names = [name for _, name in found]
    # compared without case, because some file systems do
    if len({str(name).lower() for name in names}) < len(names):
        sources = [Path(os.path.abspath(source)) for source, _ in found]
        common = Path(os.path.commonpath([source.parent for source in sources]))
        names = [source.relative_to(common) for source in sources]
    jobs = [Job(source, out_dir / name) for (source, _), name in zip(found, names, strict=True)]
    inodes = {(source.stat().st_dev, source.stat().st_ino) for source, _ in found}
    for job in jobs:
        if job.target.exists() and (job.target.stat().st_dev, job.target.stat().st_ino) in inodes:
            raise UserError(f"{job.target} is itself an input and is not overwritten: choose another OUT_DIR")
    return jobs


def enhance_file(enhancer: "Enhancer", job: Job, options: Options) -> Iterator[float]:
    """Enhance one file in constant memory; the output appears under its name when it is complete.

    Yields:
        Seconds of audio done since the last time.

    Raises:
        UserError: the file is bad, has too few channels, or its output exists or cannot be written.
    """
    from i2srf_kd.enhancer import window_in_samples

    if job.target.exists() and not options.overwrite:
        raise UserError(f"{job.target} exists; give --overwrite true to replace it")
    info = probe(job.source)
    if info.channels < enhancer.num_mics:
        raise UserError(f"{job.source} has {info.channels} channels, the model needs {enhancer.num_mics} microphones")
    window, overlap = window_in_samples(options.window_seconds, options.overlap_seconds, info.fs)
    each_channel = enhancer.num_mics == 1 and options.keep_channels

    def process(piece: np.ndarray) -> np.ndarray:
        if each_channel:
            return np.stack([enhancer.enhance_array(piece[:, i], info.fs) for i in range(piece.shape[1])], axis=1)
        wave = piece.mean(axis=1) if enhancer.num_mics == 1 else piece
        return enhancer.enhance_array(wave, info.fs)[:, None]

    with BlockWriter(job.target, job.source, info.channels if each_channel else 1) as writer:
        for samples in overlap_add_blocks(read_blocks(job.source), process, window, overlap):
            writer.write(samples)
            yield len(samples) / info.fs
    if writer.clipped:
        print(f"{job.target}: {writer.clipped} samples beyond full scale were clipped", file=sys.stderr)


def enhance_files(
    enhancer: "Enhancer", jobs: Sequence[Job], options: Options, failures: Dict[Path, str]
) -> Iterator[float]:
    """Enhance all files; what goes wrong with one is put into ``failures`` and does not keep the others from it.

    Yields:
        Seconds of audio done since the last time.
    """
    for job in jobs:
        try:
            yield from enhance_file(enhancer, job, options)
        except UserError as error:
            failures[job.source] = str(error)
        except (OSError, MemoryError, RuntimeError) as error:  # torch's and libsndfile's are RuntimeErrors
            failures[job.source] = f"{job.source}: {type(error).__name__}: {error}"


def _whole_seconds(parts: Iterator[float]) -> Iterator[None]:
    """One item per second of audio, for the progress bar."""
    done, shown = 0.0, 0
    for part in parts:
        done += part
        while shown + 1 <= done:
            shown += 1
            yield


def _total_seconds(jobs: Sequence[Job]) -> int:
    """Length of all readable files; bad ones are reported when it is their turn."""
    total = 0.0
    for job in jobs:
        try:
            info = probe(job.source)
            total += info.frames / info.fs
        except UserError:
            pass
    return int(total)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("inputs", metavar="IN", nargs="+", help="audio files or folders")
    parser.add_argument("-o", "--out_dir", metavar="OUT_DIR", type=Path, required=True)
    parser.add_argument("--model_file", help="weights in an experiment folder (default: average of the best epochs)")
    parser.add_argument("--window_seconds", type=float, default=10.0, help="default: 10")
    parser.add_argument("--overlap_seconds", type=float, default=1.0, help="cross-fade between windows (default: 1)")
    parser.add_argument(
        "--keep_channels",
        type=_boolean,
        default=True,
        metavar="true|false",
        help="false: average the channels of a file first, for a model with one microphone (default: true)",
    )
    parser.add_argument(
        "--overwrite", type=_boolean, default=False, metavar="true|false", help="replace outputs (default: false)"
    )
    parser.add_argument("--num_threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    if args.num_threads is not None and args.num_threads < 1:
        raise UserError(f"--num_threads {args.num_threads}: must be at least 1")
    if args.out_dir.exists() and not args.out_dir.is_dir():
        raise UserError(f"--out_dir {args.out_dir}: is a file, give a folder")
    jobs = plan(args.inputs, args.out_dir)

    import torch

    from i2srf_kd.enhancer import load_enhancer, window_in_samples

    window_in_samples(args.window_seconds, args.overlap_seconds, 16000)  # a wrong option is reported before any work
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    enhancer = load_enhancer(args.model, args.device, args.model_file)
    options = Options(args.window_seconds, args.overlap_seconds, args.keep_channels, args.overwrite)
    failures: Dict[Path, str] = {}
    seconds = _whole_seconds(enhance_files(enhancer, jobs, options, failures))
    for _ in progress(seconds, _total_seconds(jobs), desc="enhancing", unit="s"):
        pass
    for reason in failures.values():
        print(f"error: {reason}", file=sys.stderr)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} files enhanced: {args.out_dir}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
