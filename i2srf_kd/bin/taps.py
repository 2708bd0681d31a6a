"""List what can be tapped in an ESPnet enhancement model: its modules with the shapes of what they give.

    python -m i2srf_kd.bin.taps exp/teacher [--match bsrnn] [--depth 4] [--inputs]
    python -m i2srf_kd.bin.taps conf/small/train_teacher_bsrnn.yaml --check conf/distill/teacher_bsrnn.yaml

MODEL is an experiment folder, or a training configuration (.yaml). The model runs twice on noise, one clip of a second
and two clips of one and a half: an axis that grew from 1 to 2 is the batch (B), one that grew by half is time (T), the
others are channels (C) and bins (F). Each row ends with the tap to write into a distillation configuration; where the
order of C and F is a guess, swap the letters. --check shows the feature sets that a configuration's taps give.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.distill.method import layout_of
from i2srf_kd.distill.taps import Features, FeatureTaps
from i2srf_kd.inference.experiment import CONFIG, sampling_rate
from i2srf_kd.metrics.complexity import count_parameters
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError, run_command

_SECONDS = (1.0, 1.5)
_TIME_GROWTH = (1.3, 1.7)  # frames at both ends of a clip do not grow with it


class Seen(NamedTuple):
    """A tensor that went into or out of a module."""

    module: str
    reads: str  # output or input
    path: Tuple[int, ...]
    kind: str  # class of the module


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="experiment folder or training configuration")
    parser.add_argument("--match", default="", metavar="TEXT", help="only modules whose name contains TEXT")
    parser.add_argument("--depth", type=int, default=4, help="only modules nested at most this deep (default: 4)")
    parser.add_argument("--inputs", action="store_true", help="also what modules are given")
    parser.add_argument("--all", action="store_true", help="also what cannot be tapped")
    parser.add_argument("--check", metavar="FILE", help="distillation configuration whose taps are tried")
    parser.add_argument("--side", choices=("teacher", "student"), default="teacher", help="whose taps --check tries")
    return parser


def build_model(path: str) -> Tuple[Any, int]:
    """The model of an experiment folder or a configuration, with random weights, and its sampling rate in Hz."""
    from i2srf_kd.espnet.loading import build_without_criteria
    from i2srf_kd.espnet.task import DistillEnhancementTask

    file = Path(path) / CONFIG if Path(path).is_dir() else Path(path)
    options = read_yaml(file)
    if "separator" not in options:
        raise UserError(f"{file} names no separator: give the configuration of a model, or an experiment folder")
    # Default options of parts belong to the default parts.
    defaults = {k: {} if k.endswith("_conf") else v for k, v in DistillEnhancementTask.get_default_config().items()}
    args = argparse.Namespace(**{**defaults, **options})
    torch.manual_seed(0)
    return build_without_criteria(args).eval(), sampling_rate(vars(args), file)


@torch.no_grad()
def run(model: Any, fs: int, clips: int, seconds: float) -> None:
    """One forward pass over noise."""
    samples = round(fs * seconds)
    mics = int(getattr(model.separator, "num_mics", 1))
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn((clips, samples, mics) if mics > 1 else (clips, samples), generator=generator)
    mixture, lengths = model.encoder(noise, torch.full((clips,), samples))
    model.separator(mixture, lengths)


def tensors(value: Any, path: Tuple[int, ...] = ()) -> Iterator[Tuple[Tuple[int, ...], Any]]:
    """All tensors in nested lists and tuples, with the indices that lead to them."""
    if hasattr(value, "shape") and hasattr(value, "real"):  # also torch_complex's ComplexTensor
        yield path, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors(item, (*path, index))


def shapes(model: nn.Module, fs: int, clips: int, seconds: float, inputs: bool) -> Dict[Seen, List[Any]]:
    """Every tensor that passes through a module: one ``(shape, is complex)`` for each time it does."""
    found: Dict[Seen, List[Any]] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, given: Any, output: Any) -> None:
            for reads, value in (("input", given), ("output", output)):
                for path, tensor in tensors(value) if inputs or reads == "output" else ():
                    is_complex = not isinstance(tensor, Tensor) or tensor.is_complex()
                    seen = Seen(name, reads, path, type(module).__name__)
                    found.setdefault(seen, []).append((tuple(tensor.shape), is_complex))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        run(model, fs, clips, seconds)
    finally:
        for handle in handles:
            handle.remove()
    return found


def guess_layout(small: Sequence[int], large: Sequence[int], is_complex: bool) -> Optional[str]:
    """Layout of a tensor from its shapes in both runs; None when it cannot be tapped."""
    axes: List[str] = []
    for a, b in zip(small, large, strict=True):
        if (a, b) == (1, 2) and "B" not in axes:
            axes.append("B")
        elif a == b:
            axes.append("?")
        elif _TIME_GROWTH[0] < b / a < _TIME_GROWTH[1] and "T" not in axes:
            axes.append("T")
        else:
            return None
    if not {"B", "T"} <= set(axes) or axes.count("?") > 2:
        return None
    names = iter("CF" if axes.count("?") == 2 else "F" if is_complex else "C")
    return "".join(next(names) if axis == "?" else axis for axis in axes)


def tap_text(seen: Seen, layout: str) -> str:
    """The tap as it is written in YAML."""
    if layout == "BCTF" and seen.reads == "output" and not seen.path:
        return seen.module
    parts = [f"module: {seen.module}"] + ([f"layout: {layout}"] if layout != "BCTF" else [])
    if seen.path:
        parts.append(f"{seen.reads}: {seen.path[0] if len(seen.path) == 1 else list(seen.path)}")
    return "{" + ", ".join(parts) + "}"


def describe_sets(features: Features) -> List[str]:
    """One line per feature set."""
    layout = layout_of(features)
    return [
        f"{name}: "
        + ", ".join(f"{shape.channels} x {f.shape[2]} x {shape.width}" for shape, f in zip(sizes, layers, strict=True))
        for (name, sizes), layers in zip(layout.items(), features.values(), strict=True)
    ]


def recorded_sets(model: Any, fs: int, spec: Optional[Dict[str, List[Any]]]) -> List[str]:
    """Feature sets of one second, described."""
    taps = FeatureTaps(model, spec)
    with taps.record() as features:
        run(model, fs, 1, _SECONDS[0])
    return describe_sets(features)


def print_modules(model: Any, fs: int, args: argparse.Namespace) -> None:
    """Print the table."""
    small = shapes(model, fs, 1, _SECONDS[0], args.inputs)
    large = shapes(model, fs, 2, _SECONDS[1], args.inputs)
    print("| class | shape, one second | layers | tap |\n|---|---|---|---|")
    rows = 0
    for seen, calls in small.items():
        (shape, is_complex), again = calls[0], large.get(seen, [])
        layout = guess_layout(shape, again[0][0], is_complex) if len(again) == len(calls) else None
        hidden = seen.module.count(".") >= args.depth or (layout is None and not args.all)
        if hidden or args.match not in seen.module:
            continue
        size = " x ".join(map(str, shape)) + (" complex" if is_complex else "")
        tap = f"`{tap_text(seen, layout)}`" if layout else f"{seen.module}: cannot be tapped, no axes B and T"
        print(f"| {seen.kind} | {size} | {len(calls)} | {tap} |")
        rows += 1
    if not rows:
        raise UserError("no module that can be tapped: widen --match and --depth; --all lists the others too")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    model, fs = build_model(args.model)
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
    print_modules(model, fs, args)
    return 0


if __name__ == "__main__":
    run_command(main)
