"""Part ``infer``: enhancing a recording offline, from spectrum to spectrum.

Errors are the largest difference from the naive network in float64, relative to its peak.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import torch
from reference import network as reference
from torch import Tensor

from bench.measure import Clock, Floor, Work, in_turns, measure_rates, median_seconds, ratio
from bench.memory import memory_columns
from bench.report import Report
from i2srf_kd.export.onnx import INPUT, export_onnx, missing_packages
from i2srf_kd.metrics.complexity import count_macs
from i2srf_kd.nets import DPDCRN, PRESETS, STFT, build_dpdcrn
from i2srf_kd.system.markdown import Column

FS = 16000
OURS, NAIVE, ONNX, BFLOAT = "this package", "naive", "onnxruntime", "this package, bfloat16"
Enhance = Callable[[], Tensor]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    presets = [name for name, options in PRESETS.items() if not options.get("causal")]
    parser.add_argument("--preset", choices=presets, default="dpdcrn_student")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the recording (default: 4)")


class Recording:
    """A network with random weights, which do not change the speed, and the spectrum of noise that is enhanced."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(0)
        self.network = build_dpdcrn(args.preset).eval().requires_grad_(False).to(args.device)
        self.spectrum = STFT()(0.1 * torch.randn(1, round(args.seconds * FS))).to(args.device)
        self.device, self.threads = args.device, args.threads

    def enhancers(self) -> Dict[str, Enhance]:
        """Ways to the enhanced spectrum ``(1, 2, T, F)``."""
        found: Dict[str, Enhance] = {OURS: lambda: self.network(self.spectrum).spectrum, BFLOAT: self._bfloat16}
        found[NAIVE] = lambda: reference.forward(self.network, self.spectrum)
        if not missing_packages() and self.device == "cpu":
            found[ONNX] = onnx_enhancer(self.network, self.spectrum, self.threads)
        return found

    def _bfloat16(self) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return self.network(self.spectrum).spectrum

    def exact(self) -> Tensor:
        """What the naive network gives in float64."""
        return reference.forward(copy.deepcopy(self.network).double(), self.spectrum.double())


def onnx_enhancer(network: DPDCRN, spectrum: Tensor, threads: int) -> Enhance:
    """The network in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network, path, {})
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    planes = spectrum.numpy()
    return lambda: torch.from_numpy(session.run(None, {INPUT: planes})[0])


def without_gradient(enhance: Enhance) -> Work:
    """``enhance`` as inference runs it."""
    return torch.inference_mode()(enhance)


def candidates(args: argparse.Namespace) -> Dict[str, Work]:
    """What is measured, by name."""
    return {name: without_gradient(enhance) for name, enhance in Recording(args).enhancers().items()}


def network_floor(network: DPDCRN, spectrum: Tensor) -> Floor:
    """Products of the network; weights, input and output have to be moved."""
    flops = 2 * sum(count_macs(network, spectrum).values())
    return Floor(flops, sum(p.nbytes for p in network.parameters()) + 2 * spectrum.nbytes)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    clock, recording = Clock(args.device, args.threads), Recording(args)
    enhancers = recording.enhancers()
    rates, exact = measure_rates(clock), recording.exact()
    floor = network_floor(recording.network, recording.spectrum)
    turns = in_turns({name: without_gradient(enhance) for name, enhance in enhancers.items()}, clock, args.repeats)
    seconds = median_seconds(turns)
    memory = memory_columns(args, arguments, list(enhancers))
    rows: List[Dict[str, Any]] = []
    for name in (NAIVE, OURS, ONNX, BFLOAT):
        if name not in enhancers:
            continue
        row: Dict[str, Any] = {"name": name, "seconds": seconds[name], "rtf": seconds[name] / args.seconds}
        row.update(faster=ratio(turns, name, NAIVE), peak_mb=memory.get(name))
        row["times_floor"] = seconds[name] / floor.seconds(rates) if name != BFLOAT else None
        output = without_gradient(enhancers[name])()
        row["error"] = float((output - exact).abs().max() / exact.abs().max())
        rows.append(row)
    columns = (
        Column("name", "network"),
        Column("rtf", "real-time factor", "{:.3f}"),
        Column("faster", "times faster than naive", "{:.2f}"),
        Column("error", "error", "{:.1e}"),
        Column("peak_mb", "peak memory [MB]", "{:.0f}"),
        Column("times_floor", "time over floor", "{:.2f}"),
    )
    conditions = {"preset": args.preset, "seconds": args.seconds, "GFLOP/s": rates.flops_per_second / 1e9}
    return Report("infer", columns, rows, conditions)
