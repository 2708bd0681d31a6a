"""Enhance audio files.

    python -m i2srf_kd.bin.enhance noisy.wav recordings/ -o enhanced
    python -m i2srf_kd.bin.enhance --model exp/student noisy.wav -o enhanced

The model is an experiment folder, a file of weights in one, an exported folder, or one that comes with the package
(--list_models), of which the default is taken where none is named. It may also stand before IN, without --model.

IN are files or folders, which are searched for audio; the structure of a folder is kept. Outputs have their input's
name, rate, container and sample format. Where two outputs would have the same name, all are placed relative to the
inputs' common folder instead.

A model for one microphone enhances each channel on its own. A model for several needs a file with at least so many
channels and writes one, its reference microphone. Recordings of any length take constant memory: they are enhanced in
windows that are cross-faded. What lies above half of the model's sampling rate is removed.

With --stream a causal model goes through a recording of any length in one piece, sample by sample as if it came from a
microphone. Without IN it reads raw PCM on standard input, at the model's rate, and writes raw PCM as soon as it is
ready, one STFT window (32 ms) later:

    arecord -t raw -f S16_LE -r 16000 | python -m i2srf_kd.bin.enhance exp/student --stream | aplay -f S16_LE -r 16000

Exit code 0 when all files were done; 1 when some were not, which are listed at the end with the reason, as is what had
to be passed over in a folder (closed folders, links to nothing, formats that cannot be read); 2 for a wrong call.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from i2srf_kd import models
from i2srf_kd.audio.level import kept_share
from i2srf_kd.audio.pcm import PCM_FORMATS
from i2srf_kd.export.runtimes import RUNTIMES
from i2srf_kd.inference.files import (
    OVERLAP_SECONDS,
    WINDOW_SECONDS,
    Method,
    Options,
    Streams,
    enhance_files,
    enhance_pipe,
    load_windows,
    plan,
    stream_opener,
)
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("inputs", metavar="IN", nargs="*", help="audio files or folders; the first may be the model")
    parser.add_argument("--model", help=f"folder, file of weights, or name (default: {models.DEFAULT})")
    parser.add_argument("--list_models", action="store_true", help="print the models that come with the package")
    parser.add_argument("-o", "--out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("--model_file", help="weights in an experiment folder (default: average of the best epochs)")
    parser.add_argument("--window_seconds", type=float, default=WINDOW_SECONDS, help=f"default: {WINDOW_SECONDS:g}")
    parser.add_argument(
        "--overlap_seconds",
        type=float,
        default=OVERLAP_SECONDS,
        help=f"cross-fade between windows (default: {OVERLAP_SECONDS:g})",
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, help="1: as the model has it; 0: the recording; between them: both"
    )
    parser.add_argument(
        "--max_attenuation_db", type=float, metavar="DB", help="leave out no more than this (default: no limit)"
    )
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
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="default: auto, onnx where the model is an exported folder that has it and onnxruntime is installed; "
        "int8: its model_int8.onnx, faster and less exact",
    )
    stream = parser.add_argument_group("streams")
    stream.add_argument("--stream", action="store_true", help="run a causal model as a stream; without IN on a pipe")
    stream.add_argument("--pcm_format", choices=list(PCM_FORMATS), default="s16le", help="on a pipe (default: s16le)")
    stream.add_argument("--channels", type=int, help="interleaved on the pipe (default: the model's microphones)")
    stream.add_argument(
        "--block_samples", type=int, default=256, help="most samples to wait for on a pipe (default: 256)"
    )
    return parser


def _choose_model(args: argparse.Namespace) -> None:
    """Take the model from the first positional argument where that is one and none was named, in place."""
    if args.model is None and args.inputs and _is_model(args.inputs[0]):
        args.model = args.inputs.pop(0)
    args.model = args.model or models.DEFAULT


def _is_model(text: str) -> bool:
    path = models.folder_of(text)
    return (path / "config.yaml").is_file() or path.suffix in (".pth", ".zip")


def _check_options(args: argparse.Namespace) -> None:
    for name in ("num_threads", "channels", "block_samples"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if args.inputs:
        if args.out_dir is None:
            raise UserError("give -o OUT_DIR, the folder for the enhanced files")
        if args.out_dir.exists() and not args.out_dir.is_dir():
            raise UserError(f"--out_dir {args.out_dir}: is a file, give a folder")
    elif not args.stream:
        raise UserError("give IN, the files to enhance, or --stream to enhance standard input")
    elif args.out_dir is not None:
        raise UserError("-o OUT_DIR is for files; without IN, --stream writes to standard output")
    elif sys.stdin.isatty() or sys.stdout.isatty():
        raise UserError("--stream without IN needs raw PCM on standard input and a pipe or file as standard output")


def _method(args: argparse.Namespace) -> Method:
    common = (args.model, args.runtime, args.device, args.model_file, args.num_threads)
    kept = kept_share(args.strength, args.max_attenuation_db)
    if args.stream:
        return Streams(stream_opener(*common), kept)
    return load_windows(*common, args.window_seconds, args.overlap_seconds, kept)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_intermixed_args(argv)  # IN may be empty, and may follow an option
    if args.list_models:
        print("\n".join(f"{name}\t{models.folder_of(name)}" for name in models.names()))
        return 0
    _choose_model(args)
    _check_options(args)
    problems: List[str] = []
    jobs = plan(args.inputs, args.out_dir, problems.append) if args.inputs else []
    method = _method(args)
    if not args.inputs:
        assert isinstance(method, Streams)
        try:
            enhance_pipe(method, args.pcm_format, args.channels or method.num_mics, args.block_samples)
        except KeyboardInterrupt:  # how one ends a pipe from a microphone
            return 130
        return 0
    failures = enhance_files(method, jobs, Options(args.keep_channels, args.overwrite))
    problems += failures.values()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} files enhanced: {args.out_dir}")
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)
