"""Put a few test utterances of all systems side by side: spectrograms to look at, audio to listen to.

    python -m i2srf_kd.bin.examples dump/raw/test --system teacher=exp/teacher/enhanced_test/spk1.scp -o exp/examples

Writes one picture per utterance (mixture, every system, reference; one scale) and the audio of all of them.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from i2srf_kd.audio.io import read_audio, write_audio
from i2srf_kd.data.kaldi_dir import DataDir, read_table
from i2srf_kd.results.plots import spectrogram_grid
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.files import remove_temporaries
from i2srf_kd.system.progress import progress


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, help="data folder with wav.scp (mixtures) and spk1.scp (references)")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder for pictures and audio")
    parser.add_argument("--system", action="append", default=[], metavar="NAME=SCP", help="enhanced audio of a system")
    parser.add_argument("--num", type=int, default=3, help="number of utterances, spread over the set")
    parser.add_argument("--ref_channel", type=int, default=0, help="channel of a multi-channel mixture to show")
    return parser


def spread(names: Sequence[str], number: int) -> List[str]:
    """``number`` names evenly spread over the list, all of them when there are fewer."""
    places = np.unique(np.linspace(0, len(names) - 1, num=min(number, len(names))).round().astype(int))
    return [names[place] for place in places]


def read_systems(options: Sequence[str]) -> Dict[str, Dict[str, str]]:
    """Tables of ``NAME=SCP`` options."""
    systems = {}
    for option in options:
        name, _, path = option.partition("=")
        if not name or not path:
            raise UserError(f"--system {option}: give NAME=SCP")
        systems[name] = read_table(path)
    return systems


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    data = DataDir.read(args.data_dir)
    systems = read_systems(args.system)
    remove_temporaries(args.out)  # of a run that was killed
    for utt in progress(spread(list(data.wav), args.num), desc="examples"):
        mixture, fs = read_audio(data.wav[utt])
        waves = {"noisy": mixture if mixture.ndim == 1 else mixture[:, args.ref_channel]}
        for name, table in systems.items():
            if utt not in table:
                raise UserError(f"system {name} has no utterance {utt}: enhance the test set again (stage 6)")
            waves[name] = read_audio(table[utt], mono=True)[0]
        waves["clean"] = read_audio(data.spk1[utt], mono=True)[0]
        spectrogram_grid(waves, fs, args.out / f"{utt}.png")
        for name, wave in waves.items():
            write_audio(args.out / f"{utt}_{name}.wav", wave, fs)
    print(args.out)
    return 0


if __name__ == "__main__":
    run_command(main)
