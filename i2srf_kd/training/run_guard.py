"""What must hold before a training starts in a folder: one process, and the options of what is already there.

ESPnet resumes with whatever options it is given and rewrites ``config.yaml`` before it looks at the checkpoint, so
:func:`guard_experiment` has to be called before ESPnet's ``main_worker``.
"""

import argparse
import errno
import logging
import os
import re
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

import yaml

from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError, cannot_write
from i2srf_kd.system.files import atomic_path, remove_temporaries, write_text
from i2srf_kd.system.locks import hold_alone, take
from i2srf_kd.training.checkpoint import has_checkpoint

logger = logging.getLogger(__name__)

INTERRUPTED = ".interrupted"
OVERWRITTEN_BY = ".overwritten_by"  # the Slurm job that began the run with --overwrite true
OPTIONS = "options.yaml"  # those the run was started with; config.yaml is not whole while ESPnet writes it

# Where the same content lies may change: the fingerprint tells whether it is the same.
FINGERPRINTS = {
    "teacher_digest": ("the teacher's weights changed since", ("teacher_config", "teacher_model_file")),
    "data_digest": (
        "the training data changed since",
        (
            "train_data_path_and_name_and_type", "valid_data_path_and_name_and_type", "train_shape_file",
            "valid_shape_file",
        ),
    ),
}  # fmt: skip

# How a run is carried out and watched, or how long it lasts: none of these changes what a step computes.
HARMLESS = frozenset(
    """
    allow_variable_data_keys best_model_criterion collect_stats config create_graph_in_tensorboard cudnn_benchmark
    cudnn_deterministic cudnn_enabled detect_anomaly dist_backend dist_init_method dist_launcher dist_master_addr
    dist_master_port dist_rank dist_world_size distributed dry_run early_stopping_criterion gradient_as_bucket_view
    keep_nbest_models local_rank log_interval log_level max_cache_fd max_cache_size max_epoch
    multiprocessing_distributed nbest_averaging_interval ngpu num_att_plot num_cache_chunks num_workers output_dir
    overwrite patience print_config quality_interval quality_utts required resume save_interval_minutes
    save_interval_steps train_hours unused_parameters use_matplotlib use_tensorboard use_tf32 use_wandb valid_batch_size
    valid_max_cache_size version wandb_entity wandb_id wandb_model_log_interval wandb_name wandb_project
    write_collected_feats
    """.split()
)

_ANEW = "--overwrite true (run.sh: --force true)"


def check_supported(args: argparse.Namespace) -> None:
    """Refuse ESPnet options that this project's trainer does not carry out.

    Raises:
        UserError: names the option.
    """
    for option, advice in (
        ("use_wandb", "tensorboard and metrics.jsonl are written"),
        ("sharded_ddp", "use plain data parallel training"),
        ("use_deepspeed", "use plain data parallel training"),
        ("use_adapter", "train all weights, or freeze some with --freeze_param"),
        ("multiple_iterator", "put the data into one folder"),
    ):
        if getattr(args, option, False):
            raise UserError(f"--{option} true is not supported here: {advice}")
    iterator_type = getattr(args, "iterator_type", "task")
    if iterator_type != "task":
        raise UserError(f"--iterator_type {iterator_type} is not supported here: use task, which reads chunks")
    if getattr(args, "use_amp", False) and args.ngpu == 0:
        raise UserError("--use_amp true needs a GPU: set --ngpu 1, or --use_amp false")
    if args.ngpu > 1 and not getattr(args, "distributed", False):
        raise UserError(f"--ngpu {args.ngpu} needs --multiprocessing_distributed true (one process per GPU)")


