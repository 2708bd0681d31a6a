"""Show how far the stages of a recipe are: ./run.sh --status

One line per stage and training, from what the stages leave behind (done files, metrics, logs) and from Slurm's queue
where there is one. Nothing is run and nothing is changed.
"""

from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.pipeline.status import Places, rows, table
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print the table."""
    parser = command_parser(__doc__)
    parser.add_argument("--recipe", required=True, help="name of the recipe, as in the names of its jobs")
    parser.add_argument("--stages", nargs="+", required=True, help="names of the stages")
    for name in ("datadir", "rawdir", "expdir", "logdir", "teacher", "student"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="folder of the undistilled student")
    parser.add_argument("--sets", nargs="+", required=True, help="names of the data sets")
    print(table(rows(Places(**vars(parser.parse_args(argv))))))
    return 0


if __name__ == "__main__":
    run_command(main)
