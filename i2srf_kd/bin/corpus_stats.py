"""Measure formatted sets: shape files for training and a report of the corpus.

    python -m i2srf_kd.bin.corpus_stats --dump_dir dump/raw --sets train valid test --out_dir exp/stats [--nj 4]

Writes OUT_DIR/<set>/speech_shape, OUT_DIR/<set>/utterances.tsv and OUT_DIR/corpus_report.{md,json,png}.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.data.corpus_report import write_statistics
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("--dump_dir", required=True, help="folder of the formatted sets")
    parser.add_argument("--sets", required=True, nargs="+", help="names of the sets, the training set first")
    parser.add_argument("--out_dir", required=True, help="folder to write")
    parser.add_argument("--nj", type=int, default=1, help="processes (default: %(default)s)")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    write_statistics(args.dump_dir, args.sets, args.out_dir, args.nj)
    print(Path(args.out_dir, "corpus_report.md").read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
