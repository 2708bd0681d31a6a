"""What the local/data.py of all recipes share: options, looking for a corpus, splitting by speaker, writing sets."""

import argparse
import logging
import os
from pathlib import Path
from typing import Callable, List, Optional, Sequence

import numpy as np

from i2srf_kd.audio.folders import is_hidden, walk, warn_once
from i2srf_kd.corpora.archive import unzip
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, remove_temporaries

logger = logging.getLogger(__name__)

DEPTH = 4  # folders between the corpus folder and what is looked for


def get_preparation_parser(description: Optional[str]) -> argparse.ArgumentParser:
    """A parser with the options that the pipeline gives to every local/data.py."""
    parser = command_parser(description)
    parser.add_argument("--data_dir", default="data", help="gets a folder per set (default: %(default)s)")
    parser.add_argument("--corpus_dir", help="where the folders or zip archives of the corpus lie (default: download)")
    parser.add_argument("--download_dir", help="for archives to be downloaded (default: <data_dir>/../downloads)")
    parser.add_argument("--unpack_dir", help="for unpacked archives (default: the folder of downloads)")
    parser.add_argument("--check_md5", type=to_bool, default=True, help="verify archives (default: true)")
    parser.add_argument("--check_counts", type=to_bool, default=True, help="demand all utterances (default: true)")
    parser.add_argument("--train_set", default="train", help="name of the training set (default: %(default)s)")
    parser.add_argument("--valid_set", default="valid", help="name of the validation set (default: %(default)s)")
    parser.add_argument("--test_set", default="test", help="name of the test set (default: %(default)s)")
    parser.add_argument("--nj", type=int, default=8, help="threads that read headers (default: %(default)s)")
    return parser


def parse_preparation(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse options, check the shared ones and fill in the folders of downloads and unpacked archives.

    Raises:
        UserError: an option is out of range, or two sets have one name.
    """
    args = parser.parse_args(argv)
    if args.nj < 1:
        raise UserError(f"--nj {args.nj}: must be 1 or more")
    if len(set(set_names(args))) < 3:
        raise UserError(f"the names of the sets must differ: {' '.join(set_names(args))}")
    if args.corpus_dir and not Path(args.corpus_dir).is_dir():
        why = "is a file, give the folder that it is in" if os.path.exists(args.corpus_dir) else "no such folder"
        raise UserError(f"--corpus_dir {args.corpus_dir}: {why}")
    args.download_dir = args.download_dir or os.path.normpath(os.path.join(args.data_dir, os.pardir, "downloads"))
    args.unpack_dir = args.unpack_dir or args.download_dir
    return args


def set_names(args: argparse.Namespace) -> List[str]:
    """Names of the training, validation and test set."""
    return [args.train_set, args.valid_set, args.test_set]


def to_bool(text: str) -> bool:
    """``true`` or ``false``, as in ESPnet's options."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text}")
    return text.lower() == "true"


def search(root: PathLike, name: str, wanted: Callable[[Path], bool]) -> Optional[Path]:
    """The entry called ``name``, in any case, in ``root`` or some folders down, the uppermost one, or None."""
    walked = walk(root, warn_once, DEPTH)
    found = (
        folder / entry
        for folder, subfolders, files in walked
        for entry in (*subfolders, *files)
        if entry.lower() == name.lower()
    )
    return min(filter(wanted, found), key=lambda path: len(path.parts), default=None)


def holds_audio(path: Path) -> bool:
    """Whether a folder has .wav files in it or below it."""
    walked = walk(path, warn_once) if path.is_dir() else ()
    return any(name.lower().endswith(".wav") for _, _, files in walked for name in files)


def unpacked_audio(archive: PathLike, folder: Path) -> Path:
    """Unpack an archive of audio, see :func:`i2srf_kd.corpora.archive.unzip`.

    Raises:
        UserError: it cannot be unpacked, or has no audio.
    """
    if not holds_audio(unzip(archive, folder)):
        raise UserError(f"{folder}: expected .wav files, there are none, but {listing(folder)}")
    return folder


def listing(folder: PathLike, limit: int = 5) -> str:
    """What lies in a folder, for messages."""
    names = sorted(path.name for path in Path(folder).iterdir() if not is_hidden(path.name))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "nothing"


def split_speakers(data: DataDir, speakers: Sequence[str]) -> List[DataDir]:
    """Training and validation part of the training data.

    Raises:
        UserError: no speakers or unknown ones are named, or all of them.
    """
    unknown = sorted(set(speakers) - set(data.utt2spk.values()))
    if unknown or not speakers:
        what = f"no speakers {' '.join(unknown)}" if unknown else "empty"
        raise UserError(f"--valid_speakers '{' '.join(speakers)}': {what}; there are {' '.join(data.spk2utt)}")
    valid = {utt_id for utt_id, speaker in data.utt2spk.items() if speaker in speakers}
    if len(valid) == len(data):
        raise UserError(f"--valid_speakers '{' '.join(speakers)}': nothing is left for training")
    return [data.subset(data.wav.keys() - valid), data.subset(valid)]


def hold_out(names: Sequence[str], share: float, seed: int) -> List[str]:
    """A share of the names, at least one, drawn by the seed; sorted."""
    count = max(1, round(share * len(names)))
    return sorted(np.random.default_rng(seed).permutation(sorted(names))[:count].tolist())


def write_sets(args: argparse.Namespace, train: DataDir, valid: DataDir, test: DataDir) -> None:
    """Write the three sets below ``--data_dir`` and say what is in them."""
    for name, data in zip(set_names(args), (train, valid, test), strict=True):
        folder = Path(args.data_dir, name)
        remove_temporaries(folder)  # of a run that was killed
        data.write(folder)
        print(f"{folder}: {len(data)} utterances of {len(data.spk2utt)} speakers")
