"""Measure speed and memory against plain references and against the limits of the machine.

    python tools/bench loss     distillation loss, forward and backward
    python tools/bench step     a training step, its parts, and what makes it faster
    python tools/bench curve    what makes it faster, and the loss of a short training
    python tools/bench loader   reading of training chunks
    python tools/bench infer    offline inference: naive, this package, onnxruntime
    python tools/bench quality  what int8 and bfloat16 cost a trained model in quality
    python tools/bench stream   causal networks on a stream
    python tools/bench scale    long recordings: time and memory against length
    python tools/bench models   trained networks of any kind beside each other

Prints a table; --json also writes it with everything that was measured. See docs/performance.md.
"""

import argparse
import json
import sys
from typing import Any, Dict, Optional, Sequence

import torch

from bench import curve, infer, loader, loss, models, quality, scale, step, stream
from bench.measure import (
    ALLOCATOR_OPTION,
    ALLOCATORS,
    MEMORY_OPTION,
    Clock,
    has_allocator_settings,
    usage_here,
)
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError

PARTS: Dict[str, Any] = {
    "loss": loss, "step": step, "curve": curve, "loader": loader, "infer": infer, "quality": quality,
    "stream": stream, "scale": scale, "models": models,
}  # fmt: skip
# Turns that are counted, where nothing else is asked for.
REPEATS = {
    "loss": 1, "step": 1, "curve": 1, "loader": 3, "infer": 7, "quality": 3, "stream": 40, "scale": 1, "models": 5,
}  # fmt: skip
ON_GPU = ("loss", "step", "curve", "infer")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, part in PARTS.items():
        sub = parts.add_parser(
            name, description=part.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        part.add_options(sub)
        sub.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
        sub.add_argument("--repeats", type=int, default=REPEATS[name], help=f"turns counted (default: {REPEATS[name]})")
        sub.add_argument("--json", help="file to be written")
        sub.add_argument("--no_memory", action="store_true", help="leave peak memory out")
        sub.add_argument("--device", choices=["cpu", "cuda"] if name in ON_GPU else ["cpu"], default="cpu")
        sub.add_argument(
            ALLOCATOR_OPTION,
            choices=ALLOCATORS,
            default=ALLOCATORS[0],
            help="keep freed memory, as the recipes do, or leave the system's allocator as it is (default: recipes)",
        )
        sub.add_argument(MEMORY_OPTION, help=argparse.SUPPRESS)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise :class:`UserError` for options out of range."""
    for name in ("threads", "repeats", "batch", "utterances", "steps"):
        if getattr(args, name, 1) < 1:
            raise UserError(f"--{name} must be at least 1")
    if not getattr(args, "seconds", 1.0) >= 0.1:
        raise UserError("--seconds must be at least 0.1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no GPU is visible: use --device cpu")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = get_parser().parse_args(arguments)
    check(args)
    torch.set_num_threads(args.threads)
    part = PARTS[args.part]
    if args.memory_of is not None:
        work = part.candidates(args)[args.memory_of]
        print(json.dumps(usage_here(work, Clock(args.device, args.threads))._asdict()))
        return 0
    report = part.run(args, arguments)
    report.conditions.update(threads=args.threads, device=args.device)
    if not has_allocator_settings() and args.device == "cpu":
        report.notes.append("Without the recipes' allocator settings.")
    print(report.text())
    if args.json:
        report.write(args.json)
    return 0
