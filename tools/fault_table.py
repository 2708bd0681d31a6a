#!/usr/bin/env python3
"""Disturb the recipe at random moments, run it again, and write down what was lost.

    . tools/activate_python.sh
    tools/fault_table.py --faults 64 --seed 0 --json faults.json --page docs/reliability.md

The same command goes on where it stopped: faults that the JSON file holds are not tried again. Small file systems are
mounted and Slurm's daemons are started for it, so it needs root and the packages slurm-wlm and munge; --without_slurm
leaves those faults out. Exit code 1: a fault led to another result or left something behind.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "test")]

import slurm_cluster  # noqa: E402
from reliability import page, trial  # noqa: E402
from reliability.faults import KINDS  # noqa: E402
from reliability.workspace import Workspace  # noqa: E402

from i2srf_kd.system.command_line import command_parser  # noqa: E402
from i2srf_kd.system.errors import UserError, run_command  # noqa: E402
from i2srf_kd.system.files import write_text  # noqa: E402


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("--faults", type=int, default=64, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--stages", nargs="+", type=int, default=[], choices=range(1, 7), help="default: all")
    parser.add_argument("--json", type=Path, default=Path("faults.json"), help="record (default: %(default)s)")
    parser.add_argument("--page", type=Path, help="page whose table is to be replaced")
    parser.add_argument("--no_more", action="store_true", help="try nothing, write the page from the JSON file alone")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--without_slurm", action="store_true", help="leave out faults that need Slurm")
    return parser


def describe() -> Dict[str, Any]:
    """Where the faults were tried."""
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    date = subprocess.run(["date", "+%Y-%m-%d"], capture_output=True, text=True, check=True)
    return {
        "command": shlex.join(["tools/fault_table.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip() + (" with changes" if changed.stdout.strip() else ""),
        "date": date.stdout.strip(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def read(path: Path) -> Dict[str, Any]:
    """The record of an earlier call, or an empty one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"faults": []}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    faults = trial.plan(0 if args.no_more else args.faults, args.seed, args.only, args.stages)
    if args.without_slurm:
        faults = [fault for fault in faults if not KINDS[fault["kind"]].on_cluster]
    needs_slurm = any(KINDS[fault["kind"]].on_cluster for fault in faults)
    if needs_slurm and slurm_cluster.why_not():
        raise UserError(f"{slurm_cluster.why_not()}; or --without_slurm")
    record = read(args.json)
    commands = record.get("commands", [])
    record.update(describe())
    record["commands"] = list(dict.fromkeys([*commands, record.pop("command")])) if faults else commands
    done = {(one["kind"], one["stage"], one["seed"]): one for one in record["faults"]}
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults.")))
        workspace = Workspace(work.resolve())
        if faults:
            workspace.prepare(say)
        for number, fault in enumerate(faults, 1):
            key = (fault["kind"], fault["stage"], fault["seed"])
            if key not in done:
                if KINDS[fault["kind"]].on_cluster and workspace.cluster is None:
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm.")))
                    workspace.cluster = stack.enter_context(slurm_cluster.slurm_cluster(folder))
                done[key] = {**fault, "commit": record["commit"], "outcome": trial.attempt(workspace, *key)._asdict()}
                # What never hit a running stage says nothing; it is tried again by the next call.
                record["faults"] = [one for one in done.values() if one["outcome"]["problems"] != [trial.NOT_HIT]]
                write_text(args.json, json.dumps(record, indent=1) + "\n")
            outcome = trial.Outcome(**done[key]["outcome"])
            verdict = "good" if outcome.good else "; ".join(outcome.problems)
            say(f"{number} of {len(faults)}: {outcome.kind}, stage {outcome.stage}: {outcome.remark}; "
                f"lost {outcome.lost}; {outcome.seconds:.0f} s; {verdict}")  # fmt: skip
    outcomes = [trial.Outcome(**one["outcome"]) for one in record["faults"]]
    record["commit"] = ", ".join(sorted({one["commit"] for one in record["faults"]}))
    if args.page:
        page.write(args.page, page.table(outcomes, record))
    bad = [outcome for outcome in outcomes if not outcome.good]
    say(f"{len(outcomes) - len(bad)} of {len(outcomes)} faults without complaint")
    return 1 if bad else 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_command(main)
