"""ESPnet's trainer, but it resumes in the middle of an epoch, stops cleanly on a signal, and tells what it does.

The step itself is ESPnet's (``Trainer.train_one_epoch``); :class:`TrainingRun` feeds it batches and acts between two
steps. A run that is killed at any moment and started again with the same command ends with the same weights, bit by
bit, as one that was left alone (on the CPU, or on a GPU with deterministic kernels).
"""

import argparse
import dataclasses
import logging
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type

import torch
from espnet2.schedulers.abs_scheduler import AbsEpochStepScheduler, AbsScheduler, AbsValEpochStepScheduler
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train import trainer as espnet_trainer
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass
from espnet2.utils.types import str2bool

from i2srf_kd.data.chunk_dataset import NUM_SAMPLES
from i2srf_kd.data.chunk_loader import ChunkLoaders
from i2srf_kd.espnet.inference import enhance_utterance
from i2srf_kd.espnet.model import DistillEnhancementModel
from i2srf_kd.espnet.reports import EpochReports, Position, dump_reporter, load_reporter, skipped_updates
from i2srf_kd.inference.experiment import for_use
from i2srf_kd.system.errors import FULL, UserError, cannot_write
from i2srf_kd.system.progress import progress
from i2srf_kd.system.signals import EXIT_INTERRUPTED, StopSignals
from i2srf_kd.training.best_epochs import BestEpochs, Criterion, check_criterion, rank_epochs, refuse_unknown
from i2srf_kd.training.checkpoint import load_training_state, save_file, save_training_state
from i2srf_kd.training.diagnostics import DistillMonitor
from i2srf_kd.training.monitor import QUALITY_SCORES, QualityMonitor, phase_values, record_environment
from i2srf_kd.training.ranks import Ranks, lost_process
from i2srf_kd.training.run_guard import check_supported, has_run, mark_interrupted
from i2srf_kd.training.state import TrainingState, set_rng_state

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 60.0
RANK_SEED_STRIDE = 1_000_003  # apart from the seeds of neighbouring epochs

# What ESPnet chooses by when --best_model_criterion is not given, for any task.
ESPNET_CRITERIA = [("train", "loss", "min"), ("valid", "loss", "min"), ("train", "acc", "max"), ("valid", "acc", "max")]
# Values of the training phase that not every update reports.
OCCASIONAL = ("grad_norm", "clip", "loss_scale", "optim_step_time", "skipped_updates", "time", "total_count")


class TrainingInterrupted(Exception):
    """A signal asked for the end of the run, and its state is saved."""


