"""Write mixtures that a training will make, to listen to them and to see what they are made of.

    python -m i2srf_kd.bin.mix --config conf/small/train_student_mixing.yaml --data_dir dump/raw/train --count 20 -o mix

Writes DIR/<number>_mixture.flac, DIR/<number>_reference.flac and DIR/mixtures.tsv: the first mixtures of an epoch.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

import yaml

from i2srf_kd.data.mixture_examples import write_examples
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("--config", required=True, help="configuration of the training, with a section mixing")
    parser.add_argument(
        "--mixing", action="append", default=[], metavar="NAME=VALUE", help="of that section, as a training takes it"
    )
    parser.add_argument("--data_dir", required=True, type=Path, help="formatted training set, such as dump/raw/train")
    parser.add_argument("-o", "--out_dir", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--count", type=int, default=20, help="mixtures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    parser.add_argument("--epoch", type=int, default=1, help="whose mixtures come first (default: %(default)s)")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    config = read_yaml(args.config)
    try:
        given = {name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in args.mixing)}
    except (ValueError, yaml.YAMLError):
        raise UserError(f"--mixing {' '.join(args.mixing)}: must be NAME=VALUE, such as noise=[/data/noise]") from None
    config["mixing"] = {**(config.get("mixing") or {}), **given}
    table = write_examples(config, args.data_dir, args.out_dir, args.count, args.seed, args.epoch)
    print(table.read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
