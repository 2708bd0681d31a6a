"""Run a command that reads its data sets from a copy on this machine's own disk.

    python -m i2srf_kd.bin.with_scratch --scratch '$TMPDIR' --sets dump/raw/train dump/raw/valid -- COMMAND ...

The audio that the tables of the sets name is copied to the folder, compared by size and SHA-256, read by COMMAND in the
place of its source, and removed at the end, also after a failure or a signal. Tables, options and records stay as they
are. Exit code: the command's; 75 when a signal came before its start, so that the same command may be given again.
"""

import argparse
import os
from typing import List, Optional, Sequence, Set

from i2srf_kd.audio.ark import file_of
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.scratch import VARIABLE, run_with_copy


def audio_files(sets: Sequence[str]) -> List[str]:
    """The audio files that the tables of data sets name."""
    files: Set[str] = set()
    for folder in sets:
        data = DataDir.read(folder)
        for table in (data.wav, data.spk1, *data.more_wav):
            files.update(file_of(path) for path in table.values())
    return sorted(files)


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(
        __doc__, usage="with_scratch --scratch FOLDER --sets DATA_DIR [DATA_DIR ...] -- COMMAND [ARGUMENT ...]"
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
    return run_with_copy(command, args.scratch, audio_files(args.sets))


if __name__ == "__main__":
    run_command(main)
