"""Part ``stream``: causal networks on a stream, on one core.

Real-time factors are time over duration of the audio, STFT and everything else included. Each is the best of several
short runs, because other processes can only add to it; CPU time is less disturbed by them than elapsed time. The
weights are random, which does not change the speed.
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import numpy as np
import torch

from bench.report import Report
from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.export.onnx import export_stream_onnx, missing_packages
from i2srf_kd.inference.stream import StreamingEnhancer
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.nets import PRESETS, build_dpdcrn
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.markdown import Column

CAUSAL_PRESETS = [name for name, options in PRESETS.items() if options.get("causal")]


class Speed(NamedTuple):
    """Real-time factors of one stream."""

    cpu: float
    elapsed: float


def measure(stream: SpectralStream, block_samples: int, seconds: float, runs: int) -> Speed:
    """Best of several runs over ``seconds`` of noise, after one run that is not counted."""
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * stream.fs)).astype(np.float32)
    blocks = [noise[i : i + block_samples] for i in range(0, len(noise), block_samples)]
    cpu, elapsed = [], []
    for _ in range(1 + runs):
        begin = time.process_time(), time.perf_counter()
        for block in blocks:
            stream(block)
        cpu.append(time.process_time() - begin[0])
        elapsed.append(time.perf_counter() - begin[1])
    stream.reset()
    return Speed(min(cpu[1:]) / seconds, min(elapsed[1:]) / seconds)


@contextmanager
def open_streams(preset: str) -> Iterator[Dict[str, SpectralStream]]:
    """Streams of a network by runtime."""
    torch.manual_seed(0)
    model = WaveformDPDCRN(build_dpdcrn(preset)).eval()
    streams: Dict[str, SpectralStream] = {"torch": StreamingEnhancer(model)}
    if missing_packages():
        yield streams
        return
    from i2srf_kd.export.onnx_stream import OnnxStreamingEnhancer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_stream.onnx"
        sizes = {"fs": model.fs, "n_fft": model.stft.n_fft, "hop_length": model.stft.hop_length, "num_mics": 1}
        export_stream_onnx(model.network, path, sizes)
        yield {**streams, "onnxruntime": OnnxStreamingEnhancer(path, num_threads=1)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    parser.add_argument("--preset", action="append", choices=CAUSAL_PRESETS, help="default: all causal ones")
    parser.add_argument("--block_samples", type=int, nargs="+", default=[256, 4096], help="default: 256 4096")
    parser.add_argument("--seconds", type=float, default=0.25, help="audio of one run (default: 0.25)")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    if min(args.block_samples) < 1:
        raise UserError("--block_samples must be at least 1")
    if args.threads != 1:
        raise UserError("the part stream measures one core: leave --threads out")
    rows: List[Dict[str, Any]] = []
    for preset in args.preset or CAUSAL_PRESETS:
        with open_streams(preset) as streams:
            for runtime, stream in streams.items():
                for block in args.block_samples:
                    speed = measure(stream, block, args.seconds, args.repeats)
                    rows.append({"preset": preset, "runtime": runtime, "block": block, **speed._asdict()})
    columns = (
        Column("preset", "network", "`{}`"),
        Column("runtime", "runtime"),
        Column("block", "samples in a block"),
        Column("cpu", "real-time factor, CPU time", "{:.3f}"),
        Column("elapsed", "elapsed", "{:.3f}"),
    )
    return Report("stream", columns, rows, {"runs": f"{args.repeats} of {args.seconds:g} s"})
