"""Files of an experiment: training state, weights of an epoch, links, averages.

A reader never sees half of a file: everything is written beside its place and renamed, and what a run needs to go on
is flushed to disk first. torch's files are zip archives; their checksums tell a damaged file from a sound one.
"""

import logging
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional, Sequence

import numpy as np
import torch

from i2srf_kd.system.errors import UserError, cannot_write, disk_full
from i2srf_kd.system.files import PathLike, atomic_path, temporary_name
from i2srf_kd.system.packed import WEIGHTS_KEY, open_file

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth"
PREVIOUS = "checkpoint.previous.pth"
DAMAGED = "checkpoint.damaged.pth"

_WRITE_FAILURE = "inline_container|PytorchStreamWriter|iostream error"  # in messages of torch's archive writer

Weights = Dict[str, torch.Tensor]


def has_checkpoint(output_dir: PathLike) -> bool:
    """Whether a training can be resumed from this folder."""
    return any((Path(output_dir) / name).exists() for name in (CHECKPOINT, PREVIOUS))


def save_file(state: Any, path: PathLike) -> None:
    """``torch.save``, atomic and durable.

    Raises:
        UserError: the file cannot be written, such as on a full disk.
    """
    path = Path(path)
    with torch_writing(path), atomic_path(path, durable=True) as temporary:
        torch.save(state, temporary)
    _sync_folder(path.parent)


@contextmanager
def torch_writing(path: Path) -> Iterator[None]:
    """Name the file or folder that torch, or anything else, fails to write.

    Raises:
        UserError: it cannot be written, such as on a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as a RuntimeError without a reason.
        if isinstance(error, OSError):
            raise cannot_write(path, error) from None
        if not re.search(_WRITE_FAILURE, str(error)):
            raise
        raise disk_full(path, "is the disk full?") from None


def check_integrity(path: PathLike) -> None:
    """Verify the checksums of a file that torch wrote.

    Raises:
        UserError: the file is absent, empty, truncated or altered.
    """
    path = Path(path)
    try:
        with open_file(path, WEIGHTS_KEY) as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            size = file.seek(0, os.SEEK_END)
            if not size:
                raise UserError(f"{path} is empty")
            if not is_zip:  # torch before 1.6; torch.load finds out
                return
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged ({error})") from None
    if broken is not None:
        raise UserError(f"{path} is damaged (checksum of {broken})")


def load_weights(path: PathLike, map_location: Any = "cpu") -> Weights:
    """Load the weights of an epoch, an average, or the model of a training state; or those of a packed model.

    Only tensors and plain values are unpickled, so a file from elsewhere cannot run code.

    Raises:
        UserError: the file is absent, damaged, or holds something else.
    """
    state = _load(path, map_location, "take an epoch file such as valid.loss.best.pth")
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} holds no named tensors; take an epoch file such as valid.loss.best.pth")
    return dict(state)


def save_training_state(output_dir: PathLike, state: Mapping[str, Any]) -> None:
    """Write ``checkpoint.pth``; the one before stays as ``checkpoint.previous.pth``.

    Raises:
        UserError: it cannot be written, such as on a full disk; both files are as before.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    current, previous = output_dir / CHECKPOINT, output_dir / PREVIOUS
    with torch_writing(current), atomic_path(current, durable=True) as temporary:
        torch.save(plain(state), temporary)
        if current.exists():
            _keep_as(current, previous)
    _sync_folder(output_dir)


def load_training_state(
    output_dir: PathLike, map_location: Any = "cpu", set_aside: bool = True
) -> Optional[Dict[str, Any]]:
    """Load the newest sound training state.

    A damaged ``checkpoint.pth`` is reported, put aside as ``checkpoint.damaged.pth`` (so that it cannot become the
    previous one) and replaced by ``checkpoint.previous.pth``.

    Args:
        output_dir: folder of the experiment.
        map_location: as in ``torch.load``.
        set_aside: rename a damaged file; true in one process only.

    Returns:
        The state, or ``None`` where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    output_dir = Path(output_dir)
    problems = []
    for name in (CHECKPOINT, PREVIOUS):
        path = output_dir / name
        if not path.exists():
            continue
        try:
            state = _load(path, map_location, "the training cannot go on from it")
            if not isinstance(state, dict) or "model" not in state:
                raise UserError(f"{path} is no training state")
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.warning(f"{problem}: going on from the one before, {path}")
        if problems and set_aside:
            os.replace(output_dir / CHECKPOINT, output_dir / DAMAGED)
        return state
    if problems:
        raise UserError(
            f"cannot resume: {'; '.join(problems)}. Start again with --overwrite true (the folder is moved aside), or "
            "with --init_param <an epoch file> in another folder"
        )
    return None


def _load(path: PathLike, map_location: Any, advice: str) -> Any:
    check_integrity(path)
    try:
        with open_file(path, WEIGHTS_KEY) as file:
            return torch.load(file, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no file of weights ({reason}); {advice}") from None


def plain(value: Any) -> Any:
    """Turn numpy values into Python's and torch's, which load without running code."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value


