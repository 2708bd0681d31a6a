"""Pack an experiment as ESPnet does, for its model zoo, and show how to upload it.

    python -m i2srf_kd.bin.pack exp/student -o student.zip [--extra exp/RESULTS.md]

The zip loads with SeparateSpeech.from_pretrained of ESPnet (a DPDCRN after import i2srf_kd.espnet), with load_enhancer
of this package, and as --teacher_exp of a training.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("experiment", metavar="EXP", help="experiment folder")
    parser.add_argument("-o", "--out", metavar="ZIP", required=True, help="the zip to be written")
    parser.add_argument("--model_file", help="weights in EXP (default: average by the first best_model_criterion)")
    parser.add_argument("--extra", action="append", default=[], metavar="FILE", help="also a file, such as RESULTS.md")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    from i2srf_kd.export.packing import pack_experiment

    weights = pack_experiment(args.experiment, args.out, args.model_file, args.extra)
    folder = Path(args.out).with_suffix("")
    print(f"{weights} -> {args.out}")
    print(f"to share it: python3 -m zipfile -e {args.out} {folder} && hf upload USER/{folder.name} {folder} .")
    return 0


if __name__ == "__main__":
    run_command(main)
