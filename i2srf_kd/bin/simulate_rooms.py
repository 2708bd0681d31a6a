"""Make a corpus in L3DAS23's layout from dry speech and noise, in simulated rooms.

    python -m i2srf_kd.bin.simulate_rooms --speech_dir DIR --noise_dir DIR --out DIR [--rooms 40] [--seed 0] [--nj 4]

Two first-order Ambisonics microphones (W, Y, Z, X) 20 cm apart, one speaker, a few sources of noise; the label is the
direct sound of the speech at microphone A's W. Folders "train" and "dev" directly in a source folder are its sets;
else some speakers (the part of a file's name before the first hyphen or underscore) and some files of noise are held
out for dev. The same options give the same audio, whatever --nj; a complete corpus is kept, an interrupted one is
continued. Needs the package pyroomacoustics.
"""

import argparse
from typing import Any, Dict, Optional, Sequence

from i2srf_kd.corpora.simulated_corpus import RoomOptions, simulate_corpus
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    defaults = RoomOptions()
    parser = command_parser(__doc__)
    parser.add_argument(
        "--speech_dir", required=True, help="dry speech: .wav, .flac or .ogg files in any depth; 12 s of each are used"
    )
    parser.add_argument("--noise_dir", required=True, help="noise, likewise")
    parser.add_argument("--out", required=True, help="folder of the corpus, new or made by this command")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of all random choices (default: %(default)s)")
    parser.add_argument("--fs", type=int, default=defaults.fs, help="sampling rate in Hz (default: %(default)s)")
    parser.add_argument("--rooms", type=int, default=defaults.rooms, help="rooms per set (default: %(default)s)")
    for name in ("train", "dev"):
        parser.add_argument(f"--{name}_utts", type=int, default=0, help=f"utterances of {name} (default: all speech)")
    for name, what in (("rt60", "reverberation times in s"), ("snr", "signal-to-noise ratios at W of A in dB")):
        low, high = getattr(defaults, name)
        parser.add_argument(
            f"--{name}", type=float, nargs=2, default=(low, high), metavar=("LOW", "HIGH"),
            help=f"{what} (default: {low} {high})",
        )  # fmt: skip
    parser.add_argument("--nj", type=int, default=1, help="processes (default: %(default)s)")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = vars(get_parser().parse_args(argv))
    speech_dir, noise_dir, out, nj = (args.pop(name) for name in ("speech_dir", "noise_dir", "out", "nj"))
    options: Dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in args.items()}
    print(f"corpus: {simulate_corpus(speech_dir, noise_dir, out, RoomOptions(**options), nj)}")
    return 0


if __name__ == "__main__":
    run_command(main)
