"""The training task: ESPnet's enhancement task with distillation and this project's training engine."""

import argparse
import contextlib
import copy
import inspect
import multiprocessing
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
import yaml
from espnet2.enh.espnet_model import ESPnetEnhancementModel
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.schedulers.abs_scheduler import AbsScheduler
from espnet2.tasks.abs_task import optim_classes, scheduler_classes
from espnet2.tasks.enh import (
    EnhancementTask,
    criterion_choices,
    decoder_choices,
    encoder_choices,
    loss_wrapper_choices,
    separator_choices,
)
from espnet2.torch_utils.initialize import initialize
from espnet2.train.distributed_utils import get_rank
from espnet2.utils.nested_dict_action import NestedDictAction
from espnet2.utils.types import str_or_none

from i2srf_kd import models
from i2srf_kd.data.mixing import MixingOptions
from i2srf_kd.espnet.iterator import add_chunk_arguments, build_chunk_iter_factory
from i2srf_kd.espnet.loading import local_model
from i2srf_kd.espnet.model import DistillEnhancementModel
from i2srf_kd.espnet.teacher import load_teacher
from i2srf_kd.espnet.trainer import DistillTrainer
from i2srf_kd.export.bundle import WEIGHTS, is_bundle
from i2srf_kd.inference.experiment import (
    NETWORK_PREFIX,
    TRAINING_ONLY_PREFIX,
    Experiment,
    for_use,
    stated_rate,
    training_names,
)
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.fingerprints import fingerprint, fingerprint_of_text
from i2srf_kd.system.signals import passed_on
from i2srf_kd.system.user_modules import absolute_entries
from i2srf_kd.training.checkpoint import check_key_coverage, load_weights
from i2srf_kd.training.run_guard import guard_experiment
from i2srf_kd.training.speed import SpeedOptions, compile_regions, parse_speed, speed_up_model, speed_up_network


