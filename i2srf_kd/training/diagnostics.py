"""How a teacher teaches, recorded in ``diagnostics.jsonl`` while a student is trained.

One line per measurement, always on the same clips of the validation set, so that what changes from line to line is the
student alone:

- ``epoch``, ``phase`` (``valid``: what the clips are of), ``step``: batches that the student has learned from;
- ``task_weight``, ``kd_weight``: what the schedule multiplies both losses with at this step;
- ``loss_task``, ``loss_kd``: both losses with these weights;
- ``grad_norm_task``, ``grad_norm_kd``: Euclidean norm of the gradient of each with respect to the student's
  parameters, before clipping; ``grad_cosine``: cosine of the angle between both gradients;
- ``diagnostics``: what the methods tell (:meth:`~i2srf_kd.distill.method.DistillMethod.diagnostics`), such as the
  calibration weights, one list per student layer with a number per teacher layer; and, as ``..._weights_by_level``,
  ``_by_snr`` and ``_by_voicing``, the correlation of these weights with what the frames are like.

A measurement takes a forward pass and two backward passes, and leaves gradients, buffers and random numbers as they
were: a training ends with the same weights, bit by bit, with and without it.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any, Dict, Hashable, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from i2srf_kd.data.chunk_dataset import NUM_SAMPLES, SeededChunk, collate, seeded
from i2srf_kd.data.chunk_loader import ChunkLoaders
from i2srf_kd.distill.distributed_clips import without_gathering
from i2srf_kd.distill.speech_characteristics import correlation, frame_characteristics
from i2srf_kd.inference.experiment import TRAINING_ONLY_PREFIX
from i2srf_kd.system.errors import UserError
from i2srf_kd.training.monitor import JsonLines

logger = logging.getLogger(__name__)

DIAGNOSTICS = "diagnostics.jsonl"
GRADIENT_VALUES = ("grad_norm_task", "grad_norm_kd", "grad_cosine")


class DiagnosticsLog(JsonLines):
    """``diagnostics.jsonl``: one line per step that is measured.

    Args:
        output_dir: folder of the experiment.
        step: that of the resumed state; lines of later ones are removed.
    """

    def __init__(self, output_dir: Path, step: int):
        self.steps: set = set()

        def key(record: Mapping[str, Any]) -> Optional[Hashable]:
            number = int(record["step"])
            if number > step:
                return None
            self.steps.add(number)
            return number

        super().__init__(Path(output_dir) / DIAGNOSTICS, key)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line, unless there is one of this step: a run that was stopped in a validation comes back to it."""
        if record["step"] not in self.steps:
            self.steps.add(record["step"])
            self.write(record)


