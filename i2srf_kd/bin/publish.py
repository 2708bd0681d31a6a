"""Upload an exported model to the Hugging Face hub, from where hf://OWNER/NAME loads it.

    python -m i2srf_kd.bin.publish exp/student/export --repo OWNER/NAME --licence cc-by-4.0 [--scored DIR]

Needs huggingface_hub, and a token of yours (hf auth login). The model card gets the front matter that the hub reads:
licence, tags and scores. --dry_run shows card and files, and asks the network for nothing.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="exported model")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made where it is absent")
    parser.add_argument("--licence", required=True, help="of the weights, as the hub calls it, such as cc-by-4.0")
    parser.add_argument("--scored", type=Path, metavar="DIR", help="its scores, scored_SET of stage 6, for the card")
    parser.add_argument("--private", action="store_true", help="a new repository is seen by you alone")
    parser.add_argument("--dry_run", action="store_true", help="upload nothing")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    from i2srf_kd.models.hub import publish
    from i2srf_kd.results.files import read_json

    scores, data_set = None, ""
    if args.scored is not None:
        scores = read_json(args.scored / "summary.json", "give a folder that bin.score wrote")
        data_set = args.scored.name.removeprefix("scored_")
    done = publish(args.folder, args.repo, args.licence, scores, data_set, args.private, args.dry_run)
    if args.dry_run:
        print(done.card)
        print(f"would be uploaded to {done.repo}: {' '.join(done.files)}")
    else:
        print(f"{done.address}: {len(done.files)} files; load_enhancer('hf://{done.repo}') loads it")
    return 0


if __name__ == "__main__":
    run_command(main)