def guard_experiment(args: argparse.Namespace, output_dir: Any, rank0: bool = True, ignore: Iterable[str] = ()) -> None:
    """Lock the folder of an experiment and make sure that it can go on with these options.

    With ``--overwrite true`` an existing folder is moved to ``<folder>.bak-<time>`` first, unless that run was
    interrupted by a signal and asked to be started again with the same command, or was begun by this very Slurm job,
    which has been queued again.

    Args:
        args: options of this start, before ESPnet rewrites ``config.yaml``.
        output_dir: folder of the experiment.
        rank0: only the first process looks and locks; the others return at once.
        ignore: further options that may differ.

    Raises:
        UserError: an option is unsupported, the folder is in use, or options differ from those of its run.
    """
    check_supported(args)
    if not rank0:
        return
    output_dir = Path(output_dir)
    lock_experiment(output_dir)
    overwrite = getattr(args, "overwrite", False)
    if overwrite and has_run(output_dir) and not _begun_by_this_job(output_dir):
        if (output_dir / INTERRUPTED).exists() and not option_changes(args, output_dir, ignore)[0]:
            logger.warning(
                f"{output_dir} was interrupted: it is resumed in spite of --overwrite true; "
                "remove the folder to start anew"
            )
        else:
            move_aside(output_dir)
            lock_experiment(output_dir)
    elif has_run(output_dir):
        check_same_options(args, output_dir, ignore)
    try:
        if overwrite and "SLURM_JOB_ID" in os.environ:
            write_text(output_dir / OVERWRITTEN_BY, f"{os.environ['SLURM_JOB_ID']}\n")
        with atomic_path(output_dir / OPTIONS, durable=True) as temporary:
            temporary.write_text(yaml.safe_dump(_simple(vars(args)), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise cannot_write(output_dir / OPTIONS, error) from None
    (output_dir / INTERRUPTED).unlink(missing_ok=True)


def _begun_by_this_job(output_dir: Path) -> bool:
    """Whether Slurm has queued this job again, and the run in the folder is what it made when it ran before.

    The number of the job tells, and not that it was queued again alone: it may have been lost before it had moved the
    old run aside.
    """
    if os.environ.get("SLURM_RESTART_COUNT", "0") in ("", "0"):
        return False
    try:
        begun_by = (output_dir / OVERWRITTEN_BY).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return False
    return begun_by == os.environ.get("SLURM_JOB_ID")


def has_run(output_dir: Path) -> bool:
    """Whether the folder holds results of a training (a checkpoint or weights of an epoch)."""
    return has_checkpoint(output_dir) or any(
        re.fullmatch(r"\d+epoch\.pth", path.name) for path in output_dir.glob("*epoch.pth")
    )


def mark_interrupted(output_dir: Path) -> None:
    """Note that a run stopped on a signal and wants the same command again."""
    (Path(output_dir) / INTERRUPTED).touch()


def lock_experiment(output_dir: Path) -> None:
    """Take the folder for this process, until it ends.

    The lock belongs to the process and not to its children, so workers that outlive a killed trainer for a moment do
    not keep it.

    Raises:
        UserError: says which process on which host holds it.
    """
    if holder := hold_alone(output_dir / ".lock"):
        raise UserError(f"{output_dir} is in use by {holder}: wait for it, or use another --output_dir")
    for folder in (output_dir, output_dir / "images"):
        remove_temporaries(folder)  # of runs that were killed


def move_aside(output_dir: Path) -> Path:
    """Rename the folder to ``<folder>.bak-<time>`` and return the new name."""
    stem = f"{output_dir.name}.bak-{time.strftime('%Y%m%d-%H%M%S')}"
    target, number = output_dir.with_name(stem), 1
    while target.exists():
        number += 1
        target = output_dir.with_name(f"{stem}-{number}")
    output_dir.rename(target)
    # A pipeline keeps others from the folder by its name, not only from what is now elsewhere.
    for lock in target.glob(".done_*.lock"):
        output_dir.mkdir(exist_ok=True)
        try:
            lock.rename(output_dir / lock.name)
        except OSError as error:  # the folder was a link to one on another file system
            if error.errno != errno.EXDEV:
                raise
            _lock_in_its_place(lock, output_dir / lock.name)
    logger.warning(f"--overwrite true: the old {output_dir} is now {target}")
    return target


def _lock_in_its_place(old: Path, new: Path) -> None:
    """Hold a lock that the pipeline cannot hold by that name any more, until this process ends."""
    try:
        os.write(take(new, str(new), wait=0), old.read_bytes())
    except UserError as error:  # somebody came in between
        logger.warning(str(error))
    old.unlink()


def check_same_options(args: argparse.Namespace, output_dir: Path, ignore: Iterable[str] = ()) -> None:
    """Compare options with those of the run in ``output_dir``; report harmless differences.

    Raises:
        UserError: lists the options that change what is trained, old -> new.
    """
    changed, harmless = option_changes(args, output_dir, ignore)
    for line in harmless:
        logger.info(f"differs from the run being resumed: {line}")
    if changed:
        raise UserError(
            f"{output_dir} holds a run with other options:\n  " + "\n  ".join(changed) + "\n"
            "Use another --output_dir (run.sh: --teacher_tag, --student_tag, --baseline_tag), or "
            f"{_ANEW} to move that run aside and start anew"
        )


def option_changes(
    args: argparse.Namespace, output_dir: Path, ignore: Iterable[str] = ()
) -> Tuple[List[str], List[str]]:
    """Lines ``--option: old -> new`` that change the training, and those that do not."""
    old = _read_config(output_dir / OPTIONS) or _read_config(output_dir / "config.yaml")
    if old is None:
        return [], [f"{output_dir / 'config.yaml'} is absent, so the options cannot be compared"]
    changed: List[str] = []
    harmless: List[str] = []
    # Through YAML, so that both sides know lists only and no tuples.
    new = yaml.safe_load(yaml.safe_dump(_simple(vars(args))))
    allowed = HARMLESS | set(ignore)
    for digest, (message, options) in FINGERPRINTS.items():
        if not (old.get(digest) and new.get(digest)):
            continue
        if old[digest] == new[digest]:
            allowed |= set(options)
        elif digest not in ignore:
            changed.append(f"--{digest}: {message} ({old[digest]} -> {new[digest]})")
    for option in sorted((set(old) | set(new)) - set(FINGERPRINTS)):
        if option not in old or option not in new:
            side = "new" if option in new else "gone"
            if option not in allowed:
                harmless.append(f"--{option}: {side} in this version")
            continue
        before, after = _flatten(old[option], f"--{option}"), _flatten(new[option], f"--{option}")
        for name in sorted(set(before) | set(after), key=_natural):
            a, b = before.get(name, "(absent)"), after.get(name, "(absent)")
            if not _same(a, b):
                (harmless if option in allowed else changed).append(f"{name}: {a} -> {b}")
    return changed, harmless


def _read_config(path: Path) -> Optional[Dict[str, Any]]:
    if not path.exists():
        return None
    try:
        config = read_yaml(path)
    except UserError as error:
        raise UserError(f"{error}: repair it, or use {_ANEW}") from None
    if not config:
        raise UserError(f"{path} holds no options: repair it, or use {_ANEW}")
    return _simple(config)


def _simple(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _simple(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_simple(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _flatten(value: Any, name: str) -> Dict[str, Any]:
    """``{"--optim_conf.lr": 0.001}`` from nested options; lists get indices."""
    if isinstance(value, dict) and value:
        children = {f"{name}.{key}": item for key, item in value.items()}
    elif isinstance(value, list) and value:
        children = {f"{name}[{i}]": item for i, item in enumerate(value)}
    else:
        return {name: value}
    return {key: leaf for child, item in children.items() for key, leaf in _flatten(item, child).items()}


def _natural(name: str) -> List[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _same(a: Any, b: Any) -> bool:
    if a == b and isinstance(a, bool) == isinstance(b, bool):
        return True
    if isinstance(a, str) and isinstance(b, str) and a and b:
        return os.path.exists(a) and os.path.realpath(a) == os.path.realpath(b)
    return isinstance(a, float) and isinstance(b, float) and a != a and b != b