class TrainingDiverged(Exception):
    """There is nothing finite left to go on from; no state of it is saved."""


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class DistillTrainerOptions(TrainerOptions):
    """ESPnet's options and our own, which become options of the command line."""

    save_interval_steps: int = _option(
        0, "Save the training state every K updates. 0: at the end of an epoch and on SIGTERM or SIGUSR1 only."
    )
    save_interval_minutes: float = _option(0.0, "Save the training state after so many minutes.")
    ema_decay: float = _option(
        0.0,
        "Decay of a running average of the weights (such as 0.999), which is then validated and saved as the weights "
        "of an epoch. 0: none.",
    )
    overwrite: bool = _option(False, "Move an existing experiment to <output_dir>.bak-<time> and start anew.")
    quality_utts: int = _option(
        8,
        "Whole validation utterances that are enhanced and scored (WB-PESQ, STOI, SI-SDR); 0 switches it off. The "
        "scores can choose the best model: --best_model_criterion valid,pesq,max",
    )
    quality_interval: int = _option(1, "Epochs from one quality measurement to the next.")
    kd_diagnostics: bool = _option(
        True,
        "Record before the first and after every epoch how the teacher teaches: gradients of both losses, "
        "calibration weights (diagnostics.jsonl)",
    )
    kd_gradient_interval: int = _option(
        0, "Record it every so many batches as well; each time costs about two training steps. 0: no more often."
    )

    @classmethod
    def own_fields(cls) -> Iterator[dataclasses.Field[Any]]:
        """Those that are not ESPnet's."""
        return (field for field in dataclasses.fields(cls) if "help" in field.metadata)

    @property
    def criteria(self) -> Dict[str, List[Criterion]]:
        """Criteria in use, by option."""
        criteria: Dict[str, List[Criterion]] = {"best_model_criterion": list(self.best_model_criterion)}
        if self.patience is not None:
            criteria["early_stopping_criterion"] = [self.early_stopping_criterion]
        return criteria

    @property
    def nbests(self) -> List[int]:
        """Numbers of best epochs that are averaged."""
        given = self.keep_nbest_models
        return [n for n in ([given] if isinstance(given, int) else given) if n > 0] or [1]

    @property
    def valid_scores(self) -> Sequence[str]:
        """Scores of enhanced utterances that epochs may have."""
        return QUALITY_SCORES if self.quality_utts else ()

    def check(self) -> None:
        """Refuse values that are out of range, and criteria that can never choose an epoch.

        Raises:
            UserError: names the option.
        """
        for name in ("save_interval_steps", "save_interval_minutes", "quality_utts", "kd_gradient_interval"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema_decay must be at least 0 and below 1, not {self.ema_decay}")
        for option, criteria in self.criteria.items():
            for criterion in criteria:
                check_criterion(option, criterion)
                phase, name, _ = criterion
                if phase == "valid" and name in QUALITY_SCORES and not self.quality_utts:
                    raise UserError(f"the criterion valid,{name} needs --quality_utts above 0")


class DistillTrainer(Trainer):
    """Trainer for the batches of :class:`~i2srf_kd.data.chunk_loader.ChunkLoaders`.

    It always resumes when the folder of the experiment holds a checkpoint; ``--resume`` has no influence. Attention
    plots are not made.
    """

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add this trainer's options to ESPnet's parser."""
        group = parser.add_argument_group("Trainer related (this project)")
        for field in DistillTrainerOptions.own_fields():
            kind = str2bool if isinstance(field.default, bool) else type(field.default)
            group.add_argument(f"--{field.name}", type=kind, default=field.default, help=field.metadata["help"])

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> DistillTrainerOptions:
        """Check the options and collect those of the trainer."""
        check_supported(args)
        options = build_dataclass(DistillTrainerOptions, args)
        if [tuple(criterion) for criterion in options.best_model_criterion] == ESPNET_CRITERIA:
            options.best_model_criterion = ESPNET_CRITERIA[:2]  # enhancement has no accuracy
        options.check()
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
            logger.info("attention plots are not made (--num_att_plot)")
        ranks = _ranks(distributed_option, trainer_options.ngpu)
        scaler = _grad_scaler() if trainer_options.use_amp else None
        state = TrainingState(model, optimizers, schedulers, scaler, trainer_options.ema_decay)
        loaders = (train_iter_factory, valid_iter_factory)
        with StopSignals() as signals:
            try:
                TrainingRun(cls, state, loaders, trainer_options, ranks, distributed_option, signals).execute()
            except TrainingInterrupted:
                _leave_interrupted(Path(trainer_options.output_dir), ranks)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise cannot_write(error.filename or trainer_options.output_dir, error) from None
            except RuntimeError as error:
                raise lost_process(error, ranks.world_size) or error from None


def _ranks(option: DistributedOption, ngpu: int) -> Ranks:
    device = "cuda" if ngpu > 0 else "cpu"
    if not option.distributed:
        return Ranks(device=device)
    return Ranks(True, option.dist_rank or 0, option.dist_world_size or 1, device)


def _grad_scaler() -> Any:
    scaler = getattr(espnet_trainer, "GradScaler", None) or torch.amp.GradScaler
    return scaler()


def _leave_interrupted(output_dir: Path, ranks: Ranks) -> None:
    """End the process so that its caller knows to run it again."""
    if ranks.is_first:
        mark_interrupted(output_dir)
        logger.warning(f"interrupted; run the same command again to go on (exit code {EXIT_INTERRUPTED})")
    ranks.barrier()  # a launcher may end the other processes as soon as one has left
    raise SystemExit(EXIT_INTERRUPTED)


class TrainingRun:
    """Epochs of training and validation from where the folder of the experiment says that they have to go on.

    Args:
        trainer: its steps are taken.
        state: what is trained.
        loaders: of training and validation.
        options: of the trainer.
        ranks: this process among the others.
        distributed_option: the same as ESPnet has it.
        signals: ask for the end.

    Raises:
        UserError: the checkpoint is damaged, or of another training.
    """

    def __init__(
        self,
        trainer: Type[Trainer],
        state: TrainingState,
        loaders: Tuple[ChunkLoaders, ChunkLoaders],
        options: DistillTrainerOptions,
        ranks: Ranks,
        distributed_option: DistributedOption,
        signals: StopSignals,
    ):
        self.trainer = trainer
        self.state = state
        self.train_loaders, self.valid_loaders = loaders
        self.options = options
        self.ranks = ranks
        self.distributed_option = distributed_option
        self.signals = signals
        self.output_dir = Path(options.output_dir)
        self.reporter = Reporter()
        self.best = BestEpochs(
            self.output_dir, options.best_model_criterion, options.nbests, options.nbest_averaging_interval
        )
        self.unfinished = self._resume()
        self.last_save = time.monotonic()
        self.train_names_checked = False
        self.quality = self._quality_monitor()
        self.teaching = self._distill_monitor()
        self.reports: Optional[EpochReports] = None
        if ranks.is_first:
            record_environment(self.output_dir)
            self.reports = EpochReports(self.output_dir, self.reporter, options.use_matplotlib, options.use_tensorboard)
        self.step_model = ranks.data_parallel(
            state.model, options.unused_parameters, options.gradient_as_bucket_view, options.ddp_comm_hook
        )

    def _quality_monitor(self) -> Optional[QualityMonitor]:
        options = self.options
        if options.quality_utts == 0:
            return None
        return QualityMonitor(
            self.valid_loaders.dataset.source, enhance_utterance, options.quality_utts, options.quality_interval,
            options.seed, self.output_dir / "images",
        )  # fmt: skip

    def _distill_monitor(self) -> Optional[DistillMonitor]:
        """Only on the first rank, which needs no other for it."""
        distilled = isinstance(self.state.model, DistillEnhancementModel)
        if not (self.options.kd_diagnostics and distilled and self.ranks.is_first):
            return None
        return DistillMonitor(
            self.state.model, self.train_loaders, self.valid_loaders, self.output_dir, self.options.seed,
            self.options.ngpu > 0,
            lambda: torch.autocast("cuda", enabled=self.options.use_amp, **espnet_trainer.autocast_args),
        )  # fmt: skip

    # The run ----------------------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Train the epochs that are left, average the best ones.

        Raises:
            TrainingInterrupted: a signal asked for the end; the state is saved.
            UserError: the training diverged, or an option does not fit it.
        """
        try:
            self._run_epochs()
        except TrainingDiverged as error:
            self._average_best()
            raise UserError(
                f"{error}: lower the learning rate or check the data; {self.output_dir} keeps the epochs before"
            ) from None
        self._average_best()

    def _average_best(self) -> None:
        if self.ranks.is_first and self.reporter.stats:
            self.best.write_averages(self.reporter.stats)
        self.ranks.barrier()

    def _run_epochs(self) -> None:
        max_epoch, finished = self.options.max_epoch, max(self.reporter.stats, default=0)
        if finished:
            self._check_criteria()
        if finished >= max_epoch:
            logger.warning(f"--max_epoch {max_epoch} has been reached already: nothing to train")
            return
        if finished and self.unfinished is None and self._has_converged():
            return
        self._check_total_steps()
        if self.teaching is not None and self.teaching.step == 0:
            self.teaching.record(0)
        for epoch in range(finished + 1, max_epoch + 1):
            self.run_epoch(epoch)
            if self._has_converged():
                break
            if epoch < max_epoch and self.ranks.any(self.signals.received)[0]:
                raise TrainingInterrupted

    def run_epoch(self, epoch: int) -> None:
        """Train and validate for one epoch, save, and publish its weights.

        Raises:
            TrainingDiverged: no update was finite, or the weights are not.
            UserError: a criterion names a value that is not reported; the epoch is saved.
        """
        options = self.options
        logger.info(f"epoch {epoch} of {options.max_epoch}")
        set_all_random_seed(options.seed + epoch + RANK_SEED_STRIDE * self.ranks.rank)
        self.reporter.set_epoch(epoch)
        trained, train_values = self.train(epoch)
        self._check_finite(epoch)
        gradients = self.teaching.record(epoch) if self.teaching is not None else {}
        with self.state.averaged():
            valid_values = self.validate(epoch, trained)
            whole = self.state.weights()
        self._step_schedulers()
        if self.reports is not None:
            self.reports.write(epoch, {"train": train_values, "valid": {**valid_values, **gradients}})
            # What only the training needs is in its state: a file of weights is for use, also by programs of ESPnet.
            weights = for_use(whole)
            # Weights before the state: a run killed in between repeats the epoch and writes the same weights again.
            save_file(weights, self.output_dir / f"{epoch}epoch.pth")
        self.save(None)
        if self.ranks.is_first:
            self.best.publish(self.reporter.stats, epoch)
        self._check_criteria()

    def train(self, epoch: int) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """Run the batches of an epoch that are not done yet.

        Returns:
            What a checkpoint has to hold to go on after them, and the values of the phase.

        Raises:
            TrainingDiverged: no update of the epoch was finite.
        """
        self._reset_memory()
        for optimizer in self.state.optimizers:
            optimizer.zero_grad()
        unfinished, self.unfinished = self.unfinished, None
        with self.reporter.observe("train") as sub_reporter:
            position = Position(epoch, sub_reporter)
            if unfinished is not None:
                position.restore(unfinished)
            loader = self.train_loaders.build_iter(epoch, start_batch=position.batches)
            if unfinished is not None:
                rngs = unfinished["rng"]
                set_rng_state(rngs[self.ranks.rank] if self.ranks.rank < len(rngs) else None)
            all_invalid = self.trainer.train_one_epoch(
                model=self.step_model,
                optimizers=self.state.optimizers,
                schedulers=self.state.schedulers,
                iterator=self._batches(loader, position, "train", lambda: self.between_steps(position)),
                reporter=sub_reporter,
                scaler=self.state.scaler,
                summary_writer=self.reports.writers.get("train") if self.reports is not None else None,
                options=self.options,
                distributed_option=self.distributed_option,
            )
            # A resumed epoch may have had all its finite updates before the interruption.
            all_invalid = all_invalid and "grad_norm" not in sub_reporter.stats
            skipped = skipped_updates(sub_reporter)
            trained = position.state_dict()
        if self.ranks.any(all_invalid)[0]:
            self.reporter.stats.pop(epoch)
            raise TrainingDiverged(f"no update of epoch {epoch} was finite")
        self.reporter.stats[epoch]["train"]["skipped_updates"] = float(skipped)
        if skipped:
            logger.warning(f"epoch {epoch}: {skipped} update(s) were skipped because the gradient was not finite")
        return trained, self._phase_values(position, "train")

    def between_steps(self, position: Position) -> None:
        """All that happens between two steps, when ESPnet's loop has closed the report of one and asks for a batch.

        Averages weights, measures how the teacher teaches, saves, and stops on a signal.
        """
        options = self.options
        if position.batches % options.accum_grad:
            return
        self._check_train_names(position.sub_reporter)
        if self.state.average is not None:
            self.state.average.update()
        interval = options.kd_gradient_interval
        if self.teaching is not None and interval > 0 and self.teaching.step % interval == 0:
            self.teaching.record(position.epoch)
        stop, due = self.ranks.any(self.signals.received, self._save_is_due(position.batches // options.accum_grad))
        if stop or due:
            self._check_finite(position.epoch)
            self.save(position.state_dict())
        if stop:
            raise TrainingInterrupted

    def _save_is_due(self, steps: int) -> bool:
        options = self.options
        minutes = (time.monotonic() - self.last_save) / 60
        return (options.save_interval_steps > 0 and steps % options.save_interval_steps == 0) or (
            0 < options.save_interval_minutes <= minutes
        )

    def validate(self, epoch: int, trained: Dict[str, Any]) -> Dict[str, Any]:
        """Validate, and measure the quality of enhanced utterances where due; returns the values of the phase.

        Args:
            epoch: 1-based.
            trained: what a checkpoint has to hold to go on after the training of the epoch.
        """
        self._reset_memory()
        with self.reporter.observe("valid") as sub_reporter:
            position = Position(epoch, sub_reporter)
            loader = self.valid_loaders.build_iter(epoch)
            self.trainer.validate_one_epoch(
                model=self.step_model,
                iterator=self._batches(loader, position, "valid", lambda: self.after_valid_batch(trained)),
                reporter=sub_reporter,
                options=self.options,
                distributed_option=self.distributed_option,
            )
        if self.quality is not None and self.quality.is_due(epoch, self.options.max_epoch):
            scores = self.quality.measure(self.state.model, epoch) if self.ranks.is_first else None
            self.reporter.stats[epoch]["valid"].update(self.ranks.broadcast(scores))
        return self._phase_values(position, "valid")

    def after_valid_batch(self, trained: Dict[str, Any]) -> None:
        """Stop on a signal; the validation is repeated later, the training of the epoch is not."""
        if not self.ranks.any(self.signals.received)[0]:
            return
        with self.state.averaged():  # back to the weights in training
            self.save(trained)
        raise TrainingInterrupted

    def _batches(self, loader: Any, position: Position, phase: str, after: Callable[[], None]) -> "Batches":
        return Batches(loader, position, after, f"epoch {position.epoch} {phase}" if self.ranks.is_first else None)

    def _phase_values(self, position: Position, phase: str) -> Dict[str, Any]:
        seconds = position.samples * self.ranks.world_size / self.train_loaders.dataset.source.sample_rate
        return phase_values(self.reporter.stats[position.epoch][phase], seconds)

    def _reset_memory(self) -> None:
        if self.options.ngpu > 0:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    # Saving and resuming ----------------------------------------------------------------------------------------

    def save(self, in_progress: Optional[Dict[str, Any]]) -> None:
        """Write the training state; called on every rank.

        Args:
            in_progress: where in an epoch the run is; ``None`` at the end of one.
        """
        if in_progress is not None:
            in_progress = {**in_progress, "rng": self.ranks.gather(in_progress["rng"])}
        if self.ranks.is_first:
            finished = {e: s for e, s in self.reporter.stats.items() if not in_progress or e < in_progress["epoch"]}
            state = {
                **self.state.state_dict(),
                "reporter": dump_reporter(finished),
                "in_progress": in_progress,
                "world_size": self.ranks.world_size,
            }
            save_training_state(self.output_dir, state)
        self.ranks.barrier()
        self.last_save = time.monotonic()

    def _resume(self) -> Optional[Dict[str, Any]]:
        """Load the training state if there is one; return where in an epoch it is, None at the end of one."""
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
            return None
        self.state.load_state_dict(state, f"the checkpoint in {self.output_dir}")
        self.reporter.load_state_dict(load_reporter(state["reporter"]))
        unfinished = state["in_progress"]
        if unfinished is None:
            finished = max(self.reporter.stats, default=0)
            logger.info(f"resuming after epoch {finished}")
            if self.ranks.is_first and finished:
                self.best.publish(self.reporter.stats, finished)
            return None
        logger.info(f"resuming in epoch {unfinished['epoch']} after {unfinished['batches_done']} batches")
        if state["world_size"] != self.ranks.world_size:
            logger.warning(
                f"the epoch began with {state['world_size']} process(es) and goes on with {self.ranks.world_size}: "
                "the batches are the same, random numbers (dropout) are not"
            )
        return unfinished

    # Checks -----------------------------------------------------------------------------------------------------

    def _check_total_steps(self) -> None:
        """Tell the distillation's schedule; a one-cycle schedule that ends in the middle of the training is refused."""
        batches = len(self.train_loaders.make_batches(1)) * self.options.max_epoch
        if isinstance(self.state.model, DistillEnhancementModel):
            self.state.model.distiller.total_steps = batches
        needed = batches // self.options.accum_grad
        for number, scheduler in enumerate(self.state.schedulers, 1):
            if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR) and needed > scheduler.total_steps:
                option = f"--scheduler{'' if number == 1 else number}_conf"
                raise UserError(
                    f"{option}: the schedule has {scheduler.total_steps} steps, but --max_epoch "
                    f"{self.options.max_epoch} takes {needed} updates: set total_steps={needed}, or lower --max_epoch "
                    "or --num_iters_per_epoch"
                )

    def _check_finite(self, epoch: int) -> None:
        """Refuse weights that would spoil every later state and average."""
        bad = self.state.not_finite()
        if self.ranks.any(bool(bad))[0]:
            self.reporter.stats.pop(epoch, None)
            raise TrainingDiverged(f"the weights became infinite or NaN in epoch {epoch} ({', '.join(bad[:3])})")

    def _check_train_names(self, sub_reporter: SubReporter) -> None:
        """Tell after the first step which criterion can never choose an epoch."""
        if not self.train_names_checked:
            refuse_unknown(self.options.criteria, "train", {*sub_reporter.stats, *OCCASIONAL})
            self.train_names_checked = True

    def _check_criteria(self) -> None:
        """Tell after an epoch which criterion can never choose one; the state is saved by then."""
        for phase, extra in (("train", OCCASIONAL), ("valid", self.options.valid_scores)):
            names = [set(phases.get(phase, ())) for phases in self.reporter.stats.values()]
            refuse_unknown(self.options.criteria, phase, set(extra).union(*names))

    def _has_converged(self) -> bool:
        if self.options.patience is None:
            return False
        phase, name, mode = self.options.early_stopping_criterion
        epochs = rank_epochs(self.reporter.stats, phase, name, mode)
        if not epochs:
            return False
        epoch = self.reporter.get_epoch()
        if epoch - epochs[0] <= self.options.patience:
            return False
        logger.info(f"early stop at epoch {epoch}: {phase}.{name} was best at epoch {epochs[0]}")
        return True

    def _step_schedulers(self) -> None:
        for scheduler in self.state.schedulers:
            if isinstance(scheduler, AbsValEpochStepScheduler):
                phase, name = self.options.val_scheduler_criterion[:2]
                if self.reporter.has(phase, name):
                    scheduler.step(self.reporter.get_value(phase, name))
                elif name not in self.options.valid_scores:
                    raise UserError(f"--val_scheduler_criterion {phase},{name} is not reported")
            elif isinstance(scheduler, AbsEpochStepScheduler):
                scheduler.step()


class Batches:
    """The rest of a phase's batches for ESPnet's loop, which asks for one when it has dealt with the one before.

    Args:
        loader: the batches that are left.
        position: counts them.
        after: called when a batch is dealt with.
        desc: of the progress; None shows none.
    """

    def __init__(self, loader: Any, position: Position, after: Callable[[], None], desc: Optional[str]):
        self.loader, self.position, self.after, self.desc = loader, position, after, desc
        self.length = position.batches + len(loader)

    def __len__(self) -> int:  # of the whole epoch, which ESPnet's log interval depends on
        return self.length

    def __iter__(self) -> Iterator[Any]:
        batches = self.loader
        if self.desc is not None:
            batches = progress(batches, total=len(batches), desc=self.desc, unit="batch", every=PROGRESS_SECONDS)
        for batch in batches:
            samples = int(batch[1].pop(NUM_SAMPLES).sum())  # without padding; the model is not to see them
            yield batch
            self.position.batches += 1
            self.position.samples += samples
            self.after()
