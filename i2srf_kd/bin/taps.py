"""List what can be tapped in an ESPnet enhancement model: its modules with the shapes of what they give.

    python -m i2srf_kd.bin.taps exp/teacher [--match bsrnn] [--depth 4] [--inputs]
    python -m i2srf_kd.bin.taps conf/small/train_teacher_bsrnn.yaml --check conf/distill/my.yaml

MODEL is an experiment folder, or a training configuration (.yaml). The model runs twice on noise, one clip of a second
and two clips of one and a half: an axis that grew from 1 to 2 is the batch (B), one that grew by half is time (T), the
others are channels (C) and bins (F). Each row ends with the tap to write into a distillation configuration; where the
order of C and F is a guess, swap the letters. --check shows the feature sets that a configuration's taps give.
"""

import argparse
from pathlib import Path
from typing import Any, Optional, Sequence

import yaml

from i2srf_kd.metrics.complexity import count_parameters
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError, run_command


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("model", metavar="MODEL", help="experiment folder or training configuration")
    parser.add_argument("--match", default="", metavar="TEXT", help="only modules whose name contains TEXT")
    parser.add_argument("--depth", type=int, default=4, help="only modules nested at most this deep (default: 4)")
    parser.add_argument("--inputs", action="store_true", help="also what modules are given")
    parser.add_argument("--all", action="store_true", help="also what cannot be tapped")
    parser.add_argument("--check", metavar="FILE", help="distillation configuration whose taps are tried")
    parser.add_argument("--side", choices=("teacher", "student"), default="teacher", help="whose taps --check tries")
    return parser


def _print_modules(model: Any, fs: int, args: argparse.Namespace) -> None:
    from i2srf_kd.espnet.tap_listing import tap_text, tappable

    print("| class | shape, one second | layers | tap |\n|---|---|---|---|")
    rows = 0
    for seen, shape, is_complex, calls, layout in tappable(model, fs, args.inputs):
        hidden = seen.module.count(".") >= args.depth or (layout is None and not args.all)
        if hidden or args.match not in seen.module:
            continue
        size = " x ".join(map(str, shape)) + (" complex" if is_complex else "")
        tap = f"`{tap_text(seen, layout)}`" if layout else f"{seen.module}: cannot be tapped, no axes B and T"
        print(f"| {seen.kind} | {size} | {calls} | {tap} |")
        rows += 1
    if not rows:
        raise UserError("no module that can be tapped: widen --match and --depth; --all lists the others too")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    from i2srf_kd.espnet.default_taps import default_taps
    from i2srf_kd.espnet.loading import build_untrained_enhancer
    from i2srf_kd.espnet.tap_listing import recorded_sets
    from i2srf_kd.inference.experiment import CONFIG

    folder = Path(args.model)
    enhancer = build_untrained_enhancer(folder / CONFIG if folder.is_dir() else folder)
    model, fs = enhancer.model, enhancer.fs
    if args.check:
        config = read_yaml(args.check)
        spec = (config.get("distill") or config).get(f"{args.side}_taps")
        try:
            lines = recorded_sets(model, fs, spec)
        except ValueError as error:
            raise UserError(f"{args.check}, {args.side}_taps: {error}") from None
        print("feature sets of one second, channels x frames x bins of each layer")
        print("\n".join(lines))
        return 0
    name = type(model.separator).__name__
    print(f"{args.model}: {name}, {count_parameters(model):,} parameters, {fs} Hz\n")
    if any(hasattr(module, "feature_sink") for module in model.modules()):
        print("It announces its feature sets itself, no taps needed (channels x frames x bins of each layer):")
        print("\n".join(recorded_sets(model, fs, None)) + "\n")
    elif spec := default_taps(model):
        print("Its default taps, as they are written, and what they give (channels x frames x bins of each layer):")
        print(
            yaml.safe_dump({"teacher_taps": spec}, sort_keys=False) + "\n".join(recorded_sets(model, fs, spec)) + "\n"
        )
    _print_modules(model, fs, args)
    return 0


if __name__ == "__main__":
    run_command(main)
