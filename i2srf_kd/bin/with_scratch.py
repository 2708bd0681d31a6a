"""Run a command that reads its data sets from a copy on this machine's own disk.

    python -m i2srf_kd.bin.with_scratch --scratch '$TMPDIR' --sets dump/raw/train dump/raw/valid -- COMMAND ...

The audio that the tables of the sets name is copied to the folder (once for all jobs and ranks on the machine),
compared by size and SHA-256, read by COMMAND in the place of its source, and removed by the last that uses it, also
after a failure or a signal. Tables, options and records stay as they are. Exit code: the command's; 75 when a signal
came before its start, so that the same command may be given again.
"""

import argparse
import hashlib
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Iterator, List, Optional, Sequence, Set, Tuple

from i2srf_kd.audio.ark import file_of
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.jobs.array import EXIT_RUN_AGAIN
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.processes import FORWARDED, call
from i2srf_kd.system.scratch import VARIABLE, scratch_copy


class _Stopped(BaseException):
    """A signal came while files were copied."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number if number in (signal.SIGINT, signal.SIGHUP) else EXIT_RUN_AGAIN


@contextmanager
def _stoppable() -> Iterator[List[int]]:
    """The first signal raises, those after it only go into the list, so that what was copied is removed."""
    received: List[int] = []

    def receive(number: int, frame: Optional[FrameType]) -> None:
        received.append(number)
        if len(received) == 1:
            raise _Stopped(number)

    before = {number: signal.signal(number, receive) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def files_of(sets: Sequence[str]) -> Tuple[List[str], str]:
    """The audio files of data sets, and a text that changes when they are formatted anew."""
    files: Set[str] = set()
    digest = hashlib.sha256()
    for folder in sets:
        data = DataDir.read(folder)
        for table in (data.wav, data.spk1, *data.more_wav):
            files.update(file_of(path) for path in table.values())
        for scp in sorted(Path(folder).glob("*.scp")):
            digest.update(f"{scp.name} {scp.stat().st_mtime_ns}".encode() + scp.read_bytes())
    return sorted(files), digest.hexdigest()


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="with_scratch --scratch FOLDER --sets DATA_DIR [DATA_DIR ...] -- COMMAND [ARGUMENT ...]",
    )
    parser.add_argument("--scratch", required=True, help="folder on this machine; may hold variables such as $TMPDIR")
    parser.add_argument("--sets", nargs="+", required=True, metavar="DATA_DIR", help="with wav.scp and spk1.scp")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError("nothing to run: give -- COMMAND after the sets")
    if os.environ.get(VARIABLE):
        raise UserError(f"{VARIABLE} is set already: a copy within a copy")
    files, version = files_of(args.sets)
    try:
        with _stoppable() as received, scratch_copy(args.scratch, files, version) as copy:
            code = call(command, environment={VARIABLE: str(copy.root)}, pass_fds=[copy.lock])
            received.append(0)  # one that comes now finds nothing to stop
            return code
    except _Stopped as stopped:
        return stopped.code


if __name__ == "__main__":
    run_command(main)