class DistillMonitor:
    """Measures a distillation in training on clips that stay the same; made on the first rank alone.

    Args:
        model: what is trained, with ``losses`` and ``distiller`` as
            :class:`~i2srf_kd.espnet.model.DistillEnhancementModel` has them; not wrapped for several processes.
        train_loaders: says how many clips a batch has.
        valid_loaders: the clips.
        output_dir: folder of the experiment.
        seed: of the choice of clips.
        on_gpu: where the model is.
        autocast: context of the forward pass, as in training.
    """

    def __init__(
        self,
        model: Any,
        train_loaders: ChunkLoaders,
        valid_loaders: ChunkLoaders,
        output_dir: Path,
        seed: int,
        on_gpu: bool = False,
        autocast: Any = contextlib.nullcontext,
    ):
        self.model = model
        self.seed = seed
        self.device = "cuda" if on_gpu else "cpu"
        self.autocast = autocast
        self.log = DiagnosticsLog(output_dir, self.step)
        self.batch: Optional[Dict[str, Tensor]] = None
        self.loaders = train_loaders, valid_loaders
        self.fs = train_loaders.dataset.source.sample_rate
        self.failed = False

    @property
    def step(self) -> int:
        """Batches that the student has learned from; the distillation's own count, which checkpoints hold."""
        return int(self.model.distiller.steps)

    def record(self, epoch: int) -> Dict[str, Optional[float]]:
        """Measure and add a line.

        What cannot be measured (memory, sizes that a method does not take) is reported once; the training goes on.

        Returns:
            :data:`GRADIENT_VALUES` for the metrics of the epoch; nothing where the measurement failed.
        """
        if self.failed:
            return {}
        try:
            values = self._measure()
        except (UserError, RuntimeError) as error:
            self.failed = True
            logger.warning(f"no {DIAGNOSTICS} from now on, the training goes on without: {error}")
            return {}
        self.log.append({"epoch": epoch, "phase": "valid", **values})
        return {name: values[name] for name in GRADIENT_VALUES}

    def _measure(self) -> Dict[str, Any]:
        batch = self._fixed_batch()
        # The first process measures by itself.
        with _left_as_it_was(self.model), seeded((self.seed,)), without_gathering():
            self.model.train()
            step, weights = self.step, self.model.distiller.phase()
            with self.autocast():
                task, kd, _, _ = self.model.losses(**batch)
                task = task.sum()
            norms, cosine = compare_gradients(self.model, task, kd)
            return {
                "step": step,
                "task_weight": weights[0],
                "kd_weight": weights[1],
                "loss_task": weights[0] * float(task),
                "loss_kd": weights[1] * float(kd),
                "grad_norm_task": weights[0] * norms[0],
                "grad_norm_kd": weights[1] * norms[1],
                "grad_cosine": cosine,
                "diagnostics": {**self.model.distiller.diagnostics(), **self._correlations(batch)},
            }

    def _correlations(self, batch: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """How the weights of the layers follow level, SNR and voicing of the frames, ``(Ns, Nt)`` each."""
        signals = (batch["speech_mix"], batch["speech_ref1"])
        mixture, reference = (s[..., self.model.ref_channel] if s.dim() == 3 else s for s in signals)
        places = self.model.distiller.place_weights()
        lengths = {weights.shape[1] for weights in places.values()}
        like = {frames: frame_characteristics(mixture, reference, frames, self.fs) for frames in lengths}
        return {
            f"{name}_weights_by_{key}": correlation(weights, value)
            for name, weights in places.items()
            for key, value in like[weights.shape[1]].items()
        }

    def _fixed_batch(self) -> Dict[str, Tensor]:
        """As many clips as a batch of the training has, from anywhere in the validation set."""
        if self.batch is None:
            train, valid = self.loaders
            chunks = [chunk for batch in valid.make_batches(1) for chunk in batch]
            order = np.random.default_rng(self.seed).permutation(len(chunks))[: len(train.make_batches(1)[0])]
            _, batch = collate([valid.dataset[SeededChunk(chunks[i], (self.seed, int(i)))] for i in order])
            batch.pop(NUM_SAMPLES)
            self.batch = batch
        return {name: value.to(self.device) for name, value in self.batch.items()}


def compare_gradients(model: torch.nn.Module, task: Tensor, kd: Tensor) -> Tuple[Tuple[float, float], Optional[float]]:
    """Norms of the gradients of two losses with respect to the student, and their cosine (None where one is 0)."""
    student = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(TRAINING_ONLY_PREFIX)]
    # Not .backward(): it would add to the training's gradients and wake up the exchange between processes.
    first, second = (_flat_gradient(loss, student, retain) for loss, retain in ((task, True), (kd, False)))
    norms = float(first.norm()), float(second.norm())
    product = norms[0] * norms[1]
    return norms, float(first @ second) / product if product > 0 else None


def _flat_gradient(loss: Tensor, parameters: List[torch.nn.Parameter], retain: bool) -> Tensor:
    """Gradient as one vector in float64."""
    if not loss.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=loss.device)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=retain, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).double().flatten() for p, g in pairs])


@contextlib.contextmanager
def _left_as_it_was(model: torch.nn.Module) -> Iterator[None]:
    """Give back buffers, training mode and the GPU's random numbers; those of the CPU are :func:`seeded`'s."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [(module, module.training) for module in model.modules()]
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in buffers.items():
                model.get_buffer(name).copy_(value)
        for module, mode in modes:
            module.training = mode
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
