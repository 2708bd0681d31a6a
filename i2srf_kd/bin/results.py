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
import glob
import json
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from i2srf_kd.results import results
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.files import remove_temporaries, write_text


def parse_system(text: str) -> Tuple[str, str, Optional[str]]:
    """Read ``NAME=SCORED_DIR[:EXPERIMENT_DIR]``."""
    name, equals, folders = text.partition("=")
    if not (name.strip() and equals and folders):
        raise UserError(f"--system {text}: expected NAME=SCORED_DIR or NAME=SCORED_DIR:EXPERIMENT_DIR")
    if Path(folders).is_dir():
        return name.strip(), folders, None
    # Folders may have colons in their names: the one that divides leaves a folder on either side.
    splits = [(folders[:at], folders[at + 1 :]) for at, letter in enumerate(folders) if letter == ":"]
    existing = [split for split in splits if all(split) and all(Path(folder).is_dir() for folder in split)]
    for scored, experiment in existing or splits[-1:]:
        return name.strip(), scored, experiment
    return name.strip(), folders, None


def read_system(text: str) -> results.System:
    """Read the system that ``--system`` names, with all seeds that its wildcards match.

    Raises:
        UserError: nothing matches, or a folder cannot be read.
    """
    name, scored, experiment = parse_system(text)
    if Path(scored).is_dir() or not any(letter in scored for letter in "*?["):
        return results.read_system(name, scored, experiment)
    folders = sorted(glob.glob(scored))
    if not folders:
        raise UserError(f"--system {text}: no folder matches {scored}")
    return results.read_seeds(name, folders, experiment)


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, type=Path, help="Markdown file to write")
    parser.add_argument("--title", default="RESULTS", help="heading of the file")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=SCORED_DIR[:EXPERIMENT_DIR]")
    parser.add_argument("--baseline", metavar="NAME", help="paired difference of every other model to this one")
    parser.add_argument("--compare", action="append", default=[], metavar="A-B", help="paired difference A - B")
    parser.add_argument("--note", action="append", default=[], help="remark below the table, e.g. the validation split")
    parser.add_argument("--command", action="append", default=[], help="command that led to these results")
    parser.add_argument("--pictures", metavar="DIR", help="show the pictures and link the audio files in this folder")
    return parser


def _comparisons(names: Sequence[str], baseline: Optional[str], compare: Sequence[str]) -> List[Tuple[str, str]]:
    pairs = []
    if baseline is not None:
        if baseline not in names:
            raise UserError(f"--baseline {baseline}: not among the systems {', '.join(names)}")
        pairs = [(name, baseline) for name in names if name not in (baseline, results.MIXTURE)]
    return pairs + [results.parse_comparison(text, names) for text in compare]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    json_file = args.out.with_name(args.out.stem.lower() + ".json")
    if json_file == args.out:
        raise UserError(f"--out {args.out}: give the name of a Markdown file; the JSON file is written beside it")
    systems = [read_system(text) for text in args.system]
    comparisons = _comparisons([system.name for system in systems], args.baseline, args.compare)
    pictures, audio = results.find_media(args.pictures) if args.pictures else ([], [])
    content = results.build(args.title, systems, comparisons, args.note, args.command)
    remove_temporaries(args.out.parent)  # of a run that was killed
    write_text(args.out, results.to_markdown(content, args.out.parent, pictures, audio))
    write_text(json_file, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    print(f"{args.out}: {len(systems)} systems")
    return 0


if __name__ == "__main__":
    run_command(main)
