"""Part ``models``: networks of any kind beside each other, on the same recordings.

    python tools/bench models exp/student bsrnn=conf/side_by_side/bsrnn_tiny.yaml --data_dir dump/raw/test

A network is an experiment folder, an exported folder, or a training configuration (.yaml), whose weights are then
random: cost does not depend on them. Each recording is enhanced in one piece, from waveform to waveform. MACs are
counted on 4 s at the network's rate, recurrent layers included; Fourier transforms, norms and activations are not.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch

from bench.measure import Clock, Turns, Work, in_turns, median_seconds
from bench.memory import memory_columns
from bench.report import Report
from i2srf_kd.inference.enhancer import Enhancer, measure_complexity
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.markdown import Column

FS = 16000
THREAD_COUNTS = (1, 2)  # that are timed
Recordings = List[Tuple[np.ndarray, int]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    parser.add_argument("model", nargs="+", metavar="[NAME=]MODEL", help="experiment, exported folder or configuration")
    parser.add_argument("--data_dir", help="folder with a wav.scp: what is enhanced (default: noise)")
    parser.add_argument("--utterances", type=int, default=4, help="first ones of --data_dir (default: 4)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of noise, without --data_dir (default: 4)")


def parse_models(texts: Sequence[str]) -> Dict[str, Path]:
    """``[NAME=]MODEL`` to models by name, by default that of the folder or file.

    Raises:
        UserError: two of the same name.
    """
    models: Dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).resolve().stem, text
        if name in models:
            raise UserError(f"two models are called {name}: give NAME=MODEL")
        models[name] = Path(path)
    return models


def load(model: Path) -> Enhancer:
    """A trained model, or one of a configuration with random weights."""
    if model.suffix not in (".yaml", ".yml"):
        return load_enhancer(model)
    from i2srf_kd.espnet.loading import build_untrained_enhancer

    torch.manual_seed(0)
    return Enhancer(build_untrained_enhancer(model)).eval()


def read_recordings(args: argparse.Namespace) -> Recordings:
    """What is enhanced, with its rates in Hz."""
    if args.data_dir is None:
        noise = np.random.default_rng(0).standard_normal(round(args.seconds * FS), np.float32)
        return [(0.1 * noise, FS)]
    from i2srf_kd.audio.io import read_audio
    from i2srf_kd.data.kaldi_dir import read_audio_table

    table = read_audio_table(Path(args.data_dir) / "wav.scp")
    return [read_audio(table[utt]) for utt in sorted(table)[: args.utterances]]


def enhance_all(enhancer: Enhancer, recordings: Recordings) -> Work:
    """Enhancement of all recordings, one after the other, each in one piece."""

    def work() -> None:
        for wave, fs in recordings:
            enhancer(wave, fs, window_seconds=2 + len(wave) / fs)

    return work


def candidates(args: argparse.Namespace) -> Dict[str, Work]:
    """What is measured, by name; with ``--memory_of`` just that one."""
    models, recordings = parse_models(args.model), read_recordings(args)
    names = [args.memory_of] if args.memory_of else list(models)
    return {name: enhance_all(load(models[name]), recordings) for name in names}


def _seconds(turns: Turns, clock: Clock) -> Dict[str, float]:
    """Median CPU time, or shortest elapsed time, which other programs can only lengthen."""
    if clock.name == "CPU time":
        return median_seconds(turns)
    return {name: min(seconds) for name, seconds in turns.items()}


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    recordings = read_recordings(args)
    seconds = sum(len(wave) / fs for wave, fs in recordings)
    enhancers = {name: load(model) for name, model in parse_models(args.model).items()}
    rows: Dict[str, Dict[str, Any]] = {name: {"name": name} for name in enhancers}
    for name, enhancer in enhancers.items():
        rows[name].update(measure_complexity(enhancer)._asdict())
    works = {name: enhance_all(enhancer, recordings) for name, enhancer in enhancers.items()}
    clocks = {}
    for threads in THREAD_COUNTS:
        torch.set_num_threads(threads)
        clock = Clock(args.device, threads)
        clocks[f"{threads} thread{'s' * (threads > 1)}:"] = clock.name
        for name, used in _seconds(in_turns(works, clock, args.repeats), clock).items():
            rows[name][f"rtf_{threads}"] = used / seconds
    torch.set_num_threads(args.threads)
    for name, megabytes in memory_columns(args, arguments, list(works)).items():
        rows[name]["peak_mb"] = megabytes
    columns = (
        Column("name", "network"),
        Column("parameters", "parameters", "{:,}"),
        Column("gmacs_per_second_with_recurrent", "GMAC/s", "{:.2f}"),
        Column("gmacs_per_second", "without recurrent layers", "{:.2f}"),
        *(Column(f"rtf_{n}", f"real-time factor, {n} thread{'s' * (n > 1)}", "{:.3f}") for n in THREAD_COUNTS),
        Column("peak_mb", "peak memory [MB]", "{:.0f}"),
    )
    conditions = {"recordings": len(recordings), "seconds": seconds, "repeats": args.repeats, **clocks}
    return Report("models", columns, list(rows.values()), conditions)