def _keep_as(current: Path, previous: Path) -> None:
    """Let ``previous`` be another name of ``current``; at every moment one of both is sound."""
    temporary = temporary_name(previous)
    try:
        os.link(current, temporary)
    except OSError:  # a file system without hard links
        os.replace(current, previous)
        return
    os.replace(temporary, previous)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot; the file itself is on disk
        pass
    finally:
        os.close(descriptor)


def replace_link(link: PathLike, target_name: str) -> None:
    """Point a symbolic link at a file of the same folder; at every moment the old or the new link is there."""
    link = Path(link)
    if link.is_symlink() and os.readlink(link) == target_name:
        return
    temporary = temporary_name(link)
    try:
        os.symlink(target_name, temporary)
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)


def remove_dangling_links(folder: PathLike) -> None:
    """Remove symbolic links to weights that are no longer there, and links to such links."""
    links = [path for path in Path(folder).glob("*.pth") if path.is_symlink()]
    for link in links:
        if not link.exists():
            link.unlink()


def average_models(paths: Sequence[PathLike]) -> Weights:
    """Mean of the weights in several files, the best first.

    Floating-point and complex tensors are summed in double precision. Integer and boolean tensors (counters of batch
    normalisation) have no meaningful mean and come from the best model.

    Raises:
        UserError: no file, a damaged one, or files of different models.
    """
    if not paths:
        raise UserError("there are no models to average")
    best = load_weights(paths[0])
    sums = {
        key: value.to(torch.complex128 if value.is_complex() else torch.float64)
        for key, value in best.items()
        if value.is_floating_point() or value.is_complex()
    }
    for path in paths[1:]:
        weights = load_weights(path)
        different = set(best) ^ set(weights) or {k for k in best if best[k].shape != weights[k].shape}
        if different:
            raise UserError(f"{path} and {paths[0]} are of different models: {', '.join(sorted(different)[:5])}")
        for key in sums:
            sums[key] = sums[key] + weights[key].to(sums[key].dtype)
    return {
        key: (sums[key] / len(paths)).to(value.dtype) if key in sums else value.clone() for key, value in best.items()
    }


def write_averages(
    output_dir: PathLike, rankings: Mapping[str, Sequence[int]], nbests: Iterable[int], suffix: str = ""
) -> None:
    """Write the n-best averages of every criterion, under ESPnet's names.

    ``valid.loss.ave_1best.pth`` is a link to the best epoch, ``valid.loss.ave_5best.pth`` a file, and
    ``valid.loss.ave.pth`` a link to the one with the largest n. An n beyond the number of epochs is left out.

    Args:
        output_dir: holds ``<epoch>epoch.pth``.
        rankings: criterion (``valid.loss``) -> epochs, the best first.
        nbests: numbers of models to average.
        suffix: put before ``pth``, such as ``till10epoch.``.
    """
    output_dir = Path(output_dir)
    for criterion, epochs in rankings.items():
        if not epochs:
            continue
        wanted = sorted({n for n in nbests if 1 <= n <= len(epochs)}) or [1]
        for n in wanted:
            target = output_dir / f"{criterion}.ave_{n}best.{suffix}pth"
            if n == 1:
                replace_link(target, f"{epochs[0]}epoch.pth")
            else:
                logger.info(f"averaging the {n} best epochs by {criterion}: {list(epochs[:n])}")
                save_file(average_models([output_dir / f"{epoch}epoch.pth" for epoch in epochs[:n]]), target)
        replace_link(output_dir / f"{criterion}.ave.{suffix}pth", f"{criterion}.ave_{wanted[-1]}best.{suffix}pth")


def check_key_coverage(
    model_keys: Iterable[str],
    state_keys: Iterable[str],
    allow_prefixes: Sequence[str] = (),
    source: str = "the file of weights",
) -> None:
    """Make sure that weights fit a model by name.

    Args:
        model_keys: names in the model's state dict.
        state_keys: names in the file.
        allow_prefixes: names that begin so may be missing or unexpected.
        source: named in the error.

    Raises:
        UserError: lists what is missing and what is unexpected.
    """
    model, state = set(model_keys), set(state_keys)
    prefixes = tuple(allow_prefixes)
    missing = sorted(key for key in model - state if not key.startswith(prefixes or "\0"))
    unexpected = sorted(key for key in state - model if not key.startswith(prefixes or "\0"))
    if missing or unexpected:
        raise UserError(
            f"{source} does not fit the model: {_listed('missing', missing)}, {_listed('unexpected', unexpected)}. "
            "Take weights and config.yaml of the same experiment"
        )


def _listed(title: str, keys: Sequence[str], limit: int = 10) -> str:
    more = ", ..." if len(keys) > limit else ""
    return f"{len(keys)} {title}" + (f" ({', '.join(keys[:limit])}{more})" if keys else "")