class DistillEnhancementTask(EnhancementTask):
    """Trains an enhancement model, with a teacher if the options have a ``distill`` section.

    Teacher and undistilled student are trained by the same task without that section.
    """

    trainer = DistillTrainer
    check_sample_rate = True

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_task_arguments(parser)
        group = parser.add_argument_group(description="Distillation related")
        group.add_argument(
            "--distill",
            action=NestedDictAction,
            default={},
            help="method, method_conf, weight, schedule and more: docs/distillation.md",
        )
        group.add_argument(
            "--distill_config", type=str_or_none, default=None, help="YAML file with the content of --distill"
        )
        group.add_argument(
            "--teacher_exp",
            type=str_or_none,
            default=None,
            help="The trained teacher: experiment folder, packed model, or tag on the hub",
        )
        group.add_argument("--teacher_config", type=str_or_none, default=None, help="The teacher's config.yaml")
        group.add_argument("--teacher_model_file", type=str_or_none, default=None, help="The teacher's checkpoint")
        for name, what in (("teacher_digest", "teacher's weights"), ("data_digest", "lists of training data")):
            group.add_argument(
                f"--{name}", type=str_or_none, default=None, help=f"Set by the program: fingerprint of the {what}"
            )
        add_chunk_arguments(parser)
        group.add_argument(
            "--speed",
            action=NestedDictAction,
            default={},
            help="What makes a step faster: amp_dtype, teacher_dtype, teacher_inference_mode, channels_last, "
            "dense_buffer, fused_optimizer, compile, cuda_graphs (docs/performance.md)",
        )
        parser.add_argument(
            "--train_hours",
            type=float,
            default=None,
            help="Hours of audio to train on; sets --max_epoch and the length of a onecyclelr or cosineannealinglr "
            "schedule from --num_iters_per_epoch, --batch_size and --chunk_length",
        )
        # Chunks of equal length, no attention plots, tensorboard beside the metrics in JSON lines.
        parser.set_defaults(
            iterator_type="task",
            sample_rate=16000,
            num_att_plot=0,
            use_matplotlib=False,
            encoder="stft",
            decoder="stft",
        )

    @classmethod
    def resolve_distillation(cls, args: argparse.Namespace) -> None:
        """Bring the distillation's options into ``args.distill`` and the teacher's two files, in place.

        After it, the configuration that training writes is complete in itself.

        Raises:
            UserError: when a file is absent or the options contradict each other.
        """
        config = args.distill_config or getattr(args, "config", None)
        if args.distill_config:
            written = read_yaml(args.distill_config, f"--distill_config {args.distill_config}")
            args.distill = {**written.get("distill", written), **(args.distill or {})}
            args.distill_config = None
        given = [name for name in ("teacher_exp", "teacher_config", "teacher_model_file") if getattr(args, name)]
        if not args.distill:
            if given:
                raise UserError(f"--{given[0]} without --distill_config or --distill: say how the teacher shall teach")
            return
        try:
            weight = float(args.distill.get("weight", 1.0))
        except (TypeError, ValueError):
            raise UserError(f"distill: weight must be a number, not {args.distill['weight']!r}") from None
        if weight == 0 or getattr(args, "collect_stats", False):
            # Of weight 0 its parameters would take part in no loss, which DDP refuses; statistics need no teacher.
            args.distill, args.teacher_exp, args.teacher_config, args.teacher_model_file = {}, None, None, None
            return
        if args.distill.get("import"):
            try:
                args.distill["import"] = absolute_entries(args.distill["import"], [Path(config or "").parent, ""])
            except ValueError as error:
                raise UserError(f"distill: {error}") from None
        if args.teacher_exp:
            experiment = Experiment(local_model(str(models.folder_of(args.teacher_exp))))
            args.teacher_config = str(experiment.config_file)
            args.teacher_model_file = str(args.teacher_model_file or experiment.weights())
            args.teacher_exp = None
        if not (args.teacher_config and args.teacher_model_file):
            raise UserError("distillation needs a teacher: give --teacher_exp, or --teacher_config and its checkpoint")
        args.teacher_digest = fingerprint([args.teacher_model_file])

    @classmethod
    def main(cls, args: Optional[argparse.Namespace] = None, cmd: Optional[Sequence[str]] = None) -> None:
        """Parse options and train; with several GPUs, start a process for each and pass signals on to them."""
        if args is None:
            try:
                args = cls.get_parser().parse_args(cmd)
            except yaml.YAMLError as error:
                raise UserError(f"--config is no valid YAML: {error}") from None
        try:
            with passed_on(multiprocessing.active_children) if _n_gpus(args) > 1 else contextlib.nullcontext():
                super().main(args)
        except torch.multiprocessing.ProcessExitedException as error:
            sys.exit(error.exit_code)

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        try:
            if getattr(args, "iterator_type", None) == "chunk":
                args.iterator_type = "task"  # chunks as well, so that configurations of ESPnet's recipes need no change
            _check_gpus(args)
            _check_speed(args)
            plan_hours(args)
            cls.resolve_distillation(args)
            args.init_param = [initial_weights(path) for path in args.init_param]
            args.data_digest = _data_fingerprint(args)
            # ESPnet rewrites config.yaml before it looks at a checkpoint: compare first.
            guard_experiment(args, args.output_dir, rank0=is_first_process(args))
            super().main_worker(args)
        except UserError as error:
            if multiprocessing.parent_process() is None:
                raise
            print(f"error: {error}", file=sys.stderr)  # a process per GPU: its parent sees the exit code alone
            sys.exit(2)

    @classmethod
    def build_optimizers(cls, args: argparse.Namespace, model: torch.nn.Module) -> List[torch.optim.Optimizer]:
        with_speed = _with_fused_optimizer(args)
        try:
            optimizers = super().build_optimizers(with_speed, model)
        except (TypeError, ValueError) as error:
            raise UserError(f"--optim {args.optim}, --optim_conf {args.optim_conf}: {error}") from None
        _try_scheduler(args)
        return optimizers

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetEnhancementModel:
        if args.distill_config or args.teacher_exp:  # whoever builds a model without training, such as ESPnet3
            cls.resolve_distillation(args)
        try:
            model = cls._build_student(args)
            _speed_up(args, model)
        except (TypeError, ValueError, AttributeError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot build the model: {error}") from None
        if not args.ignore_init_mismatch:
            for path in args.init_param:
                check_init_param(model, initial_weights(path))
        return model

    @classmethod
    def _build_student(cls, args: argparse.Namespace) -> ESPnetEnhancementModel:
        if args.separator.endswith("nomask"):
            raise UserError(f"separator {args.separator}: models with a mask module of their own are not supported")
        if not args.criterions:
            raise UserError("criterions is empty: name at least one training loss")
        loss_wrappers = [_build_wrapper(options, args.sample_rate) for options in args.criterions]
        encoder = encoder_choices.get_class(args.encoder)(**args.encoder_conf)
        separator = separator_choices.get_class(args.separator)(encoder.output_dim, **args.separator_conf)
        decoder = decoder_choices.get_class(args.decoder)(**args.decoder_conf)
        plain = ESPnetEnhancementModel(
            encoder=encoder,
            separator=separator,
            decoder=decoder,
            mask_module=None,
            loss_wrappers=loss_wrappers,
            **copy.deepcopy(args.model_conf),
        )
        if args.init is not None:
            initialize(plain, args.init)
        if not args.distill:
            return plain
        # The student's first weights are drawn by now: they do not depend on whether and how it is distilled.
        teacher, teacher_args = load_teacher(
            Path(args.teacher_config), Path(args.teacher_model_file), args.distill.get("teacher_taps")
        )
        _check_rates(args, teacher_args)
        model = DistillEnhancementModel(
            teacher,
            args.distill,
            encoder=encoder,
            separator=separator,
            decoder=decoder,
            mask_module=None,
            loss_wrappers=plain.loss_wrappers,
            **copy.deepcopy(args.model_conf),
        )
        _check_batch(args, model)
        if model.distiller.pauses and getattr(args, "distributed", False) and not args.unused_parameters:
            raise UserError(
                "distill: kd_only_steps, every, or a schedule that falls needs --unused_parameters true with several "
                "processes: there are steps without the task or the distillation"
            )
        return model

    @classmethod
    def build_task_iter_factory(cls, args: argparse.Namespace, iter_options: Any, mode: str) -> AbsIterFactory:
        return build_chunk_iter_factory(args, iter_options, mode, cls)


def _build_wrapper(options: Dict[str, Any], sample_rate: int) -> torch.nn.Module:
    unknown = sorted(set(options) - {"name", "conf", "wrapper", "wrapper_conf"})
    if unknown or "name" not in options:
        raise ValueError(f"a criterion has name, conf, wrapper and wrapper_conf; got {dict(options)}")
    criterion = criterion_choices.get_class(options["name"])(**options.get("conf", {}))
    if getattr(criterion, "sample_rate", sample_rate) != sample_rate:
        raise ValueError(
            f"criterion {options['name']} is for {criterion.sample_rate} Hz, --sample_rate is {sample_rate}"
        )
    wrapper_class = loss_wrapper_choices.get_class(options.get("wrapper", "fixed_order"))
    return wrapper_class(criterion=criterion, **options.get("wrapper_conf", {}))


# What ESPnet is told to do with a file of initial weights: FILE:FROM:TO:WITHOUT.
_NETWORK_ALONE = f"::{NETWORK_PREFIX.rstrip('.')}"
_WITHOUT_DISTILLATION = f":::{TRAINING_ONLY_PREFIX}"


def check_init_param(model: torch.nn.Module, text: str) -> None:
    """Compare initial weights, ``FILE[:FROM[:TO[:WITHOUT]]]``, with the model that begins with them.

    A distillation may begin anew, and where a part of the file is asked for nobody expects all keys.

    Raises:
        UserError: the file is none of weights, keys are missing, or a tensor has another size.
    """
    path = text.split(":")[0]
    weights = load_weights(path)
    target = model.state_dict()
    if text == path + _NETWORK_ALONE:
        weights = training_names(weights)
        target = {key: value for key, value in target.items() if key.startswith(NETWORK_PREFIX)}
    elif text == path + _WITHOUT_DISTILLATION:
        weights = for_use(weights)
    elif text != path:
        return
    wanted = [key for key in target if key in weights or not key.startswith(TRAINING_ONLY_PREFIX)]
    check_key_coverage(wanted, weights, source=path)
    for key in wanted:
        if target[key].shape != weights[key].shape:
            raise UserError(
                f"--init_param {path}: {key} is {tuple(weights[key].shape)}, the model to be trained has "
                f"{tuple(target[key].shape)}: take the separator_conf that the weights were trained with"
            )


def initial_weights(text: str) -> str:
    """What ESPnet's ``--init_param`` understands, for a folder or the name of a model as well.

    Args:
        text: a file of weights in ESPnet's form, an experiment folder, an exported folder, or the name of a model that
            comes with the package.
    """
    folder = models.folder_of(text)
    if is_bundle(folder):
        return f"{folder / WEIGHTS}{_NETWORK_ALONE}"
    return f"{Experiment(folder).weights()}{_WITHOUT_DISTILLATION}" if folder.is_dir() else text


def is_first_process(args: argparse.Namespace) -> bool:
    """Whether this is the process of rank 0, before the processes have met; ``args`` as in ESPnet's ``main_worker``."""
    return not (args.distributed and get_rank(args.dist_rank, args.dist_launcher))


def plan_hours(args: argparse.Namespace) -> None:
    """Set epochs and the schedule's length so that training hears ``--train_hours`` of audio, in place.

    Raises:
        UserError: the hours are not positive, or the length of an epoch is not given.
    """
    if args.train_hours is None:
        return
    if not args.train_hours > 0 or not args.num_iters_per_epoch:
        raise UserError(
            f"--train_hours {args.train_hours}: must be above 0, and needs --num_iters_per_epoch, the steps of an epoch"
        )
    steps_an_hour = 3600 * args.sample_rate / (args.batch_size * int(args.chunk_length))
    args.max_epoch = max(1, round(args.train_hours * steps_an_hour / args.num_iters_per_epoch))
    updates = args.max_epoch * (args.num_iters_per_epoch // args.accum_grad)
    # ESPnet moves the second one on once an epoch.
    lengths = {"onecyclelr": {"total_steps": updates}, "cosineannealinglr": {"T_max": args.max_epoch}}
    args.scheduler_conf = {**args.scheduler_conf, **lengths.get(args.scheduler, {})}


def _data_fingerprint(args: argparse.Namespace) -> str:
    """Fingerprint of the lists of training data, and of what mixtures are made of."""
    lists = fingerprint([*args.train_shape_file, *args.valid_shape_file])
    section = getattr(args, "mixing", None)
    return fingerprint_of_text(lists + MixingOptions.from_section(section).fingerprint().hex()) if section else lists


def _n_gpus(args: argparse.Namespace) -> int:
    return int(getattr(args, "ngpu", 0))


def _check_speed(args: argparse.Namespace) -> SpeedOptions:
    options = parse_speed(getattr(args, "speed", None), _n_gpus(args) > 0)
    if getattr(args, "use_amp", False) and options.amp_dtype is not None:
        raise UserError("--use_amp true and speed: amp_dtype exclude each other: take amp_dtype, which needs no scaler")
    return options


def _speed_up(args: argparse.Namespace, model: ESPnetEnhancementModel) -> None:
    options = _check_speed(args)
    speed_up_network(model.separator, options, "student")
    method = "forward"
    if isinstance(model, DistillEnhancementModel):
        method = "losses"
        model.teacher.speed = options
        speed_up_network(model.teacher.model.separator, options, "teacher")
        if "loss" in options.compile:
            compile_regions(model.distillation, options)
    speed_up_model(model, options, "cuda" if _n_gpus(args) > 0 else "cpu", method)


def _with_fused_optimizer(args: argparse.Namespace) -> argparse.Namespace:
    """The options, with the optimiser's own where ``speed`` asks for one kernel."""
    if not _check_speed(args).fused_optimizer:
        return args
    kind: Any = optim_classes.get(args.optim)
    able = [name for name, c in optim_classes.items() if "fused" in inspect.signature(c).parameters]
    if kind is not None and args.optim not in able:
        raise UserError(f"speed: fused_optimizer is not for --optim {args.optim}: use one of {', '.join(able)}")
    return argparse.Namespace(**{**vars(args), "optim_conf": {**args.optim_conf, "fused": True}})


def _check_gpus(args: argparse.Namespace) -> None:
    """Refuse GPUs that are asked for, on the command line or in a configuration, and absent."""
    if args.ngpu > torch.cuda.device_count():
        raise UserError(f"--ngpu {args.ngpu} but this machine shows {torch.cuda.device_count()} GPUs: use --ngpu 0")


def _try_scheduler(args: argparse.Namespace) -> None:
    """Build the scheduler once for show: ESPnet builds the real one where its errors would be tracebacks."""
    if args.scheduler is None:
        return
    known: Dict[str, Any] = scheduler_classes
    if args.scheduler not in known:
        raise UserError(f"--scheduler {args.scheduler}: choose one of {', '.join(known)}")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    try:
        scheduler: AbsScheduler = known[args.scheduler](optimizer, **args.scheduler_conf)
    except (TypeError, ValueError) as error:
        raise UserError(f"--scheduler {args.scheduler}, --scheduler_conf {args.scheduler_conf}: {error}") from None
    del scheduler


@torch.no_grad()
def _check_batch(args: argparse.Namespace, model: DistillEnhancementModel) -> None:
    """Refuse, before the training, batches of a size that a method does not take."""
    samples = int(args.chunk_length)
    frames = model.encoder(torch.zeros(1, samples), torch.tensor([samples]))[0].shape[1]
    for method in model.distiller.methods:
        method.check_batch(args.batch_size // (getattr(args, "dist_world_size", None) or 1), frames)


def _check_rates(args: argparse.Namespace, teacher_args: argparse.Namespace) -> None:
    ours, theirs = args.sample_rate, stated_rate(vars(teacher_args))
    if theirs not in (None, ours):
        raise UserError(f"the teacher was trained at {theirs} Hz, the student is to be trained at {ours} Hz")


def main(cmd: Optional[Sequence[str]] = None) -> None:
    """Run the task with command-line options ``cmd``."""
    DistillEnhancementTask.main(cmd=cmd)
