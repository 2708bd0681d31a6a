#!/usr/bin/env python3
"""Prepare data/{train,valid,test} in Kaldi style from folders of one's own: speech and noise, or pairs.

    . ./path.sh                                                   # in egs/dns
    python local/data.py --data_dir data --speech_dir DIR --noise_dir DIR [--rir_dir DIR] [--test_dir PAIRS]
    python local/data.py --data_dir data --pairs_dir PAIRS [--test_dir PAIRS]

PAIRS holds folders noisy and clean, or tables wav.scp and spk1.scp. Beside the sets, data/noise.scp and data/rir.scp
list what the training mixes with.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

import i2srf_kd.bin  # noqa: F401  (Ctrl-C is quiet from here on)
from i2srf_kd.corpora import own_folders
from i2srf_kd.corpora.preparation import get_preparation_parser, parse_preparation, write_sets
from i2srf_kd.data.kaldi_dir import write_table
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    defaults = own_folders.FolderOptions()
    parser = get_preparation_parser(__doc__)
    parser.add_argument("--speech_dir", help="clean speech, at any depth")
    parser.add_argument("--noise_dir", help="noise, at any depth")
    parser.add_argument("--rir_dir", help="responses of rooms, at any depth")
    parser.add_argument("--pairs_dir", help="pairs to train with, in place of speech and noise")
    parser.add_argument("--test_dir", help="pairs to test with (default: speakers and noise that are held out)")
    parser.add_argument("--speaker_regex", help="its first group in a file's path is the speaker (default: the folder)")
    parser.add_argument("--held_out", type=float, default=defaults.held_out, help="share of speakers and noise per set")
    parser.add_argument("--mixtures", type=int, default=defaults.mixtures, help="for validation and test each, at most")
    parser.add_argument(
        "--snr", nargs=2, type=float, default=defaults.snr, metavar=("LOW", "HIGH"), help="of these, in dB"
    )
    parser.add_argument("--fs", type=int, default=defaults.fs, help="rate in Hz of noise and mixtures")
    parser.add_argument("--split_seed", type=int, default=defaults.seed, help="of the sets and the mixtures")
    return parser


def check(args: argparse.Namespace) -> own_folders.FolderOptions:
    """The options of the sets."""
    if not args.speech_dir and not args.pairs_dir or args.speech_dir and args.pairs_dir:
        raise UserError("give --speech_dir and --noise_dir, or --pairs_dir: what the model is to learn from")
    if args.speech_dir and not args.noise_dir:
        raise UserError("--speech_dir needs --noise_dir: what the speech is to be mixed with")
    if not 0 < args.held_out < 0.5:
        raise UserError(f"--held_out {args.held_out}: must lie between 0 and 0.5")
    if args.mixtures < 1:
        raise UserError(f"--mixtures {args.mixtures}: must be 1 or more")
    if args.snr[0] > args.snr[1]:
        raise UserError(f"--snr {args.snr[0]:g} {args.snr[1]:g}: give the lowest first")
    return own_folders.FolderOptions(
        args.fs, args.speaker_regex, args.held_out, args.mixtures, (args.snr[0], args.snr[1]), seed=args.split_seed
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = parse_preparation(get_parser(), argv)
    options, root = check(args), Path(args.data_dir)
    test = [own_folders.read_pairs(args.test_dir, nj=args.nj)] if args.test_dir else []
    parts = 2 - len(test)
    sets = {}
    for name, folder in (("noise", args.noise_dir), ("rir", args.rir_dir)):
        (root / f"{name}.scp").unlink(missing_ok=True)
        if folder:
            sets[name] = own_folders.prepare_noise(
                folder, root / "copies" / name, options, parts if name == "noise" else 0, args.nj
            )
            write_table(root / f"{name}.scp", sets[name][0])
    if args.pairs_dir:
        data = own_folders.read_pairs(args.pairs_dir, args.speaker_regex, args.nj)
        train, *held_out = own_folders.split_speech(data, options, parts)
    else:
        data = own_folders.read_speech(args.speech_dir, args.speaker_regex)
        train, *speech = own_folders.split_speech(data, options, parts)
        held_out = [
            own_folders.write_mixtures(part, list(noise.values()), root / "mixtures" / name, options, args.nj)
            for part, noise, name in zip(speech, sets["noise"][1:], own_folders.HELD_OUT, strict=False)
        ]
    write_sets(args, train, *held_out, *test)
    return 0


if __name__ == "__main__":
    run_command(main)
