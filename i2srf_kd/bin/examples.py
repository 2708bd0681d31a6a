"""Put a few test utterances of all systems side by side: spectrograms to look at, audio to listen to.

    python -m i2srf_kd.bin.examples dump/raw/test --system teacher=exp/teacher/enhanced_test/spk1.scp -o exp/examples

Writes one picture per utterance (mixture, every system, reference; one scale) and the audio of all of them.
"""

import argparse
from pathlib import Path
from typing import Dict, Optional, Sequence

from i2srf_kd.data.kaldi_dir import DataDir, Table, read_audio_table
from i2srf_kd.results.listening import write_examples
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("data_dir", type=Path, help="data folder with wav.scp (mixtures) and spk1.scp (references)")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder for pictures and audio")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=SCP", help="enhanced audio of a system")
    parser.add_argument("--num", type=int, default=3, help="number of utterances, spread over the set")
    parser.add_argument("--ref_channel", type=int, default=0, help="channel of a multi-channel mixture to show")
    return parser


def read_systems(options: Sequence[str]) -> Dict[str, Table]:
    """Tables of ``NAME=SCP`` options."""
    systems = {}
    for option in options:
        name, _, path = option.partition("=")
        if not name or not path:
            raise UserError(f"--system {option}: give NAME=SCP")
        systems[name] = read_audio_table(path)
    return systems


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    write_examples(DataDir.read(args.data_dir), read_systems(args.system), args.out, args.num, args.ref_channel)
    print(args.out)
    return 0


if __name__ == "__main__":
    run_command(main)
