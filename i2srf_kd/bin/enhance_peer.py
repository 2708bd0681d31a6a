"""Enhance a data set with a package from elsewhere, with the weights it comes with, to compare with.

    python -m i2srf_kd.bin.enhance_peer rnnoise dump/raw/test exp/rnnoise/enhanced_test --venv_dir exp/peers
    python -m i2srf_kd.bin.enhance_peer --list

The package is installed into an environment of its own, VENV_DIR/NAME, on first use; nothing but wheels is downloaded.
Writes OUT_DIR/wav/<utterance>.wav (16 bit, the mixture's rate), OUT_DIR/spk1.scp and wav.scp, and OUT_DIR/enhance.json:
real-time factor (CPU time, without resampling), peak memory, the delay that was taken out, version and licence.
"""

import argparse
import json
from pathlib import Path
from typing import Optional, Sequence

from i2srf_kd.audio.io import read_audio, write_audio
from i2srf_kd.bench.peers import PEERS, enhance, environment_of, get_peer
from i2srf_kd.bin.enhance_set import SCPS, read_mixtures
from i2srf_kd.data.kaldi_dir import write_table
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.files import write_text


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("peer", metavar="NAME", nargs="?", help=", ".join(PEERS))
    parser.add_argument("data_dir", metavar="DATA_DIR", nargs="?")
    parser.add_argument("out_dir", metavar="OUT_DIR", nargs="?", type=Path)
    parser.add_argument("--venv_dir", type=Path, default=Path("peers"), help="for the environments (default: peers)")
    parser.add_argument("--list", action="store_true", help="print the known packages and return")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    if args.list:
        for name, peer in PEERS.items():
            print(f"{name:16} {peer.package:26} {peer.what} ({peer.licence})")
        return 0
    if args.out_dir is None:
        raise UserError("give NAME, DATA_DIR and OUT_DIR, or --list")
    get_peer(args.peer)
    mixtures = {utt: read_audio(path, mono=True) for utt, path in read_mixtures(args.data_dir).items()}
    outcome = enhance(args.peer, environment_of(args.peer, args.venv_dir), mixtures)
    for scp in SCPS:
        (args.out_dir / scp).unlink(missing_ok=True)  # they stand for a complete set
    files = {utt: args.out_dir / "wav" / f"{utt}.wav" for utt in outcome.waves}
    for utt, wave in outcome.waves.items():
        write_audio(files[utt], wave, mixtures[utt][1])
    write_text(args.out_dir / "enhance.json", json.dumps(outcome.record, indent=2) + "\n")
    for scp in SCPS:
        write_table(args.out_dir / scp, files)
    print(f"{args.peer}: {len(files)} utterances, real-time factor {outcome.record['real_time_factor']:.4f}")
    return 0


if __name__ == "__main__":
    run_command(main)
