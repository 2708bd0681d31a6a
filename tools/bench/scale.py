"""Part ``scale``: time and memory of long recordings, from file to file as ``i2srf_kd.bin.enhance`` does it.

Recordings are read, enhanced and written in windows that are cross-faded, so time should grow with the length to the
power of one, and memory not at all. The network runs in onnxruntime where it is installed, as an exported model does.
"""

import argparse
import atexit
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import soundfile
import torch

from bench.measure import ALLOCATOR, ALLOCATORS, Clock, Work, usage_of
from bench.report import Report
from i2srf_kd.export.onnx import export_onnx, missing_packages
from i2srf_kd.inference.enhancer import Enhancer
from i2srf_kd.inference.files import OVERLAP_SECONDS, WINDOW_SECONDS, Job, Options, Windows, enhance_file
from i2srf_kd.inference.waveform import WaveformDPDCRN
from i2srf_kd.nets import PRESETS, build_dpdcrn
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.markdown import Column

FS = 16000
# An hour in steps that take no memory themselves.
_BLOCK_SECONDS = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    parser.add_argument("--preset", choices=list(PRESETS), default="dpdcrn_tiny")
    parser.add_argument(
        "--window_seconds", type=float, default=WINDOW_SECONDS, help=f"default: {WINDOW_SECONDS:g}, as for enhance"
    )
    parser.add_argument(
        "--lengths", type=float, nargs="+", default=[10, 60, 600, 3600], help="seconds (default: 10 s to 1 h)"
    )


def _name(seconds: float) -> str:
    return f"{seconds:g} s"


def _enhancer(args: argparse.Namespace, folder: Path) -> Enhancer:
    torch.manual_seed(0)
    model = WaveformDPDCRN(build_dpdcrn(args.preset)).eval()
    if not missing_packages() and not model.network.causal:
        from i2srf_kd.export.onnx_runtime import OnnxNetwork

        export_onnx(model.network, folder / "model.onnx", {})
        model.onnx = OnnxNetwork(folder / "model.onnx", args.threads)
    return Enhancer(model).eval()


def _write_noise(path: Path, seconds: float) -> None:
    generator, left = np.random.default_rng(0), round(seconds * FS)
    with soundfile.SoundFile(path, "w", FS, 1, "PCM_16") as file:
        while left:
            count = min(left, _BLOCK_SECONDS * FS)
            file.write(0.1 * generator.standard_normal(count, np.float32))
            left -= count


def candidates(args: argparse.Namespace) -> Dict[str, Work]:
    """What is measured, by name."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    method = Windows(
        _enhancer(args, Path(folder.name)), args.window_seconds, min(OVERLAP_SECONDS, args.window_seconds / 2)
    )
    # A first recording that does not count.
    warm = Job(Path(folder.name) / "warm.wav", Path(folder.name) / "warm_enhanced.wav")
    _write_noise(warm.source, 1.0)
    list(enhance_file(method, warm, Options(True, True)))

    def work(seconds: float) -> Work:
        job = Job(Path(folder.name) / "noisy.wav", Path(folder.name) / "enhanced.wav")
        if args.memory_of == _name(seconds):
            _write_noise(job.source, seconds)
        return lambda: list(enhance_file(method, job, Options(True, True)))

    return {_name(seconds): work(seconds) for seconds in args.lengths}


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part; each length runs in a process of its own."""
    if len(args.lengths) < 2 or min(args.lengths) <= 0:
        raise UserError("--lengths needs at least two positive lengths")
    lengths = sorted(set(args.lengths))
    allocator = ALLOCATOR if args.allocator == ALLOCATORS[0] else {}
    rows: List[Dict[str, Any]] = []
    for seconds in lengths:
        runs = [usage_of(arguments, _name(seconds), allocator) for _ in range(args.repeats)]
        used = min(run.seconds for run in runs)
        peak = max(run.peak_bytes for run in runs) / 1e6
        rows.append({"length": seconds, "seconds": used, "rtf": used / seconds, "peak_mb": peak})
    columns = (
        Column("length", "length [s]", "{:g}"),
        Column("rtf", "real-time factor", "{:.4f}"),
        Column("peak_mb", "peak memory [MB]", "{:.0f}"),
    )
    windowed = [row for row in rows if row["length"] >= args.window_seconds]
    notes = []
    if len(windowed) > 1:
        clock = Clock(args.device, args.threads).name
        exponent = growth(windowed, "seconds")
        notes.append(f"From one window on, {clock} grows with the length to the power of {exponent:.2f}.")
    # Memory is full after the second window; from there on nothing should be added.
    full = [row for row in rows if row["length"] >= 3 * args.window_seconds]
    if len(full) > 1:
        per_minute = 60 * (full[-1]["peak_mb"] - full[0]["peak_mb"]) / (full[-1]["length"] - full[0]["length"])
        notes.append(
            f"From {full[0]['length']:g} s to {full[-1]['length']:g} s, memory grows by {per_minute:.2f} MB a minute; "
            f"one minute of float32 samples takes {60 * FS * 4 / 1e6:.1f} MB."
        )
    return Report("scale", columns, rows, {"preset": args.preset, "window [s]": args.window_seconds}, notes)


def growth(rows: Sequence[Dict[str, Any]], key: str) -> float:
    """Exponent of the power of the length that fits best."""
    return float(np.polyfit(np.log([row["length"] for row in rows]), np.log([row[key] for row in rows]), 1)[0])
