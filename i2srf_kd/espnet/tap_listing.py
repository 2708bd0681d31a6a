"""What of an ESPnet enhancement model can be tapped: every tensor that passes a module, with a guess at its layout."""

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from i2srf_kd.distill.method import layout_of
from i2srf_kd.distill.taps import Features, FeatureTaps
from i2srf_kd.espnet.default_taps import default_taps, microphones

_SECONDS = (1.0, 1.5)
_TIME_GROWTH = (1.3, 1.7)  # frames at both ends of a clip do not grow with it


class Seen(NamedTuple):
    """A tensor that went into or out of a module."""

    module: str
    reads: str  # output or input
    path: Tuple[int, ...]
    kind: str  # class of the module


class Tappable(NamedTuple):
    """A tensor of one second of audio, how often it passes, and its layout; None where it cannot be tapped."""

    seen: Seen
    shape: Tuple[int, ...]
    is_complex: bool
    calls: int
    layout: Optional[str]


def tappable(model: Any, fs: int, inputs: bool) -> List[Tappable]:
    """Run a model on noise, one clip of a second and two of one and a half, and compare all shapes.

    Args:
        model: an ``ESPnetEnhancementModel``.
        fs: its sampling rate in Hz.
        inputs: look also at what modules are given.
    """
    small = _shapes(model, fs, 1, _SECONDS[0], inputs)
    large = _shapes(model, fs, 2, _SECONDS[1], inputs)
    found = []
    for seen, calls in small.items():
        (shape, is_complex), again = calls[0], large.get(seen, [])
        layout = guess_layout(shape, again[0][0], is_complex) if len(again) == len(calls) else None
        found.append(Tappable(seen, shape, is_complex, len(calls), layout))
    return found


@torch.no_grad()
def _run(model: Any, fs: int, clips: int, seconds: float) -> None:
    """One forward pass over noise."""
    samples = round(fs * seconds)
    mics = microphones(model.separator)
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn((clips, samples, mics) if mics > 1 else (clips, samples), generator=generator)
    mixture, lengths = model.encoder(noise, torch.full((clips,), samples))
    model.separator(mixture, lengths)


def _tensors(value: Any, path: Tuple[int, ...] = ()) -> Iterator[Tuple[Tuple[int, ...], Any]]:
    """All tensors in nested lists and tuples, with the indices that lead to them."""
    if hasattr(value, "shape") and hasattr(value, "real"):  # also torch_complex's ComplexTensor
        yield path, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, (*path, index))


def _shapes(model: nn.Module, fs: int, clips: int, seconds: float, inputs: bool) -> Dict[Seen, List[Any]]:
    """Every tensor that passes through a module: one ``(shape, is complex)`` for each time it does."""
    found: Dict[Seen, List[Any]] = {}

    def hook(name: str) -> Any:
        def record(module: nn.Module, given: Any, output: Any) -> None:
            for reads, value in (("input", given), ("output", output)):
                for path, tensor in _tensors(value) if inputs or reads == "output" else ():
                    is_complex = not isinstance(tensor, Tensor) or tensor.is_complex()
                    seen = Seen(name, reads, path, type(module).__name__)
                    found.setdefault(seen, []).append((tuple(tensor.shape), is_complex))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        _run(model, fs, clips, seconds)
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


def _describe_sets(features: Features) -> List[str]:
    """One line per feature set."""
    layout = layout_of(features)
    return [
        f"{name}: "
        + ", ".join(f"{shape.channels} x {f.shape[2]} x {shape.width}" for shape, f in zip(sizes, layers, strict=True))
        for (name, sizes), layers in zip(layout.items(), features.values(), strict=True)
    ]


def recorded_sets(model: Any, fs: int, spec: Optional[Dict[str, List[Any]]]) -> List[str]:
    """Feature sets of one second, described."""
    taps = FeatureTaps(model, default_taps(model) if spec is None else spec)
    with taps.record() as features:
        _run(model, fs, 1, _SECONDS[0])
    return _describe_sets(features)
