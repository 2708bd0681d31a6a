"""Print every distillation method with its source, its own parameters and what it costs.

    python -m i2srf_kd.bin.methods [--student_preset dpdcrn_student] [--teacher_preset dpdcrn_teacher] [--no_cost]
    python -m i2srf_kd.bin.methods --import my_method.py --teacher_exp exp/teacher --data_dir dump/raw/valid

The cost is measured here and now: the time of a method's forward and backward pass, relative to that of the student's
own training step (forward and backward with a spectral loss). What the teacher takes for its forward pass is the same
for every method and is printed below the table. The gradient is the norm of the method's gradient in the student's
parameters at weight 1, relative to the task's, before any training of the student: divide by it to choose a weight.
It means most with a trained teacher and real recordings (--teacher_exp, --data_dir).
"""

import argparse
import inspect
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from i2srf_kd.audio.io import read_audio
from i2srf_kd.data.kaldi_dir import read_audio_table
from i2srf_kd.distill import DistillMethod, Side, build_method, layout_of, method_class, method_names
from i2srf_kd.distill.user_modules import absolute_entries, import_modules
from i2srf_kd.inference.experiment import Experiment
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.metrics.complexity import count_parameters
from i2srf_kd.nets import DPDCRN, PRESETS, STFT, build_dpdcrn
from i2srf_kd.system.errors import UserError, run_command

FS = 16000


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", help="methods; default: all")
    parser.add_argument("--import", dest="modules", action="append", help="file or module with methods of your own")
    parser.add_argument("--student_preset", choices=list(PRESETS), default="dpdcrn_student", help="network that learns")
    parser.add_argument(
        "--teacher_preset", choices=list(PRESETS), default="dpdcrn_teacher", help="network that teaches"
    )
    parser.add_argument("--teacher_exp", help="experiment of a trained DPDCRN that teaches, in place of the preset")
    parser.add_argument("--data_dir", help="folder with wav.scp and spk1.scp; default: noise")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the clips")
    parser.add_argument("--batch", type=int, default=2, help="clips per batch")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each; their median counts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no_cost", action="store_true", help="parameters only, without the measurement")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
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


def read_batch(data_dir: str, clips: int, samples: int) -> Tensor:
    """Mixtures and clean speech ``(2, clips, samples)``: the middle of the first long enough utterances.

    Raises:
        UserError: there are too few of them, not at 16 kHz, or without clean speech.
    """
    tables = [read_audio_table(Path(data_dir) / name) for name in ("wav.scp", "spk1.scp")]
    batch: List[Tensor] = []
    for utt, path in tables[0].items():
        if len(batch) == clips:
            break
        if utt not in tables[1]:
            raise UserError(f"{Path(data_dir) / 'spk1.scp'} has no {utt}, which wav.scp has")
        pair = [read_audio(file) for file in (path, tables[1][utt])]
        if any(fs != FS for _, fs in pair):
            raise UserError(f"{path} is not at {FS} Hz: give a folder that stage 2 wrote")
        start = (len(pair[0][0]) - samples) // 2
        if start >= 0:
            batch.append(
                torch.stack([torch.as_tensor(x, dtype=torch.float32)[start : start + samples] for x, _ in pair])
            )
    if len(batch) < clips:
        raise UserError(
            f"{data_dir} has fewer than {clips} utterances of {samples / FS:g} s: lower --batch or --seconds"
        )
    return torch.stack(batch, 1)


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
        teacher = Experiment(args.teacher_exp).network() if args.teacher_exp else build_dpdcrn(args.teacher_preset)
        self.teacher = teacher.to(self.device).eval()
        samples = round(args.seconds * FS)
        audio = read_batch(args.data_dir, args.batch, samples) if args.data_dir else torch.randn(2, args.batch, samples)
        self.mixture, self.reference = audio.to(self.device)
        with torch.no_grad():
            self.teacher_side = run_network(self.teacher, self.stft, self.mixture)
            self.student_side = run_network(self.student, self.stft, self.mixture)

    def build(self, name: str) -> DistillMethod:
        """The method with its default options, for this pair."""
        student, teacher = layout_of(self.student_side.features), layout_of(self.teacher_side.features)
        return build_method(name, student, teacher).to(self.device)

    def task_loss(self, spectrum: Tensor) -> Tensor:
        """Spectral loss of the student's planes ``(B, 2, T, F)``."""
        estimate, target = (torch.complex(x[:, 0], x[:, 1]) for x in (spectrum, self.stft(self.reference)))
        return compressed_spectrum_loss(estimate, target).mean()

    def student_step(self) -> None:
        """Forward and backward of the student alone."""
        loss = self.task_loss(self.student(self.stft(self.mixture)).spectrum)
        self.student.zero_grad()
        loss.backward()

    def gradient_ratio(self, method: DistillMethod) -> float:
        """Norm of the method's gradient in the student's parameters, relative to the task's."""
        side = run_network(self.student, self.stft, self.mixture)
        assert side.spectrum is not None
        losses = [torch.stack(list(method(side, self.teacher_side, self.reference).values())).sum()]
        losses.append(self.task_loss(side.spectrum))
        weights, norms = list(self.student.parameters()), []
        for loss in losses:
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            norms.append(float(torch.stack([g.norm() for g in gradients if g is not None]).norm()))
        return norms[0] / norms[1]

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
    names = chosen_methods(args)
    if args.no_cost:
        args.seconds, args.batch, args.data_dir = 0.1, 1, None
    bench = Bench(args)
    step = 0.0 if args.no_cost else bench.seconds(bench.student_step)
    teaches = args.teacher_exp or args.teacher_preset
    result: Dict[str, Any] = {"student": args.student_preset, "teacher": teaches, "methods": {}}
    if not args.json:
        print(
            "| method | what it compares | source | own parameters |" + ("" if args.no_cost else " cost | gradient |")
        )
        print("|---|---|---|---|" + ("" if args.no_cost else "---|---|"))
    for name in names:
        row = measure(bench, name, step)
        result["methods"][name] = row
        if not args.json:
            cells = [f"`{name}`", row["summary"], row["source"], f"{row['parameters']:,}"]
            cells += [] if args.no_cost else [f"{row['cost']:.2f}", f"{row['gradient']:.2g}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    if not args.no_cost:
        result.update(step_seconds=step, teacher_cost=bench.seconds(bench.teacher_pass) / step)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"\nOwn parameters for {args.student_preset} from {teaches}; they are not part of the student.")
    if not args.no_cost:
        audio = args.data_dir or "noise"
        print(
            f"Cost: time of forward and backward relative to the student's own step ({step:.2f} s for {args.batch} x "
            f"{args.seconds:g} s on {args.device}). The teacher's forward pass adds {result['teacher_cost']:.2f} to "
            f"each.\nGradient: norm at weight 1 relative to the task's, before training, on {audio}."
        )
    return 0


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


def measure(bench: Bench, name: str, step: float) -> Dict[str, Any]:
    """What the table says of a method; ``step``: seconds of the student's own step, 0 to leave the cost out."""
    cls, method = method_class(name), bench.build(name)
    row = {"summary": summary(cls), "source": cls.source, "parameters": count_parameters(method)}
    if step:
        row["cost"] = bench.seconds(partial(bench.method_step, method)) / step
        row["gradient"] = bench.gradient_ratio(method)
    return row


if __name__ == "__main__":
    run_command(main)
