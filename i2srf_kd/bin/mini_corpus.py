"""Write the small synthetic corpus in VoiceBank-DEMAND's layout, in simulated rooms in L3DAS23's, or its sources alone.

    python -m i2srf_kd.bin.mini_corpus OUT_DIR [--fs 16000] [--seed 0] [--train_utts 168] [--layout l3das23 --nj 2]

Needs the package espeakng-loader, for L3DAS23's layout also pyroomacoustics. A complete corpus made with the same
options is kept.
"""

import argparse
from typing import Optional, Sequence

from i2srf_kd.corpora.simulated_corpus import simulate_mini_corpus
from i2srf_kd.corpora.synthesis import MiniCorpusOptions, generate_mini_corpus, generate_mini_sources
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    defaults = MiniCorpusOptions()
    parser = command_parser(__doc__)
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder of the corpus, new or made by this command")
    parser.add_argument("--fs", type=int, default=defaults.fs, help="sampling rate in Hz (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of all random choices (default: %(default)s)")
    layouts = ("voicebank", "l3das23", "sources")
    parser.add_argument("--layout", choices=layouts, default=layouts[0], help="default: %(default)s")
    parser.add_argument("--nj", type=int, default=1, help="processes that simulate rooms (default: %(default)s)")
    for part, speakers in (("train", 8), ("valid", 2), ("test", 2)):
        parser.add_argument(
            f"--{part}_utts",
            type=int,
            default=getattr(defaults, f"{part}_utts"),
            help=f"utterances for {part}, over {speakers} speakers (default: %(default)s)",
        )
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = vars(get_parser().parse_args(argv))
    folder, layout, nj = args.pop("out_dir"), args.pop("layout"), args.pop("nj")
    options = MiniCorpusOptions(**args)
    if layout == "l3das23":
        simulate_mini_corpus(folder, options, nj)
    elif layout == "sources":
        generate_mini_sources(folder, options)
    else:
        generate_mini_corpus(folder, options)
    print(f"mini corpus: {folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
