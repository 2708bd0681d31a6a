"""Run a command, or one per index of a range, with a log each.

    python -m i2srf_kd.bin.run_jobs --max_jobs 2 --name format JOB=1:4 logs/format.JOB.log COMMAND --shard JOB/4

Exit code 0 when all succeeded, else that of the first that failed; 75 means "saved, run the same command again".
"""

import argparse
import os
import sys
from typing import List, Optional, Sequence

from i2srf_kd.jobs import BACKENDS, Backend, JobArray, JobResult, Resources, get_backend
from i2srf_kd.jobs.array import final_code, parse_range
from i2srf_kd.jobs.messages import say
from i2srf_kd.jobs.resume import RESUME_KEY, FinishedElements
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__, usage="run_jobs [options] [JOB=FIRST:LAST] LOG COMMAND [ARGUMENT ...]")
    parser.add_argument("--backend", default="local", help=f"one of: {', '.join(sorted(BACKENDS))} (default: local)")
    parser.add_argument("--max_jobs", type=int, help="run at most so many at a time (default: CPUs / num_threads)")
    parser.add_argument("--num_threads", type=int, default=1, help="CPU threads of one process (default: 1)")
    parser.add_argument("--gpu", type=int, default=0, help="GPUs of one job on each machine (default: 0)")
    parser.add_argument("--nodes", type=int, default=1, help="machines of one job (default: 1)")
    parser.add_argument("--tasks", type=int, default=1, help="processes of one job on each machine (default: 1)")
    parser.add_argument("--kind", default="", help="kind of work, a section of conf/slurm.yaml")
    parser.add_argument("--mem", help="memory of one job such as 4G, for backends that reserve it")
    parser.add_argument("--time", help="longest run such as 1:00:00, for backends that reserve it")
    parser.add_argument("--name", default="job", help="what to call it on the terminal")
    parser.add_argument("--start_once", action="store_true", help="reserve nodes and tasks, start the command once")
    parser.add_argument(
        "--resume_key",
        metavar="TEXT",
        default=os.environ.get(RESUME_KEY),
        help="do not run elements again that succeeded with the same command and TEXT, which stands for what they read "
        f"(default: {RESUME_KEY} in the environment)",
    )
    parser.add_argument("--after", metavar="ID", help="start when the queued job ID has succeeded (Slurm)")
    parser.add_argument("--detach", action="store_true", help="submit, print the job's id and do not wait (Slurm)")
    parser.add_argument("--follow", action="store_true", help="show the log of a single command while it grows")
    parser.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="[JOB=FIRST:LAST] LOG COMMAND ...",
        help="JOB in the log path and in the command stands for the index",
    )
    return parser


def _run(array: JobArray, backend: Backend, resume_key: Optional[str]) -> List[JobResult]:
    """Run an array, or what is missing of it."""
    if not resume_key or array.indices is None:
        return backend(array)
    finished = FinishedElements(array, resume_key)
    missing = finished.missing()
    if finished.before:
        say(f"{array.name}: {len(finished.before)} of {len(array.indices)} succeeded before and are not run again")
    results = backend(missing) if missing else []
    finished.record(results)
    return results


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``; the exit code says how the jobs ended."""
    args = get_parser().parse_args(argv)
    words: List[str] = args.words
    indices = parse_range(words.pop(0)) if words and words[0].startswith("JOB=") else None
    if not words:
        raise UserError("nothing to run: give LOG and COMMAND, see --help")
    array = JobArray(
        command=words[1:],
        log=words[0],
        indices=indices,
        name=args.name,
        max_jobs=args.max_jobs,
        follow=args.follow,
        resources=Resources(args.num_threads, args.gpu, args.mem, args.time, args.nodes, args.tasks, args.start_once),
        kind=args.kind,
        after=args.after,
        detach=args.detach,
    )
    results = _run(array, get_backend(args.backend), args.resume_key)
    failed = [array.title_of(result.index) for result in results if result.code != 0]
    if len(failed) > 1:
        print(f"error: {len(failed)} of {len(results)} did not finish: {', '.join(failed)}", file=sys.stderr)
    return final_code(results)


if __name__ == "__main__":
    run_command(main)
