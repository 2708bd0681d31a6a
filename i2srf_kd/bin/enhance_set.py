"""Enhance a data set.

    python -m i2srf_kd.bin.enhance_set exp/student dump/raw/test exp/student/enhanced_test --nj 4

MODEL is an experiment folder, a file of weights in one, or an exported folder; DATA_DIR has a wav.scp. Writes
OUT_DIR/wav/<utterance>.wav (16 bit, the mixture's rate, never scaled), OUT_DIR/spk1.scp (ESPnet's name for enhanced
speech; wav.scp says the same) and OUT_DIR/enhance.json (real-time factor, clipped samples), and complexity.json beside
OUT_DIR. Utterances up to --max_window_seconds are enhanced in one piece.

For a job array, run it with --shard i/N for i = 1..N and then once with --collect N. Run again, it goes on where it
was: an utterance is left out when it was made by the same weights, with the same options, from the same file.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from i2srf_kd.data.kaldi_dir import parse_shard
from i2srf_kd.export.runtimes import RUNTIMES
from i2srf_kd.inference.data_set import Options, collect, enhance_shard, read_mixtures
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


def _print_summary(result: Dict[str, Any], out_dir: Path) -> None:
    print(f"{result['utterances']} utterances, {result['seconds'] / 60:.1f} min: {out_dir}")
    print(f"real-time factor {result['real_time_factor']:.4f} ({result['device']}, {result['num_threads']} threads)")
    if result["clipped_samples"]:
        print(f"{result['clipped_samples']} samples in {result['clipped_utterances']} utterances were clipped")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data_dir", metavar="DATA_DIR")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("--shard", metavar="i/N", help="enhance only part i of N")
    parser.add_argument("--collect", metavar="N", type=int, help="merge N shards that were enhanced before")
    parser.add_argument("--nj", metavar="K", type=int, default=1, help="local processes (default: 1)")
    parser.add_argument("--model_file", help="weights in an experiment folder (default: average of the best epochs)")
    parser.add_argument(
        "--max_window_seconds", type=float, default=30.0, help="longer utterances are cut into windows (default: 30)"
    )
    parser.add_argument("--check_only", action="store_true", help="check the options and end")
    parser.add_argument("--overwrite", action="store_true", help="enhance again what was enhanced before")
    parser.add_argument("--num_threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, default="auto", help="of an exported folder, see i2srf_kd.bin.enhance --help"
    )
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    for option in ("nj", "collect", "num_threads"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: must be at least 1")
    if args.shard and args.collect:
        raise UserError("--shard and --collect are two separate calls: first all shards, then --collect")
    if not args.max_window_seconds > 0:
        raise UserError(f"--max_window_seconds {args.max_window_seconds}: must be positive")
    shard = parse_shard(args.shard) if args.shard else (1, 1)
    if args.check_only:
        return 0
    table = read_mixtures(args.data_dir)
    options = Options(args.model, args.model_file, args.device, args.max_window_seconds, args.num_threads, args.runtime)

    from i2srf_kd.inference.loading import check_device

    check_device(args.device)
    if not args.collect:
        enhance_shard(table, options, args.out_dir, shard, args.nj, args.overwrite)
        if args.shard:
            return 0
    _print_summary(collect(table, options, args.out_dir, args.collect or 1), args.out_dir)
    return 0


if __name__ == "__main__":
    run_command(main)
