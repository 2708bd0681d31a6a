"""What a training tells about itself: metrics.jsonl, environment.json, quality of enhanced validation utterances."""

import datetime
import json
import logging
import math
from pathlib import Path
from typing import Any, Callable, Dict, Hashable, List, Mapping, Optional, Sequence

import numpy as np
import torch

from i2srf_kd.data.chunk_dataset import ChunkSource, SeededChunk
from i2srf_kd.data.chunks import Chunk
from i2srf_kd.metrics.table import WIDE_BAND, in_training
from i2srf_kd.metrics.utterance import score_utterance
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text
from i2srf_kd.system.memory import peak_resident_bytes
from i2srf_kd.system.provenance import start_record

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
QUALITY_SCORES = tuple(in_training(WIDE_BAND))


class JsonLines:
    """A log of one JSON object per line that a resumed run goes on with.

    Args:
        path: the file.
        key: what tells a record from others, ``None`` for one that the resumed state has not reached. Such records,
            records whose key comes again (the last one stays), and a line that was cut off are removed, so that what
            is repeated is not listed twice.
    """

    def __init__(self, path: Path, key: Callable[[Mapping[str, Any]], Optional[Hashable]]):
        self.path = path
        if self.path.exists():
            kept: Dict[Hashable, str] = {}
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    name = key(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue
                if name is not None:
                    kept[name] = line
            write_text(self.path, "".join(line + "\n" for line in kept.values()))

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line; values that are not finite become ``null``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_json_value(record)) + "\n")


class MetricsLog(JsonLines):
    """``metrics.jsonl``: one line per epoch and phase.

    Args:
        output_dir: folder of the experiment.
        last_epoch: the last epoch that the resumed state has finished; lines of later ones are removed.
    """

    def __init__(self, output_dir: Path, last_epoch: int):
        def key(record: Mapping[str, Any]) -> Optional[Hashable]:
            epoch, phase = int(record["epoch"]), str(record["phase"])
            return (epoch, phase) if epoch <= last_epoch else None

        super().__init__(Path(output_dir) / METRICS, key)

    def append(self, epoch: int, phase: str, values: Mapping[str, Any]) -> None:
        """Add a line; values that are not finite become ``null``."""
        self.write({"epoch": epoch, "phase": phase, **values})


def _json_value(value: Any) -> Any:
    """A number, tensor, time span or nest of them, as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _json_value(entry) for key, entry in value.items()}
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, list):
        return [_json_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def phase_values(stats: Mapping[str, Any], audio_seconds: float) -> Dict[str, Any]:
    """Values of a finished phase for :class:`MetricsLog`.

    Args:
        stats: the reporter's means; ``time`` becomes ``seconds``, ``optim0_lr0`` also ``lr``.
        audio_seconds: audio that went through the model on all ranks, padding not counted.
    """
    values = dict(stats)
    seconds = _json_value(values.pop("time"))
    if "optim0_lr0" in values:
        values["lr"] = values["optim0_lr0"]
    values["seconds"] = seconds
    values["audio_seconds_per_second"] = audio_seconds / seconds if seconds > 0 else None
    values["peak_memory_GB"] = peak_memory() / 2**30
    return values


def peak_memory() -> int:
    """Peak bytes allocated on the GPU since the last reset, or the resident set of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def record_environment(output_dir: Path) -> None:
    """Add this start to ``environment.json``: a list with versions, host, hardware, command and git hash per start."""
    path = Path(output_dir) / "environment.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    write_text(path, json.dumps({"starts": [*starts, environment()]}, indent=2) + "\n")


def environment() -> Dict[str, Any]:
    """What is needed to run the same again."""
    record = start_record()
    cuda = torch.cuda.is_available()
    record["versions"].update(torch=torch.__version__, cuda=torch.version.cuda if cuda else None)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {**record, "torch_threads": torch.get_num_threads(), "gpus": gpus}


class QualityMonitor:
    """Scores enhanced whole utterances of the validation set.

    Args:
        source: the validation data, with ``speech_mix`` and ``speech_ref1``.
        enhance: runs a model in evaluation mode on a mixture ``(samples,)`` or ``(samples, channels)``; ``(samples,)``.
        count: utterances; a fixed random subset that depends on ``seed`` only.
        interval: epochs between two measurements.
        seed: of the choice.
        image_dir: where the spectrograms of the first utterance go, one file per measurement.
    """

    def __init__(
        self,
        source: ChunkSource,
        enhance: Callable[[Any, np.ndarray], np.ndarray],
        count: int,
        interval: int,
        seed: int,
        image_dir: Path,
    ):
        if interval < 1:
            raise UserError(f"--quality_interval must be 1 or more, not {interval}")
        utterances = sorted(source.lengths)
        chosen = np.random.default_rng(seed).permutation(len(utterances))[:count]
        self.utterances: List[str] = [utterances[i] for i in chosen]
        self.source = source
        self.enhance = enhance
        self.interval = interval
        self.image_dir = Path(image_dir)

    def is_due(self, epoch: int, last_epoch: int) -> bool:
        """Whether this epoch is measured; the last one always is."""
        return epoch % self.interval == 0 or epoch == last_epoch

    def measure(self, model: Any, epoch: int) -> Dict[str, float]:
        """Mean ``pesq`` (WB-PESQ), ``stoi`` and ``si_sdr`` (dB, mean not removed) of the enhanced utterances.

        An utterance that a metric cannot score (PESQ finds no speech in it) is left out of that mean and reported.
        """
        was_training = model.training
        model.eval()
        try:
            scores = [self._score(model, utt_id, epoch, first=i == 0) for i, utt_id in enumerate(self.utterances)]
        finally:
            model.train(was_training)
        return {name: _mean([score[name] for score in scores]) for name in QUALITY_SCORES}

    def _score(self, model: Any, utt_id: str, epoch: int, first: bool) -> Dict[str, float]:
        signals = self.source.read(SeededChunk(Chunk(utt_id, 0, self.source.lengths[utt_id]), ()))
        mixture, reference = signals["speech_mix"], _mono(signals["speech_ref1"])
        estimate = self.enhance(model, mixture)
        if first:
            self._picture(utt_id, {"noisy": _mono(mixture), "enhanced": estimate, "clean": reference}, epoch)
        rate = self.source.sample_rate
        scores = {}
        for name, metric in in_training(rate).items():
            try:
                scores[name] = score_utterance(reference, estimate, rate, [metric])[metric]
            except (ValueError, RuntimeError, ArithmeticError) as error:
                logger.warning(f"{name} of validation utterance {utt_id}: {error}")
                scores[name] = math.nan
            if math.isnan(scores[name]):
                logger.warning(f"{name} of validation utterance {utt_id} is undefined and left out of the mean")
        return scores

    def _picture(self, utt_id: str, signals: Dict[str, np.ndarray], epoch: int) -> None:
        from i2srf_kd.results.spectrogram import spectrogram_grid

        try:
            self.image_dir.mkdir(parents=True, exist_ok=True)
            path = self.image_dir / f"{utt_id.replace('/', '_')}_epoch{epoch:03d}.png"
            spectrogram_grid(signals, self.source.sample_rate, path)
        except (ImportError, OSError) as error:
            logger.warning(f"no spectrogram of {utt_id}: {error}")


def _mono(audio: np.ndarray) -> np.ndarray:
    return audio if audio.ndim == 1 else audio[:, 0]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
