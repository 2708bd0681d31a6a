"""Write the result table of a recipe.

    python -m i2srf_kd.bin.results --out exp/RESULTS.md --title "VoiceBank-DEMAND" \\
        --system noisy=exp/noisy/scored_test --system teacher=exp/teacher/scored_test:exp/teacher \\
        --system student=exp/student/scored_test:exp/student --compare teacher-student

A SCORED_DIR with wildcards (quoted: 'student=exp/ablation/pair/undistilled/seed*/scored_test') stands for the seeds of
one system: mean and interval are then over seeds and utterances, and differences pair the seeds in the order of names.

The row of the unprocessed mixtures (a system called "noisy") always comes first. The same content goes to a JSON file
of the same name in small letters beside it (exp/results.json). Parameters and GMAC/s come from complexity.json in the
experiment folder, where there is one.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.results import table
from i2srf_kd.results.comparison import comparisons, read_system_option
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command
from i2srf_kd.system.files import remove_temporaries


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="Markdown file to write")
    parser.add_argument("--title", default="RESULTS", help="heading of the file")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=SCORED_DIR[:EXPERIMENT_DIR]")
    parser.add_argument("--baseline", metavar="NAME", help="paired difference of every other model to this one")
    parser.add_argument("--compare", action="append", default=[], metavar="A-B", help="paired difference A - B")
    parser.add_argument("--cost", metavar="JSON", help="of python tools/bench models --json, also of unscored networks")
    parser.add_argument("--note", action="append", default=[], help="remark below the table, e.g. the validation split")
    parser.add_argument("--command", action="append", default=[], help="command that led to these results")
    parser.add_argument("--pictures", metavar="DIR", help="show the pictures and link the audio files in this folder")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    table.json_beside(args.out)  # a wrong name is reported before any work
    systems = [read_system_option(text) for text in args.system]
    costs = table.read_costs(args.cost) if args.cost else None
    pairs = comparisons(systems, args.baseline, args.compare)
    pictures, audio = table.find_media(args.pictures) if args.pictures else ([], [])
    content = table.build(args.title, systems, pairs, args.note, args.command, costs)
    remove_temporaries(args.out.parent)  # of a run that was killed
    table.write(args.out, table.to_markdown(content, args.out.parent, pictures, audio), content)
    print(f"{args.out}: {len(systems)} systems")
    return 0


if __name__ == "__main__":
    run_command(main)
