"""Print parameters and multiply-accumulates of the named networks.

    python -m i2srf_kd.bin.complexity [--preset dpdcrn_student ...] [--seconds 4] [--num_mics 1]
    python -m i2srf_kd.bin.complexity --num_mics 8 --front channel_attention

MACs are counted on a forward pass of the length given and divided by it. They depend on the length a little, because
attention over time grows with its square.
"""

import argparse
from typing import Any, Dict, Optional, Sequence

import torch

from i2srf_kd.metrics.complexity import macs_per_second
from i2srf_kd.nets import PRESETS, STFT, build_dpdcrn
from i2srf_kd.nets.front import FRONTS, build_front
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.markdown import Column, table_of

FS = 16000


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("--preset", action="append", choices=list(PRESETS), help="networks; default: all")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the audio")
    parser.add_argument("--num_mics", type=int, default=1, help="channels of the mixture")
    parser.add_argument("--front", choices=list(FRONTS), help="what stands before the encoder; default: nothing")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    if args.seconds < 0.1 or args.num_mics < 1:
        raise UserError("--seconds must be at least 0.1 and --num_mics at least 1")
    front: Dict[str, Any] = {}
    if args.front:
        front = {"front": args.front}
        try:
            build_front(args.front, args.num_mics)
        except ValueError as error:
            raise UserError(str(error)) from None
    stft = STFT()

    def spectrum(seconds: float) -> Any:
        return (stft(torch.randn(1, round(seconds * FS), args.num_mics)),)

    columns = [
        Column("preset", "network", "`{}`"),
        Column("channels", "channels"),
        Column("blocks", "blocks"),
        Column("parameters", "parameters", "{:,}"),
        Column("gmacs_per_second_with_recurrent", "GMAC/s", "{:.2f}"),
        Column("gmacs_per_second", "without GRUs", "{:.2f}"),
    ]
    rows = []
    for preset in args.preset or PRESETS:
        network = build_dpdcrn(preset, input_channels=2 * args.num_mics, **front).eval()
        cost = macs_per_second(network, spectrum, args.seconds)
        rows.append({"preset": preset, **PRESETS[preset], **cost._asdict()})
    print("\n".join(table_of(columns, rows)))
    return 0


if __name__ == "__main__":
    run_command(main)
