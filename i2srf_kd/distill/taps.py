"""Feature sets of any network, by hooks on named modules.

DPDCRN announces its feature sets itself. For any other network a set is a list of taps, each naming a module and how
its output is laid out:

    encoder:
      - separator.conv                                   # (B, C, T, F)
    blocks:
      - {module: separator.blocks.0, layout: BTCF}
      - {module: separator.rnn, layout: BTC, output: 0}  # first of several outputs, no frequency axis
    decoder:
      - {module: separator, layout: BTF, output: [0, 0]} # first of a list that is itself the first output
      - {module: separator.mask, input: 0}               # what a module is given, its first argument

``python -m i2srf_kd.bin.taps`` lists what can be tapped in a network.
"""

import math
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

import torch
from torch import Tensor, nn

Features = Dict[str, List[Tensor]]
_CANONICAL = "BCTF"


def canonical(output: Any, layout: str) -> Tensor:
    """Bring a module's output to ``(B, C, T, F)``; real and imaginary parts of complex output become channels."""
    if not isinstance(output, Tensor) and hasattr(output, "real") and hasattr(output, "imag"):
        output = torch.complex(output.real, output.imag)  # torch_complex.ComplexTensor
    if not isinstance(output, Tensor):
        raise ValueError(f"a tapped module returned {type(output).__name__}, not a tensor: set 'output' to its index")
    if output.dim() != len(layout):
        raise ValueError(f"a tapped module returned shape {tuple(output.shape)}, which is not laid out as {layout}")
    present = [axis for axis in _CANONICAL if axis in layout]
    axes = [place for axis in present for place, letter in enumerate(layout) if letter == axis]
    shape = [math.prod(output.shape[p] for p, letter in enumerate(layout) if letter == axis) for axis in present]
    output = output.permute(axes).reshape(shape)
    for position, axis in enumerate(_CANONICAL):
        if axis not in layout:
            output = output.unsqueeze(position)
    if output.is_complex():
        output = torch.cat([output.real, output.imag], dim=1)
    return output


class Tap(NamedTuple):
    """Where a feature is taken.

    Attributes:
        module: name of the module, as in ``named_modules``.
        layout: order of its axes, out of B, C, T and F; several C, such as microphones and channels, become one.
        reads: ``output`` or ``input`` (the positional arguments).
        path: indices that lead to the tensor in nested outputs or arguments.
    """

    module: str
    layout: str = _CANONICAL
    reads: str = "output"
    path: List[int] = []


def parse_tap(tap: Any) -> Tap:
    """Read one entry of a set; ValueError for unknown keys and impossible layouts."""
    if isinstance(tap, str):
        tap = {"module": tap}
    if not isinstance(tap, Mapping) or "module" not in tap or set(tap) - {"module", "layout", "output", "input"}:
        raise ValueError(f"a tap is a module name or has module, layout and output or input; got {tap!r}")
    layout = str(tap.get("layout", _CANONICAL))
    once = layout.replace("C", "")
    if len(set(once)) != len(once) or not {"B", "T"} <= set(layout) <= set(_CANONICAL):
        raise ValueError(f"tap layout {layout!r} must name B and T once and may name F once and C, also several times")
    if "input" in tap and "output" in tap:
        raise ValueError(f"a tap reads the input or the output of {tap['module']!r}, not both")
    reads = "input" if "input" in tap else "output"
    path = tap.get(reads, [])
    path = [path] if isinstance(path, int) else path
    if not isinstance(path, list) or not all(isinstance(index, int) for index in path):
        raise ValueError(f"{reads} of tap {tap['module']!r} must be an index or a list of them, not {path!r}")
    return Tap(tap["module"], layout, reads, path)


class FeatureTaps:
    """Records a network's feature sets while it runs.

    Args:
        model: the network, or a model that contains it.
        spec: set name to taps; None for a network that announces its own sets through ``feature_sink``. One that does
            not has no features, which is enough for methods on the networks' estimates.

    Raises:
        ValueError: when a tapped module does not exist.
    """

    def __init__(self, model: nn.Module, spec: Optional[Mapping[str, List[Any]]] = None):
        self._features: Optional[Features] = None
        self._sinks: List[nn.Module] = []
        if spec is None:
            self._sinks = [m for m in model.modules() if hasattr(m, "feature_sink")]
            return
        if not isinstance(spec, Mapping):
            raise ValueError(f"taps map the name of a set to a list of modules, got {spec!r}")
        modules = dict(model.named_modules())
        for name, taps in spec.items():
            if not isinstance(taps, (list, tuple)) or not taps:
                raise ValueError(f"taps of set {name!r} must be a list, not {taps!r}")
            for tap in map(parse_tap, taps):
                if tap.module not in modules:
                    near = [m for m in modules if m and m.split(".")[0] == tap.module.split(".")[0]][:12]
                    raise ValueError(f"tap {tap.module!r} of set {name!r} is no module of the model; some are: {near}")
                modules[tap.module].register_forward_hook(self._hook(name, tap))

    def _hook(self, name: str, tap: Tap) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._features is None:
                return
            value = output if tap.reads == "output" else inputs
            for index in tap.path:
                try:
                    value = value[index]
                except (IndexError, KeyError, TypeError):
                    raise ValueError(
                        f"tap {tap.module!r} of set {name!r} has no {tap.reads} {tap.path}: "
                        f"`python -m i2srf_kd.bin.taps` lists what it has"
                    ) from None
            try:
                self._features.setdefault(name, []).append(canonical(value, tap.layout))
            except ValueError as error:
                raise ValueError(f"tap {tap.module!r} of set {name!r}: {error}") from None

        return hook

    @contextmanager
    def record(self) -> Iterator[Features]:
        """Collect features of the forward passes inside; a module that runs several times gives several layers."""
        features: Features = {}
        self._features = features
        for sink in self._sinks:
            sink.feature_sink = features.update  # type: ignore[assignment]
        try:
            yield features
        finally:
            self._features = None
            for sink in self._sinks:
                sink.feature_sink = None  # type: ignore[assignment]
