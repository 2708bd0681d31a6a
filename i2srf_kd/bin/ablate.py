"""Train, score and compare the cells of a grid file. Called by a recipe's ablate.sh, in the recipe's folder.

    ./ablate.sh --grid conf/ablation/paper.yaml                      # everything: stages 1 to 4, the cells, the table
    ./ablate.sh --grid conf/ablation/paper.yaml --test_sets valid    # score the validation set: choose with this
    ./ablate.sh --grid conf/ablation/paper.yaml --cmd_backend slurm --max_jobs 8   # the runs as one job array
    ./ablate.sh --grid conf/ablation/paper.yaml --action list        # what is finished
    ./ablate.sh --grid conf/ablation/paper.yaml --action collect     # the table of what is finished

Every option of run.sh may be given (./run.sh --help); it goes before the grid's own. The same command again goes on
where it stopped. Exit code 1: a cell failed, the others are in the table; 75: a training saved its state on a signal.
"""

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__, prog="ablate.sh", usage="./ablate.sh --grid FILE [options] [any option of run.sh]")
    parser.add_argument("--grid", required=True, type=Path, help="grid file, such as conf/ablation/mini.yaml")
    parser.add_argument("--action", choices=("run", "list", "collect"), default="run", help="default: run")
    parser.add_argument(
        "--max_jobs", type=int, help="runs at a time (default: one per GPU, 2 without a GPU, all on a cluster)"
    )
    parser.add_argument("--cells", default="", help="these cells alone, separated by blanks")
    parser.add_argument("--seeds", default="", help="these seeds alone, separated by blanks")
    parser.add_argument("--python", default=sys.executable, help="Python to use")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args, words = get_parser().parse_known_args(argv)
    from i2srf_kd.ablation.ablation import Ablation  # here: it takes a while, which --help need not

    ablation = Ablation(args.grid, words, args.cells, args.seeds, args.max_jobs, args.python)
    return {"run": ablation.run, "list": ablation.list, "collect": ablation.collect}[args.action]()


if __name__ == "__main__":
    run_command(main)
