"""Training loop on top of ESPnet's: resumes in the middle of an epoch, stops cleanly on a signal, tells what it does.

The step itself is ESPnet's (``Trainer.train_one_epoch``); this module feeds it batches and acts between two steps.
A run that is killed at any moment and started again with the same command ends with the same weights, bit by bit, as
one that was left alone (on the CPU, or on a GPU with deterministic kernels).
"""

import argparse
import dataclasses
import datetime
import importlib.util
import logging
import math
import os
import random
import re
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import torch
from espnet2.schedulers.abs_scheduler import AbsEpochStepScheduler, AbsScheduler, AbsValEpochStepScheduler
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train import trainer as espnet_trainer
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Average, Reporter, SubReporter, WeightedAverage
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass
from espnet2.utils.types import str2bool

from i2srf_kd.data.chunk_dataset import NUM_SAMPLES
from i2srf_kd.data.chunk_loader import ChunkLoaders
from i2srf_kd.espnet.diagnostics import DistillMonitor, add_diagnostics_arguments
from i2srf_kd.espnet.model import DistillEnhancementModel
from i2srf_kd.system.errors import FULL, UserError, cannot_write
from i2srf_kd.system.progress import progress
from i2srf_kd.training.checkpoint import (
    check_key_coverage,
    load_training_state,
    remove_dangling_links,
    replace_link,
    save_file,
    save_training_state,
    write_averages,
)
from i2srf_kd.training.monitor import (
    QUALITY_SCORES,
    MetricsLog,
    QualityMonitor,
    add_monitor_arguments,
    phase_values,
    record_environment,
)
from i2srf_kd.training.run_guard import check_supported, has_run, mark_interrupted

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again
PROGRESS_SECONDS = 60.0
RANK_SEED_STRIDE = 1_000_003  # apart from the seeds of neighbouring epochs

# What gloo and NCCL say when a peer is gone.
_LOST_PEER = (
    r"(?i)connection (closed|reset) by peer|remote process exited|broken pipe|socket closed|store.*(closed|broken)"
)


# What ESPnet chooses by when --best_model_criterion is not given, for any task.
ESPNET_CRITERIA = [("train", "loss", "min"), ("valid", "loss", "min"), ("train", "acc", "max"), ("valid", "acc", "max")]
# Values of the training phase that not every update reports.
OCCASIONAL = ("grad_norm", "clip", "loss_scale", "optim_step_time", "skipped_updates", "time", "total_count")


class TrainingInterrupted(Exception):
    """A signal asked for the end of the run, and its state is saved."""


class TrainingDiverged(Exception):
    """There is nothing finite left to go on from; no state of it is saved."""


@dataclasses.dataclass
class DistillTrainerOptions(TrainerOptions):
    """ESPnet's options and those of :meth:`DistillTrainer.add_arguments`."""

    save_interval_steps: int = 0
    save_interval_minutes: float = 0.0
    ema_decay: float = 0.0
    quality_utts: int = 8
    quality_interval: int = 1
    kd_diagnostics: bool = True
    kd_gradient_interval: int = 0
    overwrite: bool = False


