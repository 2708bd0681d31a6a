"""Write one HTML file about an ablation or some experiments: scores, trainings, how the teacher teaches, audio.

    python -m i2srf_kd.bin.report exp/ablation/compare -o report.html           # a folder that ablate.sh has written
    python -m i2srf_kd.bin.report exp -o report.html                            # all experiments of run.sh
    python -m i2srf_kd.bin.report exp/student exp/student_kd -o report.html     # some of them

The file needs no other one and no network: send it to whoever shall read it. Experiments bring their teacher and the
scores of the mixtures along; folders called <name>_seed<number> are seeds of one system.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.results.drawing import save_png
from i2srf_kd.results.figures import all_pictures
from i2srf_kd.results.media import AUDIO_FORMATS
from i2srf_kd.results.page import render
from i2srf_kd.results.study import read_study
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.files import write_text


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER", help="an ablation, or experiments")
    parser.add_argument("-o", "--out", required=True, type=Path, help="HTML file to write")
    parser.add_argument("--title", help="heading; by default the ablation's, or the name of the folder")
    parser.add_argument("--set", dest="test_set", help="test set, where there are several")
    parser.add_argument("--num_examples", type=int, default=3, help="utterances to look at and listen to")
    parser.add_argument("--show", nargs="+", default=[], metavar="SYSTEM", help="systems to listen to")
    parser.add_argument("--audio_format", choices=sorted(AUDIO_FORMATS), default="mp3", help="flac is lossless")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write every figure there, as PNG")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    if args.num_examples < 0:
        raise UserError(f"--num_examples {args.num_examples}: must not be negative")
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: give the name of an HTML file")
    study = read_study(args.paths, args.test_set, args.title)
    write_text(args.out, render(study, args.num_examples, args.show, args.audio_format))
    if args.pictures is not None:
        for picture in all_pictures(study):
            save_png(picture.figure, args.pictures / f"{picture.name}.png")
    print(f"{args.out}: {len(study.systems)} systems, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run_command(main)
