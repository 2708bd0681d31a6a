"""Batches of an epoch from a data set of chunks, read by any number of processes."""

import atexit
import multiprocessing
import os
import shutil
import signal
from typing import Any, Callable, Iterator, List, Optional, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from i2srf_kd.data.chunk_dataset import ChunkDataset, SeededChunk, collate
from i2srf_kd.data.chunks import Batch
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.processes import end_with_parent


class ChunkLoaders:
    """Makes the loader of an epoch; see :mod:`i2srf_kd.data.chunks` for which chunks its batches hold.

    Args:
        dataset: reads the chunks.
        make_batches: ``epoch -> batches`` of this rank.
        seed: of the preprocessing, with the epoch and the place of the chunk in the epoch's global batches.
        rank, world_size: of this process.
        num_workers: reading processes; the batches do not depend on it.
        pin_memory: for copies to a GPU.
    """

    def __init__(
        self,
        dataset: ChunkDataset,
        make_batches: Callable[[int], List[Batch]],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self.make_batches = make_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    def build_iter(self, epoch: int, shuffle: Optional[bool] = None, start_batch: int = 0) -> DataLoader:
        """Batches ``(utterances, signals)`` of an epoch.

        Args:
            epoch: 1-based.
            shuffle: not used; the order belongs to the epoch.
            start_batch: batches to leave out at the start, which are not read.
        """
        place, batches = 0, []
        for batch in self.make_batches(epoch):
            first = place + self.rank * len(batch)
            batches.append([SeededChunk(chunk, (self.seed, epoch, first + i)) for i, chunk in enumerate(batch)])
            place += len(batch) * self.world_size
        return ChunkLoader(
            _ErrorsAsItems(self.dataset),
            batch_sampler=batches[start_batch:],
            num_workers=self.num_workers,
            collate_fn=_collate_or_error,
            pin_memory=self.pin_memory,
            worker_init_fn=start_worker,
            # The loader's own draw must not move the global generator, or a resumed run would leave the track.
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )


class ChunkLoader(DataLoader):
    """A loader that raises a data error as it was, with any number of workers."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _ErrorsAsItems(Dataset):
    """Hands over a :class:`UserError` as an item; a worker would bury its message in tracebacks."""

    def __init__(self, dataset: ChunkDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: SeededChunk) -> Any:
        try:
            return self.dataset[item]
        except UserError as error:
            return error


def _collate_or_error(items: Sequence[Any]) -> Any:
    for item in items:
        if isinstance(item, UserError):
            return item
    try:
        batch = collate(items)
        if get_worker_info() is not None:
            _share(batch)
        return batch
    except UserError as error:
        return error


def _share(batch: Any) -> None:
    """Move a worker's batch to shared memory, where the trainer gets it.

    Python would do so in a thread, which has nobody to tell of an error: the trainer would wait for ever.

    Raises:
        UserError: shared memory is used up.
    """
    _, signals = batch
    try:
        for values in signals.values():
            values.share_memory_()
    except (RuntimeError, OSError) as error:
        left = (
            f", /dev/shm has {shutil.disk_usage('/dev/shm').free / 1e6:.2f} MB left"
            if os.path.isdir("/dev/shm")
            else ""
        )
        raise UserError(
            f"a data reader cannot hand over its batch ({error}{left}): set --num_workers 0, "
            "or give more shared memory (Docker: --shm-size)"
        ) from None


def start_worker(worker: int) -> None:
    """Let a worker live through the first SIGTERM, and end without a word with its trainer.

    A scheduler signals every process of a job, and the trainer still needs its batch to finish the step and save. When
    the trainer is killed, a worker would fail to hand over its batch and fill the log with a traceback.
    """

    def wait_for_trainer(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)

    trainer = multiprocessing.parent_process()
    end_with_trainer = end_with_parent(signal.SIGKILL, trainer.pid if trainer else None)
    if end_with_trainer is not None:
        end_with_trainer()
    signal.signal(signal.SIGTERM, wait_for_trainer)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill the workers of a trainer that ends by an error.

    Python would send each one SIGTERM and wait; by :func:`start_worker` that one signal does not end them. Exit
    functions run in reverse order of their registration, so this one comes before Python's own.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
