"""Carry out one run of an ablation: element NUMBER of the job array that bin/ablate.py starts.

python -m i2srf_kd.bin.ablate_run exp/ablation/paper/logs/plan.json 3
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.ablation.runs import carry_out
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("plan", type=Path, help="file that bin/ablate.py wrote")
    parser.add_argument("number", type=int, help="which of its runs, from 1")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``; the exit code is the pipeline's."""
    args = get_parser().parse_args(argv)
    return carry_out(args.plan, args.number)


if __name__ == "__main__":
    run_command(main)
