"""DPDCRN as an ONNX file: spectrum planes in, enhanced planes out, any batch and number of frames.

The STFT stays outside, because few runtimes agree about it; :mod:`i2srf_kd.export.onnx_runtime` has it in numpy.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from typing import Iterator, List, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from i2srf_kd.errors import UserError
from i2srf_kd.files import PathLike, atomic_path
from i2srf_kd.nets.dpdcrn import DPDCRN

OPSET = 17
INPUT, OUTPUT = "mixture", "enhanced"
# Largest error that counts as the same network, relative to the peak of torch's output.
TOLERANCE = 1e-4
CHECKED_FRAMES = (1, 2, 37, 126, 251)
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
    if missing_packages():
        raise UserError(
            f"export to ONNX needs {' and '.join(missing_packages())}: pip install {' '.join(missing_packages())}, "
            "or give --onnx false"
        )
    import onnx

    network = copy.deepcopy(network).cpu().float().eval()
    network.feature_sink = None
    example = torch.randn(1, network.input_channels, _TRACED_FRAMES, network.bins)
    dynamic = {0: "batch", 2: "frames"}
    with atomic_path(path) as temporary:
        with _quiet():
            # The TorchScript exporter: its graph is valid for any number of frames, one included.
            torch.onnx.export(
                _Planes(network),
                (example,),
                str(temporary),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: dynamic, OUTPUT: dynamic},
            )
        model = onnx.load(str(temporary))
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
