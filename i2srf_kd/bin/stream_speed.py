"""Measure how fast causal networks run on a stream, on one core.

    python -m i2srf_kd.bin.stream_speed [--preset dpdcrn_tiny_causal ...] [--block_samples 256 4096]

Prints real-time factors: time over duration of the audio, STFT and everything else included. Each is the best of
several short runs, because other processes can only add to it; CPU time is less disturbed by them than elapsed time.
The weights are random, which does not change the speed.
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import torch

from i2srf_kd.audio.spectral_stream import SpectralStream
from i2srf_kd.enhancer import WaveformDPDCRN
from i2srf_kd.errors import UserError, run_command
from i2srf_kd.export.onnx import export_stream_onnx, missing_packages
from i2srf_kd.nets import PRESETS, build_dpdcrn
from i2srf_kd.streaming_enhancer import StreamingEnhancer

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


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--preset", action="append", choices=CAUSAL_PRESETS, help="default: all causal ones")
    parser.add_argument("--block_samples", type=int, nargs="+", default=[256, 4096], help="default: 256 4096")
    parser.add_argument("--seconds", type=float, default=0.25, help="audio of one run (default: 0.25)")
    parser.add_argument("--runs", type=int, default=40, help="default: 40")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    if min(args.block_samples) < 1 or args.runs < 1 or not args.seconds >= 0.1:
        raise UserError("--block_samples and --runs must be at least 1, --seconds at least 0.1")
    torch.set_num_threads(1)
    print("| network | runtime | samples in a block | real-time factor, CPU time | elapsed |\n|---|---|---|---|---|")
    for preset in args.preset or CAUSAL_PRESETS:
        with open_streams(preset) as streams:
            for runtime, stream in streams.items():
                for block in args.block_samples:
                    speed = measure(stream, block, args.seconds, args.runs)
                    print(f"| `{preset}` | {runtime} | {block} | {speed.cpu:.3f} | {speed.elapsed:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