class DistillTrainer(Trainer):
    """Trainer for :class:`~i2srf_kd.data.chunk_loader.ChunkLoaders` batches.

    It always resumes when the folder of the experiment holds a checkpoint; ``--resume`` has no influence. Attention
    plots are not made.
    """

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add this trainer's options to ESPnet's parser."""
        group = parser.add_argument_group("Trainer related (this project)")
        group.add_argument(
            "--save_interval_steps",
            type=int,
            default=0,
            help="Save the training state every K updates. 0: at the end of an epoch and on SIGTERM or SIGUSR1 only.",
        )
        group.add_argument(
            "--save_interval_minutes", type=float, default=0.0, help="Save the training state after so many minutes."
        )
        group.add_argument(
            "--ema_decay",
            type=float,
            default=0.0,
            help="Decay of a running average of the weights (such as 0.999), which is then validated and saved as the "
            "weights of an epoch. 0: none.",
        )
        group.add_argument(
            "--overwrite",
            type=str2bool,
            default=False,
            help="Move an existing experiment to <output_dir>.bak-<time> and start anew.",
        )
        add_monitor_arguments(parser)
        add_diagnostics_arguments(parser)

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> DistillTrainerOptions:
        """Check the options and collect those of the trainer."""
        check_supported(args)
        options = build_dataclass(DistillTrainerOptions, args)
        for name in ("save_interval_steps", "save_interval_minutes", "quality_utts", "kd_gradient_interval"):
            if getattr(options, name) < 0:
                raise UserError(f"--{name} must be 0 or more, not {getattr(options, name)}")
        if not 0 <= options.ema_decay < 1:
            raise UserError(f"--ema_decay must be at least 0 and below 1, not {options.ema_decay}")
        if [tuple(criterion) for criterion in options.best_model_criterion] == ESPNET_CRITERIA:
            options.best_model_criterion = ESPNET_CRITERIA[:2]  # enhancement has no accuracy
        for option, criteria in _criteria(options).items():
            for phase, name, mode in criteria:
                if phase not in ("train", "valid") or mode not in ("min", "max"):
                    raise UserError(
                        f"--{option} {phase},{name},{mode}: the phase is train or valid, and the best value the min or "
                        "the max"
                    )
        if options.quality_utts == 0:
            for phase, name, _ in sum(_criteria(options).values(), []):
                if phase == "valid" and name in QUALITY_SCORES:
                    raise UserError(f"the criterion valid,{name} needs --quality_utts above 0")
        return options

    @classmethod
    def run(
        cls,
        model: Any,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Optional[AbsScheduler]],
        train_iter_factory: ChunkLoaders,
        valid_iter_factory: ChunkLoaders,
        plot_attention_iter_factory: Any,
        trainer_options: DistillTrainerOptions,
        distributed_option: DistributedOption,
    ) -> None:
        """Train until the last epoch, an early stop, or a signal.

        Raises:
            SystemExit: with code 75 when a signal stopped the run; the same command goes on.
            UserError: the folder cannot be resumed or written, the training diverged, or a criterion names a value
                that is not reported.
        """
        # ESPnet's spelling of autocast, once per epoch and loader; nothing a user could mend.
        warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)
        if plot_attention_iter_factory is not None:
            logging.info("attention plots are not made (--num_att_plot)")
        training = _Training(
            cls, model, optimizers, schedulers, train_iter_factory, valid_iter_factory, trainer_options,
            Ranks(distributed_option, trainer_options.ngpu > 0),
        )  # fmt: skip
        with training.signals.installed():
            try:
                training.execute()
            except TrainingInterrupted:
                training.leave_interrupted()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise cannot_write(error.filename or trainer_options.output_dir, error) from None
            except RuntimeError as error:
                raise lost_process(error, training.ranks.world_size) or error from None


class Ranks:
    """The processes of a training and what they must agree on; with one process everything is local."""

    def __init__(self, option: DistributedOption, on_gpu: bool = False):
        self.option = option
        self.distributed = option.distributed
        self.rank = (option.dist_rank or 0) if option.distributed else 0
        self.world_size = (option.dist_world_size or 1) if option.distributed else 1
        self.device = "cuda" if on_gpu else "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def any(self, *flags: bool) -> Tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        if not self.distributed:
            return flags
        tensor = torch.tensor([int(flag) for flag in flags], device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in tensor.tolist())

    def gather(self, value: Any) -> List[Any]:
        """Values of all ranks, on every rank."""
        if not self.distributed:
            return [value]
        values: List[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if not self.distributed:
            return value
        holder = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.distributed:
            torch.distributed.barrier()


class StopSignals:
    """Remembers SIGTERM and SIGUSR1; a second one ends the process at once, as if nobody had listened.

    Slurm signals all processes of a job while those that wait for this one pass the signal on as well: what comes there
    within a moment of the first is the same request.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
    SLURM_SECONDS = 5.0

    def __init__(self) -> None:
        self.received = False
        self.ignore_until = 0.0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen inside of the context (in the main thread only, as Python demands)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.received:
            if time.monotonic() < self.ignore_until:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = True
        if "SLURM_JOB_ID" in os.environ:
            self.ignore_until = time.monotonic() + self.SLURM_SECONDS
        logging.warning(f"{signal.Signals(number).name}: finishing the step, saving, and leaving")


class AveragedWeights:
    """Exponential moving average of the trained parameters; buffers stay those of the model.

    The decay grows from 0.1 to ``decay`` over the first updates, ``min(decay, (1 + n) / (10 + n))``, so that the
    initial weights are soon forgotten.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights inside of the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)

    def state_dict(self) -> Dict[str, Any]:
        """State for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.updates = state["updates"]
        for name, value in self.average.items():
            value.copy_(state["average"][name])


