"""Part ``scale``: time and memory of long recordings through :class:`i2srf_kd.enhancer.Enhancer`.

Recordings beyond its window (30 s) are enhanced in windows and cross-faded, so time should grow with the length to the
power of one, and memory by the recording itself.
"""

import argparse
import math
from typing import Any, Dict, List, Sequence

import numpy as np
import torch

from i2srf_kd.bench.measure import Clock, Work, usage_of
from i2srf_kd.bench.report import Column, Report
from i2srf_kd.enhancer import WINDOW_SECONDS, Enhancer, WaveformDPDCRN
from i2srf_kd.errors import UserError
from i2srf_kd.nets import PRESETS, build_dpdcrn

FS = 16000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    parser.add_argument("--preset", choices=list(PRESETS), default="dpdcrn_tiny")
    parser.add_argument(
        "--window_seconds", type=float, default=WINDOW_SECONDS, help=f"of the enhancer (default: {WINDOW_SECONDS:g})"
    )
    parser.add_argument(
        "--lengths", type=float, nargs="+", default=[10, 30, 60, 600, 3600], help="seconds (default: 10 s to 1 h)"
    )


def _name(seconds: float) -> str:
    return f"{seconds:g} s"


def candidates(args: argparse.Namespace) -> Dict[str, Work]:
    """What is measured, by name."""
    torch.manual_seed(0)
    enhancer = Enhancer(WaveformDPDCRN(build_dpdcrn(args.preset))).eval()
    enhancer(np.zeros(FS, np.float32), FS)  # a first call that does not count

    def work(seconds: float) -> Work:
        def enhance() -> None:
            noise = np.random.default_rng(0).standard_normal(round(seconds * FS), np.float32)
            enhancer(0.1 * noise, FS, window_seconds=args.window_seconds)

        return enhance

    return {_name(seconds): work(seconds) for seconds in args.lengths}


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part; each length runs in a process of its own."""
    if len(args.lengths) < 2 or min(args.lengths) <= 0:
        raise UserError("--lengths needs at least two positive lengths")
    lengths = sorted(set(args.lengths))
    rows: List[Dict[str, Any]] = []
    for seconds in lengths:
        runs = [usage_of(arguments, _name(seconds), keep_memory=True) for _ in range(args.repeats)]
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
        exponent = growth(windowed, "seconds")
        clock = Clock(args.device, args.threads).name
        notes.append(f"From one window on, {clock} grows with the length to the power of {exponent:.2f}.")
        per_minute = 60 * slope([r["length"] for r in windowed], [r["peak_mb"] for r in windowed])
        notes.append(
            f"Memory then grows by {per_minute:.1f} MB a minute; one minute of float32 samples takes "
            f"{60 * FS * 4 / 1e6:.1f} MB."
        )
    return Report("scale", columns, rows, {"preset": args.preset, "window [s]": args.window_seconds}, notes)


def growth(rows: Sequence[Dict[str, Any]], key: str) -> float:
    """Exponent of the power of the length that fits best."""
    return slope([math.log(row["length"]) for row in rows], [math.log(row[key]) for row in rows])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the straight line that fits best."""
    return float(np.polyfit(x, y, 1)[0])
