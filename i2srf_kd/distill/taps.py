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
"""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

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
    output = output.permute([layout.index(axis) for axis in present])
    for position, axis in enumerate(_CANONICAL):
        if axis not in layout:
            output = output.unsqueeze(position)
    if output.is_complex():
        output = torch.cat([output.real, output.imag], dim=1)
    return output


def _parse_tap(tap: Any) -> Tuple[str, str, List[int]]:
    if isinstance(tap, str):
        tap = {"module": tap}
    unknown = sorted(set(tap) - {"module", "layout", "output"})
    if unknown or "module" not in tap:
        raise ValueError(f"a tap is a module name or has module, layout and output; got {dict(tap)}")
    layout = tap.get("layout", _CANONICAL)
    if len(set(layout)) != len(layout) or not {"B", "T"} <= set(layout) <= set(_CANONICAL):
        raise ValueError(f"tap layout {layout!r} must name B and T and may name C and F, each once")
    output = tap.get("output", [])
    return tap["module"], layout, [output] if isinstance(output, int) else list(output)


class FeatureTaps:
    """Records a network's feature sets while it runs.

    Args:
        model: the network, or a model that contains it.
        spec: set name to taps; None for a network that announces its own sets through ``feature_sink``.

    Raises:
        ValueError: when a tapped module does not exist, or without a spec when nothing in the model announces
            features.
    """

    def __init__(self, model: nn.Module, spec: Optional[Mapping[str, List[Any]]] = None):
        self._features: Optional[Features] = None
        self._sinks: List[nn.Module] = []
        if spec is None:
            self._sinks = [m for m in model.modules() if hasattr(m, "feature_sink")]
            if not self._sinks:
                raise ValueError(
                    f"{type(model).__name__} does not announce features: name its taps (student_taps, teacher_taps)"
                )
            return
        if not isinstance(spec, Mapping):
            raise ValueError(f"taps map the name of a set to a list of modules, got {spec!r}")
        modules = dict(model.named_modules())
        for name, taps in spec.items():
            if isinstance(taps, str):
                raise ValueError(f"taps of set {name!r} must be a list, not {taps!r}")
            for tap in taps:
                path, layout, output = _parse_tap(tap)
                if path not in modules:
                    near = [m for m in modules if m and m.split(".")[0] == path.split(".")[0]][:12]
                    raise ValueError(f"tap {path!r} of set {name!r} is no module of the model; some are: {near}")
                modules[path].register_forward_hook(self._hook(name, layout, output))

    def _hook(self, name: str, layout: str, path: List[int]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._features is not None:
                for index in path:
                    try:
                        output = output[index]
                    except (IndexError, KeyError, TypeError):
                        raise ValueError(f"a tap of set {name!r} has no output {path}") from None
                self._features.setdefault(name, []).append(canonical(output, layout))

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
