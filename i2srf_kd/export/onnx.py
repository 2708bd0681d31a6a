"""DPDCRN as an ONNX file: spectrum planes in, enhanced planes out, any batch and number of frames.

The STFT stays outside, because few runtimes agree about it; :mod:`i2srf_kd.export.onnx_runtime` has it in numpy.

A causal network can also be written for streams: planes of any number of frames and the state in, enhanced planes and
the next state out; :mod:`i2srf_kd.export.onnx_stream` runs it.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from types import MappingProxyType
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from i2srf_kd.export.int8 import calibrate, int8_form
from i2srf_kd.export.onnx_forms import CONTRIB, onnx_form
from i2srf_kd.export.onnx_stream import FRAMES
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.nets.streaming import StreamingDPDCRN
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, atomic_path

OPSET = 17
INPUT, OUTPUT = "mixture", "enhanced"
STATE, NEXT_STATE = "state_{}", "next_state_{}"
# Largest error that counts as the same network, relative to the peak of torch's output.
TOLERANCE = 1e-4
CHECKED_FRAMES = (1, 2, 37, 126, 251)
CHECKED_CHUNKS = (1, 1, 2, 37, 1, 126, 3, 30)
_TRACED_FRAMES = 40
PACKAGES = ("onnx", "onnxruntime")


def missing_packages() -> List[str]:
    """Packages that export to ONNX needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


class _Planes(nn.Module):
    """The network as a function from tensor to tensor."""

    def __init__(self, network: DPDCRN):
        super().__init__()
        self.network = network

    def forward(self, mixture: Tensor) -> Tensor:
        return self.network(mixture).spectrum


def export_onnx(network: DPDCRN, path: PathLike, metadata: Mapping[str, object]) -> None:
    """Write ``(B, 2 * microphones, T, F)`` to ``(B, 2, T, F)`` with dynamic B and T.

    Args:
        network: on any device, in any mode; it is left as it is.
        path: the file to be written.
        metadata: put into the file as text (``true`` and ``false`` for bool).

    Raises:
        UserError: a package is missing.
    """
    _export_planes(onnx_form(_plain(network)), path, metadata)


def _export_planes(form: DPDCRN, path: PathLike, metadata: Mapping[str, object]) -> None:
    example = torch.randn(1, form.input_channels, _TRACED_FRAMES, form.bins)
    dynamic = {0: "batch", 2: FRAMES}
    _export(_Planes(form), (example,), [INPUT], [OUTPUT], {INPUT: dynamic, OUTPUT: dynamic}, path, metadata)


def export_int8_onnx(
    network: DPDCRN, path: PathLike, metadata: Mapping[str, object], spectra: Sequence[Tensor]
) -> None:
    """Write the network with 8-bit convolutions; inputs and outputs as for :func:`export_onnx`.

    Args:
        network: one that is not causal, on any device; it is left as it is.
        path: the file to be written.
        metadata: put into the file as text.
        spectra: mixtures ``(1, 2 * microphones, T, F)`` on which ranges of activations are measured.

    Raises:
        UserError: a package is missing, or the network is causal.
    """
    network = _plain(network)
    form = int8_form(network, calibrate(network, spectra))
    _export_planes(form, path, metadata)


def export_stream_onnx(network: DPDCRN, path: PathLike, metadata: Mapping[str, object]) -> None:
    """Write one step of a stream: ``(1, 2 * microphones, T, F)`` and state to ``(1, 2, T, F)`` and next state.

    T is dynamic. The inputs ``state_0``, ``state_1``, ... are the outputs ``next_state_0``, ``next_state_1``, ... of
    the step before, and zeros of the shapes in the file before the first one.

    Args:
        network: a causal one, on any device, in any mode; it is left as it is.
        path: the file to be written.
        metadata: put into the file as text.

    Raises:
        UserError: a package is missing.
    """
    step = StreamingDPDCRN(onnx_form(_plain(network)))
    state = step.initial_state()
    example = torch.randn(1, step.network.input_channels, _TRACED_FRAMES, step.network.bins)
    inputs = [INPUT, *(STATE.format(i) for i in range(len(state)))]
    outputs = [OUTPUT, *(NEXT_STATE.format(i) for i in range(len(state)))]
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(outputs[1:], state, strict=True)}
    dynamic = {2: FRAMES}
    _export(step, (example, *state), inputs, outputs, {INPUT: dynamic, OUTPUT: dynamic}, path, metadata, shapes)


def _plain(network: DPDCRN) -> DPDCRN:
    if missing_packages():
        raise UserError(
            f"export to ONNX needs {' and '.join(missing_packages())}: pip install {' '.join(missing_packages())}, "
            "or give --onnx false"
        )
    network = copy.deepcopy(network).cpu().float().eval()
    network.feature_sink = None
    return network.requires_grad_(False)


def _export(
    module: nn.Module,
    example: Tuple[Tensor, ...],
    inputs: List[str],
    outputs: List[str],
    dynamic: Dict[str, Dict[int, str]],
    path: PathLike,
    metadata: Mapping[str, object],
    output_shapes: Mapping[str, Tuple[int, ...]] = MappingProxyType({}),
) -> None:
    """Write a module; ``output_shapes`` are put in where the exporter could not infer them."""
    import onnx

    with atomic_path(path) as temporary:
        with _quiet():
            # The TorchScript exporter: its graph is valid for any number of frames, one included.
            torch.onnx.export(
                module,
                example,
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                custom_opsets={CONTRIB: 1},
                input_names=inputs,
                output_names=outputs,
                dynamic_axes=dynamic,
            )
        model = onnx.load(str(temporary))
        for output in model.graph.output:
            for i, size in enumerate(output_shapes.get(output.name, ())):
                output.type.tensor_type.shape.dim[i].dim_value = size
        onnx.helper.set_model_props(model, {key: _text(value) for key, value in metadata.items()})
        onnx.checker.check_model(model)
        onnx.save(model, str(temporary))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer, whose doubts (batch of a GRU, shapes as constants) are answered by :func:`check_onnx`."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def check_onnx(network: DPDCRN, path: PathLike, frames: Sequence[int] = CHECKED_FRAMES) -> float:
    """Compare an ONNX file with the network it was made from, on noise of several lengths.

    Args:
        network: in evaluation mode.
        frames: numbers of frames T to try.

    Returns:
        Largest absolute error, relative to the peak of the network's output.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    worst = 0.0
    for count in frames:
        mixture = torch.randn(1, network.input_channels, count, network.bins, generator=generator)
        with torch.no_grad():
            expected = network(mixture.to(device)).spectrum.cpu().numpy()
        found = session.run(None, {INPUT: mixture.numpy()})[0]
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return worst


def check_stream_onnx(network: DPDCRN, path: PathLike) -> float:
    """Compare a streaming ONNX file, run in chunks, with the network it was made from on the whole spectrum.

    Args:
        network: in evaluation mode.

    Returns:
        Largest absolute error, relative to the peak of the network's output.
    """
    from i2srf_kd.export.onnx_stream import OnnxStep

    step = OnnxStep(path)
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(1, network.input_channels, sum(CHECKED_CHUNKS), network.bins, generator=generator)
    with torch.no_grad():
        expected = network(mixture.to(device)).spectrum.cpu().numpy()
    found = np.concatenate([step(chunk.numpy()) for chunk in mixture.split(list(CHECKED_CHUNKS), dim=2)], axis=2)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