class _Training:
    """One call of :meth:`DistillTrainer.run`."""

    def __init__(
        self,
        trainer: Any,
        model: Any,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence[Optional[AbsScheduler]],
        train_factory: ChunkLoaders,
        valid_factory: ChunkLoaders,
        options: DistillTrainerOptions,
        ranks: Ranks,
    ):
        self.trainer = trainer
        self.model = model
        self.optimizers = optimizers
        self.schedulers = schedulers
        self.train_factory = train_factory
        self.valid_factory = valid_factory
        self.options = options
        self.ranks = ranks
        self.output_dir = Path(options.output_dir)
        self.reporter = Reporter()
        self.signals = StopSignals()
        self.scaler = _grad_scaler() if options.use_amp else None
        self.ema = AveragedWeights(model, options.ema_decay) if options.ema_decay else None
        self.nbests = _nbests(options.keep_nbest_models)
        self.quality = self._quality_monitor()
        self.teaching: Optional[DistillMonitor] = None
        self.gradients: Dict[str, Any] = {}
        self.last_save = time.monotonic()
        self.epoch_in_progress: Optional[Dict[str, Any]] = None
        self.rng_of_training: Optional[Dict[str, Any]] = None
        self.sub_reporter: Optional[SubReporter] = None
        self.samples = 0
        self.train_names_checked = False
        self.missing_epochs: Set[int] = set()

    def _quality_monitor(self) -> Optional[QualityMonitor]:
        if self.options.quality_utts == 0:
            return None
        return QualityMonitor(
            self.valid_factory.dataset.source,
            self.options.quality_utts,
            self.options.quality_interval,
            self.options.seed,
            self.output_dir / "images",
        )

    def _distill_monitor(self) -> Optional[DistillMonitor]:
        """Only on the first rank, which needs no other for it; called when the state is loaded."""
        distilled = isinstance(self.model, DistillEnhancementModel)
        if not (self.options.kd_diagnostics and distilled and self.ranks.is_first):
            return None
        return DistillMonitor(
            self.model, self.train_factory, self.valid_factory, self.output_dir, self.options.seed,
            self.options.ngpu > 0,
            lambda: torch.autocast("cuda", enabled=self.scaler is not None, **espnet_trainer.autocast_args),
        )  # fmt: skip

    # The run ----------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Resume or start, train, average the best epochs."""
        first_epoch = self.resume()
        self.metrics = MetricsLog(self.output_dir, first_epoch - 1) if self.ranks.is_first else None
        if self.ranks.is_first:
            record_environment(self.output_dir)
        self.teaching = self._distill_monitor()
        self.step_model = self._data_parallel()
        self.writers = self._tensorboard_writers()
        if first_epoch > self.options.max_epoch:
            logging.warning(f"--max_epoch {self.options.max_epoch} has been reached already: nothing to train")
        elif first_epoch > 1 and self.epoch_in_progress is None and self._has_converged():
            first_epoch = self.options.max_epoch + 1
        else:
            self._check_total_steps()
        diverged = None
        try:
            self._run_epochs(first_epoch)
        except TrainingDiverged as error:
            diverged = error
        if self.ranks.is_first and self.reporter.stats:
            write_averages(self.output_dir, self._rankings(), self.nbests)
        self.ranks.barrier()
        if diverged is not None:
            raise UserError(
                f"{diverged}: lower the learning rate or check the data; {self.output_dir} keeps the epochs before"
            )

    def _run_epochs(self, first_epoch: int) -> None:
        if self.reporter.stats:
            self._check_criteria()
        if self.teaching is not None and self.teaching.step == 0:
            self.teaching.record(0)
        for epoch in range(first_epoch, self.options.max_epoch + 1):
            self.run_epoch(epoch)
            if self._has_converged():
                break
            if epoch < self.options.max_epoch and self.ranks.any(self.signals.received)[0]:
                raise TrainingInterrupted

    def _check_total_steps(self) -> None:
        """A one-cycle schedule refuses to go beyond its end, which would be in the middle of the training."""
        batches = len(self.train_factory.make_batches(1)) * self.options.max_epoch
        needed = batches // self.options.accum_grad
        for number, scheduler in enumerate(self.schedulers, 1):
            if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR) and needed > scheduler.total_steps:
                option = f"--scheduler{'' if number == 1 else number}_conf"
                raise UserError(
                    f"{option}: the schedule has {scheduler.total_steps} steps, but --max_epoch "
                    f"{self.options.max_epoch} takes {needed} updates: set total_steps={needed}, or lower --max_epoch "
                    "or --num_iters_per_epoch"
                )

    def run_epoch(self, epoch: int) -> None:
        """Train and validate for one epoch, save, and publish its weights.

        Raises:
            TrainingDiverged: no update was finite, or the weights are not.
            UserError: a criterion names a value that is not reported; the epoch is saved.
        """
        options = self.options
        logging.info(f"epoch {epoch} of {options.max_epoch}")
        set_all_random_seed(options.seed + epoch + RANK_SEED_STRIDE * self.ranks.rank)
        self.reporter.set_epoch(epoch)
        if self.ranks.any(self.train_phase(epoch))[0]:
            self.reporter.stats.pop(epoch)
            raise TrainingDiverged(f"no update of epoch {epoch} was finite")
        self._check_finite(epoch)
        if self.teaching is not None:
            self.gradients = self.teaching.record(epoch)
        with self.ema.applied() if self.ema else _nothing():
            self.valid_phase(epoch)
            weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self._step_schedulers()
        self.epoch_in_progress = None
        if self.ranks.is_first:
            self._report(epoch)
            # Weights before the state: a run killed in between repeats the epoch and writes the same weights again.
            save_file(weights, self.output_dir / f"{epoch}epoch.pth")
        self.save_state(None)
        if self.ranks.is_first:
            self._publish(epoch)
        self._check_criteria()

    def _check_finite(self, epoch: int) -> None:
        """Refuse weights that would spoil every later state and average."""
        with torch.no_grad():
            bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
            # Infinity may be meant in a buffer (a mask); NaN, as in the statistics of a normalisation, never is.
            bad += [name for name, b in self.model.named_buffers() if b.is_floating_point() and b.isnan().any()]
        if self.ranks.any(bool(bad))[0]:
            self.reporter.stats.pop(epoch, None)
            raise TrainingDiverged(f"the weights became infinite or NaN in epoch {epoch} ({', '.join(bad[:3])})")

    def train_phase(self, epoch: int) -> bool:
        """Run the batches of an epoch that are not done yet; return whether no update of the epoch was finite."""
        self._reset_memory()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        resumed, self.epoch_in_progress = self.epoch_in_progress, None
        self.samples = 0
        done, rng = 0, None
        with self.reporter.observe("train") as sub_reporter:
            self.sub_reporter = sub_reporter
            if resumed is not None:
                done, rng, self.samples = resumed["batches_done"], self._own_rng(resumed["rng"]), resumed["samples"]
                restore_sub_reporter(sub_reporter, resumed["sub_reporter"])
            loader = self.train_factory.build_iter(epoch, start_batch=done)
            all_invalid = self.trainer.train_one_epoch(
                model=self.step_model,
                optimizers=self.optimizers,
                schedulers=self.schedulers,
                iterator=_TrainBatches(self, loader, epoch, done, rng),
                reporter=sub_reporter,
                scaler=self.scaler,
                summary_writer=self.writers[0],
                options=self.options,
                distributed_option=self.ranks.option,
            )
            if rng is not None and len(loader) == 0:
                set_rng_state(rng)
            # A resumed epoch may have had all its finite updates before the interruption.
            all_invalid = all_invalid and "grad_norm" not in sub_reporter.stats
            skipped = skipped_updates(sub_reporter)
            self.rng_of_training = rng_state()
            self.epoch_state = self._epoch_state(epoch, done + len(loader))
        stats = self.reporter.stats[epoch]["train"]
        stats["skipped_updates"] = float(skipped)
        if skipped:
            logging.warning(f"epoch {epoch}: {skipped} update(s) were skipped because the gradient was not finite")
        self.train_values = self._phase_values(epoch, "train")
        return all_invalid

    def valid_phase(self, epoch: int) -> None:
        """Validate, and measure the quality of enhanced utterances where due."""
        self._reset_memory()
        self.samples = 0
        with self.reporter.observe("valid") as sub_reporter:
            self.trainer.validate_one_epoch(
                model=self.step_model,
                iterator=_ValidBatches(self, self.valid_factory.build_iter(epoch), epoch),
                reporter=sub_reporter,
                options=self.options,
                distributed_option=self.ranks.option,
            )
        if self.quality is not None and self.quality.is_due(epoch, self.options.max_epoch):
            scores = self.quality.measure(self.model, epoch) if self.ranks.is_first else None
            self.reporter.stats[epoch]["valid"].update(self.ranks.broadcast(scores))
        self.valid_values = self._phase_values(epoch, "valid")

    def leave_interrupted(self) -> None:
        """End the process so that its caller knows to run it again."""
        if self.ranks.is_first:
            mark_interrupted(self.output_dir)
            logging.warning(f"interrupted; run the same command again to go on (exit code {EXIT_INTERRUPTED})")
        self.ranks.barrier()  # a launcher may end the other processes as soon as one has left
        raise SystemExit(EXIT_INTERRUPTED)

    # Between two batches ----------------------------------------------------------------------------------------

    def after_train_batch(self, epoch: int, done: int) -> None:
        """Average weights, save where due, and stop on a signal; called when a batch is fully dealt with."""
        options = self.options
        if done % options.accum_grad:
            return
        if not self.train_names_checked:
            self._check_train_names()
        if self.ema is not None:
            self.ema.update()
        steps = done // options.accum_grad
        interval = options.kd_gradient_interval
        if self.teaching is not None and interval > 0 and self.teaching.step % interval == 0:
            self.teaching.record(epoch)
        due = options.save_interval_steps > 0 and steps % options.save_interval_steps == 0
        minutes = (time.monotonic() - self.last_save) / 60
        due = due or 0 < options.save_interval_minutes <= minutes
        stop, due = self.ranks.any(self.signals.received, due)
        if stop or due:
            self._check_finite(epoch)
            self.rng_of_training = rng_state()
            self.save_state(self._epoch_state(epoch, done))
        if stop:
            raise TrainingInterrupted

    def after_valid_batch(self) -> None:
        """Stop on a signal; the validation is repeated later, the training of the epoch is not."""
        if not self.ranks.any(self.signals.received)[0]:
            return
        with self.ema.applied() if self.ema else _nothing():  # back to the weights in training
            self.save_state(self.epoch_state)
        raise TrainingInterrupted

    # Saving and resuming ----------------------------------------------------------------------------------------

    def _epoch_state(self, epoch: int, done: int) -> Dict[str, Any]:
        assert self.sub_reporter is not None
        return {
            "epoch": epoch,
            "batches_done": done,
            "samples": self.samples,
            "sub_reporter": dump_sub_reporter(self.sub_reporter),
        }

    def save_state(self, in_progress: Optional[Dict[str, Any]]) -> None:
        """Write the training state; called on every rank.

        Args:
            in_progress: where in an epoch the run is; ``None`` at the end of one.
        """
        rngs = self.ranks.gather(self.rng_of_training)
        if self.ranks.is_first:
            finished = {e: s for e, s in self.reporter.stats.items() if not in_progress or e < in_progress["epoch"]}
            state = {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "schedulers": [s.state_dict() if s is not None else None for s in self.schedulers],
                "scaler": self.scaler.state_dict() if self.scaler is not None else None,
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "reporter": dump_reporter(finished),
                "in_progress": {**in_progress, "rng": rngs} if in_progress else None,
                "world_size": self.ranks.world_size,
            }
            save_training_state(self.output_dir, state)
        self.ranks.barrier()
        self.last_save = time.monotonic()

    def resume(self) -> int:
        """Load the training state if there is one; return the epoch to start with."""
        state = None
        if self.ranks.is_first:
            state = load_training_state(self.output_dir)
            # An epoch's weights are written before its state and published after it, so without a link they are the
            # rest of a first epoch that was killed in between: it is repeated.
            if state is None and has_run(self.output_dir) and (self.output_dir / "latest.pth").is_symlink():
                raise UserError(
                    f"{self.output_dir} holds weights of epochs but no checkpoint.pth: use another --output_dir, or "
                    "--overwrite true to move it aside"
                )
        self.ranks.barrier()
        if not self.ranks.is_first:
            state = load_training_state(self.output_dir, set_aside=False)
        if state is None:
            return 1
        self._load(state)
        self.epoch_in_progress = state["in_progress"]
        finished = max(self.reporter.stats, default=0)
        if self.epoch_in_progress is None:
            logging.info(f"resuming after epoch {finished}")
            if self.ranks.is_first and finished:
                self._publish(finished)
            return finished + 1
        done = self.epoch_in_progress["batches_done"]
        logging.info(f"resuming in epoch {self.epoch_in_progress['epoch']} after {done} batches")
        return int(self.epoch_in_progress["epoch"])

    def _load(self, state: Dict[str, Any]) -> None:
        source = f"the checkpoint in {self.output_dir}"
        check_key_coverage(self.model.state_dict(), state["model"], source=source)
        try:
            self.model.load_state_dict(state["model"])
            for optimizer, value in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(value)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{source} does not fit these options: {error}") from None
        for scheduler, value in zip(self.schedulers, state["schedulers"], strict=True):
            if scheduler is not None and value is not None:
                scheduler.load_state_dict(value)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        self.reporter.load_state_dict(load_reporter(state["reporter"]))
        if state["world_size"] != self.ranks.world_size and state["in_progress"]:
            logging.warning(
                f"the epoch began with {state['world_size']} process(es) and goes on with {self.ranks.world_size}: "
                "the batches are the same, random numbers (dropout) are not"
            )

    def _own_rng(self, states: Sequence[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
        return states[self.ranks.rank] if self.ranks.rank < len(states) else None

    # Best epochs ------------------------------------------------------------------------------------------------

    def _rankings(self) -> Dict[str, List[int]]:
        """Epochs by each criterion, the best first, as far as their weights are kept."""
        rankings = {}
        for phase, name, mode in self.options.best_model_criterion:
            epochs = rank_epochs(self.reporter, phase, name, mode)
            kept = [epoch for epoch in epochs if (self.output_dir / f"{epoch}epoch.pth").exists()]
            lost = set(epochs[: max(self.nbests)]) - set(kept) - self.missing_epochs
            if lost:
                logging.warning(
                    f"epoch(s) {', '.join(map(str, sorted(lost)))} are among the best by {phase}.{name}, but their "
                    "weights were not kept: links and averages do without them"
                )
                self.missing_epochs |= lost
            rankings[f"{phase}.{name}"] = kept
        return rankings

    def _publish(self, epoch: int) -> None:
        """Renew links, write interval averages, remove epochs that are neither among the best nor the latest."""
        replace_link(self.output_dir / "latest.pth", f"{epoch}epoch.pth")
        rankings = self._rankings()
        improved = [criterion for criterion, epochs in rankings.items() if epochs[:1] == [epoch]]
        for criterion, epochs in rankings.items():
            if epochs:
                replace_link(self.output_dir / f"{criterion}.best.pth", f"{epochs[0]}epoch.pth")
        logging.info(f"epoch {epoch} is the best so far by: {', '.join(improved) or 'none'}")
        interval = self.options.nbest_averaging_interval
        if interval > 0 and epoch % interval == 0:
            write_averages(self.output_dir, rankings, self.nbests, suffix=f"till{epoch}epoch.")
        kept = {epoch}.union(*(epochs[: max(self.nbests)] for epochs in rankings.values()))
        for other in range(1, epoch):
            if other not in kept:
                (self.output_dir / f"{other}epoch.pth").unlink(missing_ok=True)
        remove_dangling_links(self.output_dir)

    def _check_train_names(self) -> None:
        assert self.sub_reporter is not None
        self._refuse_unknown("train", {*self.sub_reporter.stats, *OCCASIONAL})
        self.train_names_checked = True

    def _check_criteria(self) -> None:
        """Tell after the first epoch which criterion can never choose one; the state is saved by then."""
        for phase, extra in (("train", OCCASIONAL), ("valid", QUALITY_SCORES if self.quality is not None else ())):
            names = [set(phases.get(phase, ())) for phases in self.reporter.stats.values()]
            self._refuse_unknown(phase, set(extra).union(*names))

    def _refuse_unknown(self, phase: str, known: Set[str]) -> None:
        for option, criteria in _criteria(self.options).items():
            for wanted, name, _ in criteria:
                if wanted == phase and name not in known:
                    listed = ", ".join(f"{phase},{other}" for other in sorted(known))
                    raise UserError(f"--{option} {phase},{name} is not reported; choose among {listed}")

    def _has_converged(self) -> bool:
        if self.options.patience is None:
            return False
        phase, name, mode = self.options.early_stopping_criterion
        epochs = rank_epochs(self.reporter, phase, name, mode)
        if not epochs:
            return False
        epoch = self.reporter.get_epoch()
        if epoch - epochs[0] <= self.options.patience:
            return False
        logging.info(f"early stop at epoch {epoch}: {phase}.{name} was best at epoch {epochs[0]}")
        return True

    def _step_schedulers(self) -> None:
        for scheduler in self.schedulers:
            if isinstance(scheduler, AbsValEpochStepScheduler):
                phase, name = self.options.val_scheduler_criterion[:2]
                if self.reporter.has(phase, name):
                    scheduler.step(self.reporter.get_value(phase, name))
                elif name not in QUALITY_SCORES or self.quality is None:
                    raise UserError(f"--val_scheduler_criterion {phase},{name} is not reported")
            elif isinstance(scheduler, AbsEpochStepScheduler):
                scheduler.step()

    # Reports ----------------------------------------------------------------------------------------------------

    def _phase_values(self, epoch: int, phase: str) -> Dict[str, Any]:
        seconds = self.samples * self.ranks.world_size / self.train_factory.dataset.source.sample_rate
        return phase_values(self.reporter.stats[epoch][phase], seconds)

    def _report(self, epoch: int) -> None:
        assert self.metrics is not None
        logging.info(self.reporter.log_message())
        self.metrics.append(epoch, "train", self.train_values)
        self.metrics.append(epoch, "valid", {**self.valid_values, **self.gradients})
        if self.options.use_matplotlib:
            if importlib.util.find_spec("matplotlib"):
                self.reporter.matplotlib_plot(self.output_dir / "images")
            elif epoch == 1:
                logging.warning("matplotlib is not installed: no curves are drawn")
        for phase, writer in zip(("train", "valid"), self.writers, strict=True):
            if writer is not None:
                self.reporter.tensorboard_add_scalar(writer, key1=phase)
                writer.flush()

    def _tensorboard_writers(self) -> Tuple[Any, Any]:
        if not (self.options.use_tensorboard and self.ranks.is_first):
            return None, None
        if not importlib.util.find_spec("tensorboard"):
            logging.warning("tensorboard is not installed: metrics.jsonl holds the same values")
            return None, None
        from torch.utils.tensorboard import SummaryWriter

        folder = self.output_dir / "tensorboard"
        steps = max((s["train"]["total_count"] for s in self.reporter.stats.values()), default=0)
        # Points that the last run wrote after its last checkpoint are hidden.
        writers = [SummaryWriter(str(folder / p), purge_step=steps + 1 if steps else None) for p in ("train", "valid")]
        return writers[0], writers[1]

    def _reset_memory(self) -> None:
        if self.options.ngpu > 0:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _data_parallel(self) -> torch.nn.Module:
        if not self.ranks.distributed:
            return self.model
        devices = [torch.cuda.current_device()] if self.options.ngpu > 0 else None
        wrapped = torch.nn.parallel.DistributedDataParallel(
            self.model,
            device_ids=devices,
            output_device=devices[0] if devices else None,
            find_unused_parameters=self.options.unused_parameters,
            gradient_as_bucket_view=self.options.gradient_as_bucket_view,
        )
        if self.options.ddp_comm_hook is not None:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            wrapped.register_comm_hook(None, getattr(default_hooks, self.options.ddp_comm_hook))
        return wrapped


class _TrainBatches:
    """The rest of an epoch's batches; what happens between two of them happens here.

    ESPnet's loop asks for the next batch when it has finished a step and closed its report, so that is the moment to
    save.
    """

    def __init__(self, training: _Training, loader: Any, epoch: int, done: int, rng: Optional[Dict[str, Any]]):
        self.training, self.loader, self.epoch, self.done, self.rng = training, loader, epoch, done, rng

    def __len__(self) -> int:  # of the whole epoch, which ESPnet's log interval depends on
        return self.done + len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        done = self.done
        for batch in _with_progress(self.training, self.loader, f"epoch {self.epoch} train"):
            if self.rng is not None:
                set_rng_state(self.rng)
                self.rng = None
            samples = _pop_samples(batch)
            yield batch
            done += 1
            self.training.samples += samples
            self.training.after_train_batch(self.epoch, done)


class _ValidBatches:
    def __init__(self, training: _Training, loader: Any, epoch: int):
        self.training, self.loader, self.epoch = training, loader, epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in _with_progress(self.training, self.loader, f"epoch {self.epoch} valid"):
            samples = _pop_samples(batch)
            yield batch
            self.training.samples += samples
            self.training.after_valid_batch()


def _with_progress(training: _Training, loader: Any, desc: str) -> Iterator[Any]:
    if not training.ranks.is_first:
        return iter(loader)
    return progress(loader, total=len(loader), desc=desc, unit="batch", every=PROGRESS_SECONDS)


def _pop_samples(batch: Tuple[List[str], Dict[str, torch.Tensor]]) -> int:
    """Samples without padding, for the throughput; the model is not to see them."""
    return int(batch[1].pop(NUM_SAMPLES).sum())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _grad_scaler() -> Any:
    scaler = getattr(espnet_trainer, "GradScaler", None) or torch.amp.GradScaler
    return scaler()


def _nbests(value: Any) -> List[int]:
    numbers = [n for n in ([value] if isinstance(value, int) else value) if n > 0]
    return numbers or [1]


def _criteria(options: TrainerOptions) -> Dict[str, List[Sequence[str]]]:
    """Criteria in use, by option."""
    criteria: Dict[str, List[Sequence[str]]] = {"best_model_criterion": list(options.best_model_criterion)}
    if options.patience is not None:
        criteria["early_stopping_criterion"] = [options.early_stopping_criterion]
    return criteria


def rank_epochs(reporter: Reporter, phase: str, name: str, mode: str) -> List[int]:
    """Epochs by a value, the best first; ties go to the earlier one, epochs without a finite value are left out."""
    if mode not in ("min", "max"):
        raise UserError(f"a criterion is minimised ('min') or maximised ('max'), not {mode!r}")
    values = [(stats.get(phase, {}).get(name), epoch) for epoch, stats in reporter.stats.items()]
    sign = 1 if mode == "min" else -1
    finite = [(sign * float(value), epoch) for value, epoch in values if value is not None and math.isfinite(value)]
    return [epoch for _, epoch in sorted(finite)]


def skipped_updates(sub_reporter: SubReporter) -> int:
    """Updates that ESPnet left out because the norm of the gradient was not finite.

    Every update reports ``train_time``, but only one that was made reports ``grad_norm``.
    """

    def count(name: str) -> int:
        return sum(math.isfinite(item.value) for item in sub_reporter.stats.get(name, ()))

    return count("train_time") - count("grad_norm")


def lost_process(error: RuntimeError, world_size: int) -> Optional[UserError]:
    """What to tell when another process of the training has died; None for any other error.

    Args:
        error: raised by torch.
        world_size: number of ranks.
    """
    text = str(error)
    if "DataLoader worker" in text:
        return UserError(
            f"a process that reads the data has died ({text.splitlines()[0]}), perhaps for lack of memory; run the "
            "same command again to go on from the last saved state"
        )
    if world_size > 1 and re.search(_LOST_PEER, text):
        return UserError(
            "another process of this training has died: look for its error above this line or in its log; run the same "
            "command again to go on from the last saved state"
        )
    return None


def rng_state() -> Dict[str, Any]:
    """States of Python's, numpy's and torch's global generators."""
    numpy_state: Any = np.random.get_state()
    kind, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: Dict[str, Any]) -> None:
    """Restore :func:`rng_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def dump_sub_reporter(reporter: SubReporter) -> Dict[str, Any]:
    """An ESPnet ``SubReporter`` between two steps, as tensors and numbers."""
    stats = {}
    for name, items in reporter.stats.items():
        weights = [item.weight for item in items] if isinstance(items[0], WeightedAverage) else None
        stats[name] = (_doubles([item.value for item in items]), None if weights is None else _doubles(weights))
    return {
        "stats": stats,
        "count": reporter.count,
        "total_count": reporter.total_count,
        "seconds": time.perf_counter() - reporter.start_time,
    }


def _doubles(values: Sequence[Any]) -> torch.Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def restore_sub_reporter(reporter: SubReporter, state: Dict[str, Any]) -> None:
    """Undo :func:`dump_sub_reporter`."""
    for name, (values, weights) in state["stats"].items():
        if weights is None:
            reporter.stats[name] = [Average(value) for value in values.tolist()]
        else:
            pairs = zip(values.tolist(), weights.tolist(), strict=True)
            reporter.stats[name] = [WeightedAverage(value, weight) for value, weight in pairs]
    reporter.count = state["count"]
    reporter.total_count = state["total_count"]
    reporter.start_time = time.perf_counter() - state["seconds"]


def dump_reporter(stats: Dict[int, Dict[str, Dict[str, Any]]]) -> Dict[int, Dict[str, Dict[str, Any]]]:
    """Finished epochs of an ESPnet ``Reporter``; its time spans become seconds."""
    return {
        epoch: {
            phase: {**values, "time": values["time"].total_seconds()} for phase, values in phases.items()
        }
        for epoch, phases in stats.items()
    }  # fmt: skip


def load_reporter(stats: Dict[int, Dict[str, Dict[str, Any]]]) -> Dict[str, Any]:
    """Undo :func:`dump_reporter`; the result is for ``Reporter.load_state_dict``."""
    restored = {
        epoch: {
            phase: {**values, "time": datetime.timedelta(seconds=values["time"])} for phase, values in phases.items()
        }
        for epoch, phases in stats.items()
    }
    return {"stats": restored, "epoch": max(restored, default=0)}
