"""Bring a data folder to one sampling rate and one audio format.

    python -m i2srf_kd.bin.format_data IN_DATA OUT_DATA [--fs 16000] [--audio_format flac] [--nj 4]
    python -m i2srf_kd.bin.format_data IN_DATA OUT_DATA --shard i/N      # one of N parts, then
    python -m i2srf_kd.bin.format_data IN_DATA OUT_DATA --collect N      # merge them

Broken pairs are all named and end the command; empty and silent ones are dropped and listed in OUT_DATA/dropped.tsv.
Audio that is already there and up to date is kept.
"""

import argparse
from typing import Optional, Sequence

from i2srf_kd.data.formatting import AUDIO_FORMATS, FormatOptions, collect, format_data, format_shard
from i2srf_kd.data.kaldi_dir import parse_shard
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    defaults = FormatOptions()
    parser = command_parser(__doc__)
    parser.add_argument("in_data", metavar="IN_DATA", help="data folder with wav.scp, spk1.scp, utt2spk")
    parser.add_argument("out_data", metavar="OUT_DATA", help="folder to write")
    parser.add_argument("--fs", type=int, default=defaults.fs, help="sampling rate in Hz (default: %(default)s)")
    parser.add_argument(
        "--audio_format",
        choices=AUDIO_FORMATS,
        default=defaults.audio_format,
        help=".ark: few large files, two for each part (default: %(default)s)",
    )
    parser.add_argument("--nj", type=int, default=1, help="processes on this machine (default: %(default)s)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shard", metavar="i/N", help="format only part i of N; default: all parts, and merge them")
    part.add_argument("--collect", metavar="N", type=int, help="merge N finished parts")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    options = FormatOptions(args.fs, args.audio_format)
    if args.shard is not None:
        index, count = parse_shard(args.shard)
        format_shard(args.in_data, args.out_data, options, index, count, args.nj)
        return 0
    if args.collect is not None:
        if args.collect < 1:
            raise UserError(f"--collect {args.collect}: must be 1 or more")
        data = collect(args.in_data, args.out_data, options, args.collect)
    else:
        data = format_data(args.in_data, args.out_data, options, args.nj)
    print(f"{args.out_data}: {len(data)} utterances, {args.fs} Hz, {args.audio_format}")
    return 0


if __name__ == "__main__":
    run_command(main)
