"""Print every distillation method with its source and its own parameters, and with --cost what it costs.

    python -m i2srf_kd.bin.methods [--student_preset dpdcrn_student] [--teacher_preset dpdcrn_teacher]
    python -m i2srf_kd.bin.methods --cost --import my_method.py --teacher_exp exp/teacher --data_dir dump/raw/valid

The cost is measured here and now: the time of a method's forward and backward pass, relative to that of the student's
own training step (forward and backward with a spectral loss). What the teacher takes for its forward pass is the same
for every method and is printed below the table. The gradient is the norm of the method's gradient in the student's
parameters at weight 1, relative to the task's, before any training of the student: divide by it to choose a weight.
It means most with a trained teacher and real recordings (--teacher_exp, --data_dir).
"""

import argparse
import json
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from i2srf_kd.data.pairs import read_clips
from i2srf_kd.distill import method_class, method_names
from i2srf_kd.distill.catalogue import StudentAndTeacher, describe
from i2srf_kd.inference.experiment import Experiment
from i2srf_kd.nets import DPDCRN, PRESETS, build_dpdcrn
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.user_modules import absolute_entries, import_modules

FS = 16000
Row = Dict[str, Any]


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = command_parser(__doc__)
    parser.add_argument("--method", action="append", help="methods; default: all")
    parser.add_argument("--import", dest="modules", action="append", help="file or module with methods of your own")
    parser.add_argument("--student_preset", choices=list(PRESETS), default="dpdcrn_student", help="network that learns")
    parser.add_argument(
        "--teacher_preset", choices=list(PRESETS), default="dpdcrn_teacher", help="network that teaches"
    )
    parser.add_argument("--teacher_exp", help="experiment of a trained DPDCRN that teaches, in place of the preset")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--cost", action="store_true", help="measure the cost, which takes minutes; the rest is for it")
    parser.add_argument("--data_dir", help="folder with wav.scp and spk1.scp; default: noise")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the clips")
    parser.add_argument("--batch", type=int, default=2, help="clips per batch")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each; their median counts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def chosen_methods(args: argparse.Namespace) -> List[str]:
    """The methods asked for, with those of the user's modules.

    Raises:
        UserError: one is not registered, or a module cannot be imported.
    """
    try:
        import_modules(absolute_entries(args.modules, [""]))
        for name in args.method or []:
            method_class(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return args.method or method_names()


def check(args: argparse.Namespace) -> None:
    """Raise :class:`UserError` for options out of range."""
    if args.seconds < 0.1 or args.batch < 1 or args.repeats < 1:
        raise UserError("--seconds must be at least 0.1, --batch and --repeats at least 1")
    if args.device not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, not {args.device!r}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no GPU is visible: use --device cpu")
    if args.data_dir and not args.cost:
        raise UserError("--data_dir says what the cost is measured on: add --cost")


def networks(args: argparse.Namespace) -> Tuple[DPDCRN, DPDCRN]:
    """Student and teacher; those of a preset have random weights."""
    torch.manual_seed(0)
    student = build_dpdcrn(args.student_preset)
    teacher = Experiment(args.teacher_exp).network() if args.teacher_exp else build_dpdcrn(args.teacher_preset)
    return student.to(args.device), teacher.to(args.device)


def batch_of(args: argparse.Namespace) -> Tensor:
    """Mixtures and clean speech ``(2, clips, samples)``."""
    samples = round(args.seconds * FS)
    if args.data_dir:
        return torch.from_numpy(read_clips(args.data_dir, args.batch, samples, FS)).to(args.device)
    return torch.randn(2, args.batch, samples).to(args.device)


def print_row(cells: Sequence[str]) -> None:
    """One line of the table, at once: the next one may take a minute."""
    print("| " + " | ".join(cells) + " |", flush=True)


def cells_of(name: str, row: Row) -> List[str]:
    """What the table shows of a method."""
    cells = [f"`{name}`", row["summary"], row["source"], f"{row['parameters']:,}"]
    return cells + ([f"{row['cost']:.2f}", f"{row['gradient']:.2g}"] if "cost" in row else [])


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    check(args)
    names = chosen_methods(args)
    student, teacher = networks(args)
    pair = StudentAndTeacher(student, teacher, *batch_of(args)) if args.cost else None
    step = pair.seconds(pair.student_step, args.repeats) if pair else 0.0
    teaches = args.teacher_exp or args.teacher_preset
    result: Dict[str, Any] = {"student": args.student_preset, "teacher": teaches, "methods": {}}
    if not args.json:
        header = ["method", "what it compares", "source", "own parameters", *(["cost", "gradient"] if pair else [])]
        print_row(header)
        print("|" + "---|" * len(header))
    for name in names:
        row: Row = describe(name, student, teacher)._asdict()
        if pair:
            method = pair.build(name)
            row["cost"] = pair.seconds(partial(pair.method_step, method), args.repeats) / step
            row["gradient"] = pair.gradient_ratio(method)
        result["methods"][name] = row
        if not args.json:
            print_row(cells_of(name, row))
    if pair:
        result.update(step_seconds=step, teacher_cost=pair.seconds(pair.teacher_pass, args.repeats) / step)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"\nOwn parameters for {args.student_preset} from {teaches}; they are not part of the student.")
    if pair:
        print(
            f"Cost: time of forward and backward relative to the student's own step ({step:.2f} s for {args.batch} x "
            f"{args.seconds:g} s on {args.device}). The teacher's forward pass adds {result['teacher_cost']:.2f} to "
            f"each.\nGradient: norm at weight 1 relative to the task's, before training, on {args.data_dir or 'noise'}."
        )
    return 0


if __name__ == "__main__":
    run_command(main)
