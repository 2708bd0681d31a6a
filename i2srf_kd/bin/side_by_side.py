"""Write one table of cost and quality of networks.

    python -m i2srf_kd.bin.side_by_side --out exp/SIDE_BY_SIDE.md --cost exp/cost.json \\
        --system noisy=exp/noisy/scored_test --system dpdcrn=exp/dpdcrn/scored_test --baseline dpdcrn

Costs are those of python tools/bench models --json, scores those of bin.score. The same content goes to a JSON
file of the same name in small letters beside it. egs/voicebank/local/side_by_side.sh does everything.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.results import side_by_side, table
from i2srf_kd.results.comparison import comparisons, read_system_option
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, type=Path, help="Markdown file to write")
    parser.add_argument("--title", default="Side by side", help="heading of the file")
    parser.add_argument("--cost", metavar="JSON", help="of bench models")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=SCORED_DIR")
    parser.add_argument("--baseline", metavar="NAME", help="paired difference of every other network to this one")
    parser.add_argument("--note", action="append", default=[], help="remark below the table")
    parser.add_argument("--command", action="append", default=[], help="command that led to these results")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    table.json_beside(args.out)  # a wrong name is reported before any work
    systems = [read_system_option(text) for text in args.system]
    costs, conditions = side_by_side.read_costs(args.cost) if args.cost else ({}, {})
    pairs = comparisons(systems, args.baseline)
    content = side_by_side.build(args.title, systems, costs, conditions, pairs, args.note, args.command)
    table.write(args.out, side_by_side.to_markdown(content), content)
    print(f"{args.out}: {len(content['rows'])} systems")
    return 0


if __name__ == "__main__":
    run_command(main)
