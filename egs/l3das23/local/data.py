#!/usr/bin/env python3
"""Prepare L3DAS23 Task 1: data/{train,valid,test} in Kaldi style.

    . ./path.sh                                                   # in egs/l3das23
    python local/data.py --data_dir data                          # Kaggle's client downloads, with your token
    python local/data.py --data_dir data --corpus_dir DIR         # DIR holds the folders or the zip archives

A part of the training speakers is held out for validation; the published dev set is the test set, as in the public
baseline. wav.scp lists microphone A, wav_2.scp microphone B.
"""

import argparse
from pathlib import Path
from typing import List, Optional, Sequence

import i2srf_kd.bin  # noqa: F401  (Ctrl-C is quiet from here on)
from i2srf_kd.corpora.kaggle import download_dataset
from i2srf_kd.corpora.l3das23 import WAIT_SECONDS, find_sets, read_set
from i2srf_kd.corpora.preparation import (
    get_preparation_parser,
    hold_out,
    parse_preparation,
    split_speakers,
    write_sets,
)
from i2srf_kd.data.kaldi_dir import DataDir, raise_problems
from i2srf_kd.system.errors import UserError, run_command, writing
from i2srf_kd.system.locks import held

DATASET = "l3dasteam/l3das23-task1"
TRAINING = {"train100": ["train100"], "train360": ["train360"], "both": ["train100", "train360"]}


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = get_preparation_parser(__doc__)
    parser.add_argument("--num_mics", type=int, choices=(1, 2), default=2, help="1: A alone, 2: A and B (default)")
    parser.add_argument("--train_part", choices=TRAINING, default="train100", help="default: %(default)s")
    parser.add_argument("--valid_speakers", default="", help="held out for validation (default: drawn)")
    parser.add_argument("--valid_share", type=float, default=0.05, help="of the speakers (default: %(default)s)")
    parser.add_argument("--split_seed", type=int, default=0, help="of the validation split (default: %(default)s)")
    return parser


def split_validation(data: DataDir, args: argparse.Namespace) -> List[DataDir]:
    """Training and validation part: by speaker, or by utterance where all are of one speaker."""
    speakers = args.valid_speakers.split()
    if not speakers:
        if len(data.spk2utt) == 1:
            valid = hold_out(data.utterances, args.valid_share, args.split_seed)
            return [data.subset(data.wav.keys() - set(valid)), data.subset(valid)]
        speakers = hold_out(list(data.spk2utt), args.valid_share, args.split_seed)
    return split_speakers(data, speakers)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = parse_preparation(get_parser(), argv)
    if not 0 < args.valid_share < 1:
        raise UserError(f"--valid_share {args.valid_share}: must lie between 0 and 1")
    if not args.corpus_dir:
        with writing(args.download_dir), held(Path(args.download_dir, ".lock"), args.download_dir, WAIT_SECONDS):
            download_dataset(DATASET, args.download_dir)
    names = [*TRAINING[args.train_part], "dev"]
    folders = find_sets(args.corpus_dir or args.download_dir, names, args.unpack_dir)
    read = {name: read_set(name, folders[name], args.num_mics, args.nj) for name in names}
    problems = [problem for _, found in read.values() for problem in found]
    raise_problems(f"the corpus has {len(problems)} problem(s)", problems)
    train, valid = split_validation(join([read[name][0] for name in names[:-1]]), args)
    write_sets(args, train, valid, read["dev"][0])
    return 0


def join(sets: Sequence[DataDir]) -> DataDir:
    """The utterances of several sets as one."""
    first, *others = sets
    for other in others:
        first = first.joined(other)
    return first


if __name__ == "__main__":
    run_command(main)
