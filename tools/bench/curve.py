"""Part ``curve``: what the flags of :mod:`i2srf_kd.training.speed` do to the loss of a training, step by step.

Small networks learn one batch from the same first weights, once plainly and once with each flag. The row ``first
weights moved by 1e-7`` is the plain training from weights that rounding could have given: nothing nearer can be asked
of a flag that changes the order of sums.
"""

import argparse
from typing import Any, Dict, List, Mapping, Sequence

import torch

from bench.flags import TrainingStep, add_compile_option, sections
from bench.pair import BenchPair, add_pair_options
from bench.report import Report
from i2srf_kd.system.markdown import Column

PLAIN, MOVED = "plain", "first weights moved by 1e-7"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    add_pair_options(parser)
    add_compile_option(parser)
    parser.add_argument("--steps", type=int, default=12, help="steps of a training (default: 12)")
    parser.set_defaults(student_preset="dpdcrn_tiny", teacher_preset="dpdcrn_tiny", batch=2, seconds=0.5)


def _train(pair: BenchPair, section: Mapping[str, Any], steps: int, move: float = 0.0) -> List[float]:
    step = TrainingStep(pair, section)
    with torch.no_grad():
        for parameter in step.student.parameters():
            parameter.mul_(1 + move)
    return [step() for _ in range(steps)]


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    pair = BenchPair(args)
    losses = {PLAIN: _train(pair, {}, args.steps), MOVED: _train(pair, {}, args.steps, 1e-7)}
    for name, section in sections(args.compile, args.device).items():
        losses[name] = _train(pair, section, args.steps)
    shown = sorted({0, args.steps // 3, 2 * args.steps // 3, args.steps - 1})
    rows = []
    for name, values in losses.items():
        row: Dict[str, Any] = {"name": name, "losses": values, **{f"at{i}": values[i] for i in shown}}
        row["apart"] = max(abs(a / b - 1) for a, b in zip(values, losses[PLAIN], strict=True))
        rows.append(row)
    columns = [Column("name", "flag"), *(Column(f"at{i}", f"step {i}", "{:.5f}") for i in shown)]
    conditions = {"clips": args.batch, "frames": pair.frames, "student": args.student_preset}
    return Report("curve", [*columns, Column("apart", "most apart from plain", "{:.1e}")], rows, conditions)
