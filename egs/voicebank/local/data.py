#!/usr/bin/env python3
"""Prepare VoiceBank-DEMAND (28 speakers): data/{train,valid,test} in Kaldi style.

    . ./path.sh                                                   # in egs/voicebank
    python local/data.py --data_dir data                          # downloads about 5.4 GB
    python local/data.py --data_dir data --corpus_dir DIR         # DIR holds the folders or the zip archives

The corpus is by Valentini-Botinhao, https://doi.org/10.7488/ds/2117, CC BY 4.0. Two of its training speakers are held
out for validation.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

import i2srf_kd.bin  # noqa: F401  (Ctrl-C is quiet from here on)
from i2srf_kd.corpora.archive import DownloadError, download, unzip, verify
from i2srf_kd.corpora.preparation import (
    DEPTH,
    get_preparation_parser,
    holds_audio,
    listing,
    parse_preparation,
    search,
    split_speakers,
    unpacked_audio,
    write_sets,
)
from i2srf_kd.data.kaldi_dir import DataDir, raise_problems, read_lines
from i2srf_kd.data.pairs import NoisyClean, check_pairs, find_pairs
from i2srf_kd.system.errors import UserError, run_command

logger = logging.getLogger(__name__)

SERVER = "https://datashare.ed.ac.uk"


class Archive(NamedTuple):
    """A published archive; it unpacks to a folder of its own name."""

    name: str
    md5: str
    uuid: str = ""

    @property
    def urls(self) -> List[str]:
        """Addresses, the newer form first."""
        newer = [f"{SERVER}/bitstreams/{self.uuid}/download"] if self.uuid else []
        return [*newer, f"{SERVER}/bitstream/handle/10283/2791/{self.name}.zip"]


AUDIO_ARCHIVES = (
    Archive("clean_trainset_28spk_wav", "d2d5a45ec32f8fcbf201bde0447e20ba", "245452b6-6235-44b6-a6f9-e7eb19797769"),
    Archive("noisy_trainset_28spk_wav", "1fca9e8bafb8cd069f6653c6d92f9e9c", "ecb5a102-bb00-46d3-8af5-40c79823b837"),
    Archive("clean_testset_wav", "34eb1c0ba7ef667e9b966866c542fc16", "dec213d3-bf57-4777-9663-c24bdce92d5e"),
    Archive("noisy_testset_wav", "fb1b86caa31e8ba5b506c0c64da9aab5", "13c1bfbf-14a6-41db-9b41-8f7310f01ad5"),
)
LOG_ARCHIVE = Archive("logfiles", "0d16f5b6afe12d64238d1e4a0e6ff6e8")
LOG_FILES = {"trainset_28spk": "log_trainset_28spk.txt", "testset": "log_testset.txt"}
PUBLISHED_COUNTS = {"trainset_28spk": 11572, "testset": 824}


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = get_preparation_parser(__doc__)
    parser.add_argument("--valid_speakers", default="p226 p287", help="held out (default: %(default)s)")
    return parser


def find_audio(args: argparse.Namespace) -> Dict[str, Path]:
    """Folder of each audio archive, unpacked or downloaded where needed."""
    unpack_dir = Path(args.unpack_dir)
    if not args.corpus_dir:
        for archive in AUDIO_ARCHIVES:
            if not (unpack_dir / archive.name).exists():
                _download(archive, args)
        return {a.name: unpacked_audio(_download_path(a, args), unpack_dir / a.name) for a in AUDIO_ARCHIVES}
    folders = {a.name: search(args.corpus_dir, a.name, holds_audio) for a in AUDIO_ARCHIVES}
    zips = {a.name: search(args.corpus_dir, f"{a.name}.zip", Path.is_file) for a in AUDIO_ARCHIVES}
    missing = [a.name for a in AUDIO_ARCHIVES if not folders[a.name] and not zips[a.name]]
    if missing:
        raise UserError(
            f"--corpus_dir {args.corpus_dir}: neither a folder with .wav files nor a zip archive of "
            f"{', '.join(missing)} there or up to {DEPTH} folders down, where this is: {listing(args.corpus_dir)}; "
            "unpack other archives first, or leave --corpus_dir out to download the corpus"
        )
    found = {}
    for archive in AUDIO_ARCHIVES:
        path = folders[archive.name] or zips[archive.name]
        if path is not None:
            found[archive.name] = path if path.is_dir() else _unpack(archive, path, unpack_dir, args.check_md5)
    return found


def _unpack(archive: Archive, zip_file: Path, unpack_dir: Path, check_md5: bool) -> Path:
    """Unpack an archive that the user brought along."""
    folder = unpack_dir / archive.name
    if check_md5 and not folder.exists():
        verify(zip_file, archive.md5)
    return unpacked_audio(zip_file, folder)


def _download_path(archive: Archive, args: argparse.Namespace) -> Path:
    return Path(args.download_dir, f"{archive.name}.zip")


def _download(archive: Archive, args: argparse.Namespace) -> Path:
    return download(archive.urls, _download_path(archive, args), md5=archive.md5 if args.check_md5 else None)


def find_logs(args: argparse.Namespace) -> Dict[str, Optional[Path]]:
    """The log files with noise and SNR of each utterance; they are welcome but not needed."""
    roots = [args.corpus_dir] if args.corpus_dir else []
    if not args.corpus_dir:
        try:
            archive = _download(LOG_ARCHIVE, args)
            roots.append(str(unzip(archive, Path(args.unpack_dir, LOG_ARCHIVE.name))))
        except DownloadError as error:
            logger.warning("no log files, utt2snr and utt2noise are left out: %s", error)
    found: Dict[str, Optional[Path]] = {}
    for part, name in LOG_FILES.items():
        found[part] = next((path for root in roots if (path := search(root, name, Path.is_file))), None)
    return found


def read_log(path: Optional[Path], utterances: Sequence[str]) -> Dict[str, Dict[str, str]]:
    """``utt2noise`` and ``utt2snr`` from lines ``<utterance> <noise> <SNR>``; empty without a log file."""
    if path is None:
        return {}
    tables: Dict[str, Dict[str, str]] = {"utt2noise": {}, "utt2snr": {}}
    wanted = set(utterances)
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            utt_id, noise, snr = fields
            float(snr)
        except ValueError:
            raise UserError(f"{path}:{number}: expected '<utterance> <noise> <SNR>', found {line!r}") from None
        if utt_id in wanted:
            tables["utt2noise"][utt_id], tables["utt2snr"][utt_id] = noise, snr
    return {name: table for name, table in tables.items() if table}


def speaker_of(utt_id: str) -> str:
    """Files are called <speaker>_<number>.wav."""
    return utt_id.partition("_")[0]


def as_data(pairs: Dict[str, NoisyClean], log: Optional[Path]) -> DataDir:
    """Tables of a part of the corpus."""
    return DataDir(
        wav={utt_id: os.path.normpath(pair.noisy) for utt_id, pair in pairs.items()},
        spk1={utt_id: os.path.normpath(pair.clean) for utt_id, pair in pairs.items()},
        utt2spk={utt_id: speaker_of(utt_id) for utt_id in pairs},
        extra=read_log(log, list(pairs)),
    )


def check_counts(found: Dict[str, int], demanded: bool) -> None:
    """Compare with the published numbers of utterances."""
    if found == PUBLISHED_COUNTS:
        return
    text = ", ".join(f"{part}: {found[part]} pairs, published {PUBLISHED_COUNTS[part]}" for part in PUBLISHED_COUNTS)
    if demanded:
        raise UserError(f"the corpus is not complete ({text}); get it anew, or accept it with --check_counts false")
    logger.warning("not the published number of utterances (%s)", text)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = parse_preparation(get_parser(), argv)
    folders = find_audio(args)
    logs = find_logs(args)
    parts: Dict[str, DataDir] = {}
    problems: List[str] = []
    for part in PUBLISHED_COUNTS:
        pairs, unmatched = find_pairs(folders[f"noisy_{part}_wav"], folders[f"clean_{part}_wav"])
        problems += unmatched + check_pairs(pairs, args.nj, desc=f"check headers of {part}")
        parts[part] = as_data(pairs, logs[part])
    raise_problems(f"the corpus has {len(problems)} bad file(s)", problems)
    check_counts({part: len(data) for part, data in parts.items()}, args.check_counts)

    train, valid = split_speakers(parts["trainset_28spk"], args.valid_speakers.split())
    write_sets(args, train, valid, parts["testset"])
    return 0


if __name__ == "__main__":
    run_command(main)
