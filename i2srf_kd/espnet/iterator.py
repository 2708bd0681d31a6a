"""ESPnet's iterator factory for batches of fixed-length chunks (:mod:`i2srf_kd.data.chunk_loader`).

A task that sets ``--iterator_type task`` returns :func:`build_chunk_iter_factory` from its
``build_task_iter_factory``. Options used: ``--chunk_length`` (samples), ``--chunk_shift_ratio``, ``--batch_size`` (of
all processes together), ``--num_iters_per_epoch``, ``--num_workers``, ``--chunks_per_utterance``, ``--augmentation``,
``--mixing``.
"""

import argparse
import logging
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.train.dataset import AbsDataset
from espnet2.utils.nested_dict_action import NestedDictAction

from i2srf_kd.data.augmentation import MIXTURE, Augmentation
from i2srf_kd.data.chunk_dataset import ChunkDataset, ChunkSource, ParallelFiles, read_lengths
from i2srf_kd.data.chunk_loader import ChunkLoaders
from i2srf_kd.data.chunks import Batch, training_batches, training_steps, validation_batches
from i2srf_kd.data.mixing import MixedSource, MixingOptions
from i2srf_kd.system.errors import UserError

logger = logging.getLogger(__name__)

# ESPnet checks the types of what it is handed; these have all that it uses.
AbsDataset.register(ChunkDataset)
AbsIterFactory.register(ChunkLoaders)


def add_chunk_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that ESPnet's chunk iterator does not have."""
    parser.add_argument(
        "--chunks_per_utterance",
        type=int,
        default=0,
        help="Chunks taken from each utterance in one pass, at random places. 0: as many as cover the utterance.",
    )
    parser.add_argument(
        "--augmentation",
        action=NestedDictAction,
        default={},
        help="Random changes of the training signals: rotation, mirror, mirror_vertical, swap_mics, level_db "
        "(i2srf_kd/data/augmentation.py)",
    )
    parser.add_argument(
        "--mixing",
        action=NestedDictAction,
        default={},
        help="Mixtures that are made while training: noise, speech, snr_db, babble and more (i2srf_kd/data/mixing.py)",
    )


def build_chunk_iter_factory(args: argparse.Namespace, iter_options: Any, mode: str, task_cls: Any) -> ChunkLoaders:
    """Build the iterator factory of a task for ``mode`` ``train``, ``valid`` or ``plot_att``.

    Args:
        args: ESPnet's training options.
        iter_options: from the task's ``build_iter_options``.
        mode: anything but ``train`` runs over the data once, in order.
        task_cls: the task, which checks the names of the data. With an attribute ``check_sample_rate`` that is true,
            ``--sample_rate`` must be the rate of the files.

    Raises:
        UserError: bad options or data.
    """
    chunk_length = _single_chunk_length(args.chunk_length)
    lengths: Mapping[str, int] = read_lengths(iter_options.shape_files)
    pairs = ParallelFiles(_scp_files(iter_options.data_path_and_name_and_type), lengths)
    source: ChunkSource = pairs
    if getattr(task_cls, "check_sample_rate", False) and args.sample_rate != source.sample_rate:
        raise UserError(
            f"the {mode} data have {source.sample_rate} Hz and --sample_rate is {args.sample_rate}: "
            f"set --sample_rate {source.sample_rate}, or resample the data (stage 2, --fs)"
        )
    if mode == "train":
        source = _with_mixing(getattr(args, "mixing", None), pairs, chunk_length)
        lengths = source.lengths
    dataset = ChunkDataset(source, chunk_length, iter_options.preprocess_fn, dtype=args.train_dtype)
    task_cls.check_task_requirements(dataset, args.allow_variable_data_keys, train=iter_options.train)
    if mode == "train":
        dataset.augment = _checked_augmentation(getattr(args, "augmentation", None), source)
    rank, world_size = 0, 1
    if iter_options.distributed:
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    batch_size = iter_options.batch_size
    if mode == "train":
        make_batches = _training(args, iter_options, lengths, chunk_length, rank, world_size)
    else:
        make_batches = _validation(lengths, chunk_length, batch_size, rank, world_size)
    loaders = ChunkLoaders(
        dataset, make_batches, args.seed, rank, world_size, args.num_workers, pin_memory=args.ngpu > 0
    )
    hours = sum(pairs.lengths.values()) / source.sample_rate / 3600
    logger.info(
        f"{mode}: {len(lengths)} utterances, {hours:.2f} h at {source.sample_rate} Hz, {len(make_batches(1))} batches "
        f"of {batch_size} chunks of {chunk_length} samples an epoch, {world_size} process(es)"
    )
    return loaders


def _scp_files(sources: Sequence[Tuple[str, str, str]]) -> Dict[str, str]:
    """Table of files by name of the signal."""
    for path, name, kind in sources:
        if kind != "sound":
            raise UserError(f"{path},{name},{kind}: only the type 'sound' (audio files) is read in chunks")
    return {name: path for path, name, _ in sources}


def _checked_augmentation(options: Optional[Mapping[str, Any]], source: ChunkSource) -> Optional[Augmentation]:
    """Compare the options with the first mixture; log what will be drawn."""
    augmentation = Augmentation.from_options(options or {})
    if augmentation == Augmentation():
        return None
    channels = source.channels(MIXTURE)
    augmentation.check(channels)
    logger.info(f"augmentation of {channels} channel(s): {augmentation.describe(channels)}")
    return augmentation


def _with_mixing(section: Optional[Mapping[str, Any]], pairs: ParallelFiles, chunk_length: int) -> ChunkSource:
    """The source of the training's chunks: the files, or mixtures that are made of them."""
    if not section:
        return pairs
    source = MixedSource(pairs, MixingOptions.from_section(section), chunk_length)
    logger.info("mixing: %s", source.describe())
    return source


def _single_chunk_length(value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"--chunk_length {value}: give one number of samples") from None


def _training(
    args: argparse.Namespace,
    iter_options: Any,
    lengths: Mapping[str, int],
    chunk_length: int,
    rank: int,
    world_size: int,
) -> Callable[[int], List[Batch]]:
    hop = round(chunk_length * args.chunk_shift_ratio)
    batch_size = iter_options.batch_size
    per_utterance = getattr(args, "chunks_per_utterance", 0)
    if per_utterance < 0:
        raise UserError(f"--chunks_per_utterance must be 0 or more, not {per_utterance}")
    steps = training_steps(lengths, chunk_length, hop, batch_size, per_utterance)
    if iter_options.num_iters_per_epoch is not None:
        steps = iter_options.num_iters_per_epoch
    # Gradients of a half-filled accumulation would be lost at the end of the epoch.
    steps = steps // args.accum_grad * args.accum_grad
    if steps == 0:
        raise UserError(f"an epoch has fewer batches than --accum_grad {args.accum_grad}: lower it or --batch_size")

    def make_batches(epoch: int) -> List[Batch]:
        return training_batches(
            lengths, chunk_length, hop, batch_size, args.seed, epoch, rank, world_size, per_utterance, steps
        )

    make_batches(1)  # reports bad options now
    return make_batches


def _validation(
    lengths: Mapping[str, int], chunk_length: int, batch_size: int, rank: int, world_size: int
) -> Callable[[int], List[Batch]]:
    batches = validation_batches(lengths, chunk_length, batch_size, rank, world_size)
    return lambda epoch: batches
