"""Part ``quality``: what faster arithmetic costs, on pairs of noisy and clean speech, with a trained model.

Variants of an exported model enhance the same recordings; scores are compared with those of PyTorch in float32, pair by
pair (95 % interval, bootstrap over utterances). ``faster`` is the time of all recordings together, a turn of each
variant after the other.
"""

import argparse
import io
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from bench.measure import Clock, Turns, Work, in_turns, median_seconds, ratio
from bench.report import Report
from i2srf_kd.audio.io import read_audio
from i2srf_kd.data.kaldi_dir import read_audio_table
from i2srf_kd.export.bundle import WEIGHTS, is_bundle
from i2srf_kd.export.runtimes import WHOLE, has_onnxruntime
from i2srf_kd.inference.enhancer import Enhancer
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.metrics.bootstrap import CrossedBootstrap
from i2srf_kd.metrics.table import METRICS
from i2srf_kd.metrics.utterance import score_utterance
from i2srf_kd.nets.dpdcrn import apply_mask
from i2srf_kd.results.scores import finite
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.markdown import Column

SCORES = ("pesq_wb", "stoi", "si_sdr")
FLOAT = "torch, float32"


class Variant(NamedTuple):
    """A way to run the model: waveform to waveform at the model's rate, and megabytes of weights."""

    enhance: Callable[[np.ndarray], np.ndarray]
    megabytes: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    parser.add_argument("model", metavar="MODEL", help="folder that i2srf_kd.bin.export wrote")
    parser.add_argument("--pairs", metavar="DATA_DIR", required=True, help="with wav.scp (noisy) and spk1.scp (clean)")
    parser.add_argument("--utterances", type=int, default=10**6, help="use the first N (default: all)")


def read_pairs(data_dir: str, fs: int, count: int) -> List[Tuple[np.ndarray, np.ndarray]]:
    """Noisy and clean waveforms ``(samples,)``.

    Raises:
        UserError: a table or file is bad, or the tables list different utterances.
    """
    noisy, clean = (read_audio_table(Path(data_dir) / f"{name}.scp") for name in ("wav", "spk1"))
    if noisy.keys() != clean.keys():
        raise UserError(f"{data_dir}: wav.scp and spk1.scp list different utterances: format the set again")
    return [(read_audio(noisy[utt], fs)[0], read_audio(clean[utt], fs)[0]) for utt in sorted(noisy)[:count]]


def variants(model: str) -> Dict[str, Variant]:
    """Ways to run an exported model, by name."""
    if not is_bundle(model):
        raise UserError(f"{model} is no exported model: run python -m i2srf_kd.bin.export first")
    plain = load_enhancer(model, runtime="torch")
    size = (Path(model) / WEIGHTS).stat().st_size / 1e6
    weights: Any = load_enhancer(model, runtime="torch").model
    weights.network.bfloat16()
    found = {FLOAT: Variant(_runner(plain), size)}
    if has_onnxruntime():
        for runtime, name in WHOLE.items():
            file = Path(model) / name
            if file.is_file():
                enhancer = load_enhancer(model, runtime=runtime)
                found[f"onnxruntime, {'float32' if runtime == 'onnx' else runtime}"] = Variant(
                    _runner(enhancer), file.stat().st_size / 1e6
                )
    found["torch, bfloat16 autocast"] = Variant(_autocast(_runner(plain)), size)
    found["torch, bfloat16 weights"] = Variant(_bfloat16(weights), _saved_megabytes(weights.network))
    return found


def _runner(enhancer: Enhancer) -> Callable[[np.ndarray], np.ndarray]:
    return lambda wave: enhancer.enhance_array(wave, enhancer.fs)


def _autocast(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def cast(wave: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return run(wave)

    return cast


def _bfloat16(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Weights and activations in bfloat16; the transforms and the product with the mask stay in float32."""
    network = model.network

    def spectrum(planes: np.ndarray) -> np.ndarray:
        mixture = torch.from_numpy(planes)
        mask = network(mixture.bfloat16()).mask.float()
        return apply_mask(mask, mixture[:, 2 * network.ref_channel : 2 * network.ref_channel + 2]).numpy()

    model.onnx = spectrum
    return _runner(Enhancer(model))


def _saved_megabytes(network: torch.nn.Module) -> float:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.tell() / 1e6


def score_all(found: Dict[str, Variant], pairs: Sequence[Tuple[np.ndarray, np.ndarray]], fs: int) -> Dict[str, Any]:
    """Scores by variant and metric, one for each pair."""
    scores: Dict[str, Any] = {}
    for name, variant in found.items():
        rows = [score_utterance(clean, variant.enhance(noisy), fs, SCORES) for noisy, clean in pairs]
        scores[name] = {metric: np.array([row[metric] for row in rows]) for metric in SCORES}
    return scores


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    found = variants(args.model)
    fs = load_enhancer(args.model, runtime="torch").fs
    pairs = read_pairs(args.pairs, fs, args.utterances)
    scores = score_all(found, pairs, fs)

    def everything(name: str) -> Work:
        return lambda: [found[name].enhance(noisy) for noisy, _ in pairs]

    turns: Turns = in_turns({name: everything(name) for name in found}, Clock(args.device, args.threads), args.repeats)
    seconds, total = median_seconds(turns), sum(len(noisy) for noisy, _ in pairs) / fs
    bootstrap = CrossedBootstrap(1, len(pairs))
    rows: List[Dict[str, Any]] = []
    for name, variant in found.items():
        row: Dict[str, Any] = {"name": name, "mb": variant.megabytes, "rtf": seconds[name] / total}
        row["faster"] = ratio(turns, name, FLOAT)
        for metric in SCORES:
            shown = METRICS[metric]
            row[metric] = shown.text(float(np.nanmean(scores[name][metric])))
            if name != FLOAT:
                cost = bootstrap.mean(np.subtract([scores[name][metric]], [scores[FLOAT][metric]]))
                row[f"{metric}_cost"] = finite(cost._asdict())
                mean, low, high = (shown.text(value, signed=True) for value in cost[:3])
                row[metric] += f" ({mean} [{low}, {high}])"
        rows.append(row)
    columns = (
        Column("name", "variant"),
        Column("faster", "times faster", "{:.2f}"),
        Column("rtf", "real-time factor", "{:.3f}"),
        Column("mb", "file [MB]", "{:.2f}"),
        *(Column(metric, METRICS[metric].label) for metric in SCORES),
    )
    conditions = {"pairs": len(pairs), "seconds": total}
    return Report("quality", columns, rows, conditions, ["In brackets: difference to torch, float32 [95 % interval]."])
