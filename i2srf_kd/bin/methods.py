"""Print every distillation method with its source, its own parameters and what it costs.

    python -m i2srf_kd.bin.methods [--student_preset dpdcrn_student] [--teacher_preset dpdcrn_teacher] [--no_cost]

The cost is measured here and now: the time of a method's forward and backward pass, relative to that of the student's
own training step (forward and backward with a spectral loss). What the teacher takes for its forward pass is the same
for every method and is printed below the table.
"""

import argparse
import inspect
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor

from i2srf_kd.distill import DistillMethod, Side, build_method, layout_of, method_class, method_names
from i2srf_kd.errors import UserError, run_command
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.metrics.complexity import count_parameters
from i2srf_kd.nets import DPDCRN, PRESETS, STFT, build_dpdcrn

FS = 16000


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=method_names(), help="methods; default: all")
    parser.add_argument("--student_preset", choices=list(PRESETS), default="dpdcrn_student", help="network that learns")
    parser.add_argument(
        "--teacher_preset", choices=list(PRESETS), default="dpdcrn_teacher", help="network that teaches"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the clips")
    parser.add_argument("--batch", type=int, default=2, help="clips per batch")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each; their median counts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no_cost", action="store_true", help="parameters only, without the measurement")
    return parser


def run_network(network: DPDCRN, stft: STFT, mixture: Tensor) -> Side:
    """One forward pass over ``(B, samples)``, with everything that a method may read."""
    output = network(stft(mixture), return_features=True)
    return Side(output.features or {}, output.spectrum, stft.inverse(output.spectrum, mixture.shape[1]))


def as_leaves(side: Side) -> Side:
    """The same values, cut from the graph, each collecting a gradient of its own."""

    def leaf(x: Optional[Tensor]) -> Optional[Tensor]:
        return None if x is None else x.detach().requires_grad_()

    features = {name: [f.detach().requires_grad_() for f in layers] for name, layers in side.features.items()}
    return replace(side, features=features, spectrum=leaf(side.spectrum), waveform=leaf(side.waveform))


def median_seconds(work: Callable[[], Any], repeats: int, device: str) -> float:
    """Median duration of ``work`` after one run that does not count."""
    durations: List[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations[1:])


def summary(cls: type) -> str:
    """First line of a class's docstring."""
    return (inspect.getdoc(cls) or "").split("\n")[0]


class Bench:
    """A student, a teacher and one batch.

    Args:
        args: options of the command.
    """

    def __init__(self, args: argparse.Namespace):
        self.device, self.repeats = args.device, args.repeats
        torch.manual_seed(0)
        self.stft = STFT().to(self.device)
        self.student = build_dpdcrn(args.student_preset).to(self.device)
        self.teacher = build_dpdcrn(args.teacher_preset).to(self.device).eval()
        samples = round(args.seconds * FS)
        self.mixture, self.reference = torch.randn(2, args.batch, samples, device=self.device)
        with torch.no_grad():
            self.teacher_side = run_network(self.teacher, self.stft, self.mixture)
            self.student_side = run_network(self.student, self.stft, self.mixture)

    def build(self, name: str) -> DistillMethod:
        """The method with its default options, for this pair."""
        student, teacher = layout_of(self.student_side.features), layout_of(self.teacher_side.features)
        return build_method(name, student, teacher).to(self.device)

    def student_step(self) -> None:
        """Forward and backward of the student alone."""
        planes = self.student(self.stft(self.mixture)).spectrum, self.stft(self.reference)
        estimate, target = (torch.complex(x[:, 0], x[:, 1]) for x in planes)
        loss = compressed_spectrum_loss(estimate, target).mean()
        self.student.zero_grad()
        loss.backward()

    def teacher_pass(self) -> None:
        """Forward of the teacher."""
        with torch.no_grad():
            run_network(self.teacher, self.stft, self.mixture)

    def method_step(self, method: DistillMethod) -> None:
        """Forward and backward of a method, down to the student's outputs."""
        method.zero_grad()
        terms = method(as_leaves(self.student_side), self.teacher_side, self.reference)
        torch.stack(list(terms.values())).sum().backward()

    def seconds(self, work: Callable[[], Any]) -> float:
        """How long ``work`` takes."""
        return median_seconds(work, self.repeats, self.device)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    if args.seconds < 0.1 or args.batch < 1 or args.repeats < 1:
        raise UserError("--seconds must be at least 0.1, --batch and --repeats at least 1")
    if args.device not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, not {args.device!r}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no GPU is visible: use --device cpu")
    if args.no_cost:
        args.seconds, args.batch = 0.1, 1
    bench = Bench(args)
    step = 0.0 if args.no_cost else bench.seconds(bench.student_step)
    print("| method | what it compares | source | own parameters |" + ("" if args.no_cost else " cost |"))
    print("|---|---|---|---|" + ("" if args.no_cost else "---|"))
    for name in args.method or method_names():
        cls, method = method_class(name), bench.build(name)
        row = f"| `{name}` | {summary(cls)} | {cls.source} | {count_parameters(method):,} |"
        if not args.no_cost:
            row += f" {bench.seconds(partial(bench.method_step, method)) / step:.2f} |"
        print(row, flush=True)
    print(f"\nOwn parameters for {args.student_preset} from {args.teacher_preset}; they are not part of the student.")
    if not args.no_cost:
        teacher = bench.seconds(bench.teacher_pass) / step
        print(
            f"Cost: time of forward and backward relative to the student's own step ({step:.2f} s for {args.batch} x "
            f"{args.seconds:g} s on {args.device}). The teacher's forward pass adds {teacher:.2f} to each."
        )
    return 0


if __name__ == "__main__":
    run_command(main)
