"""Mini-batches of fixed-length chunks, read piece by piece from the audio files.

A task that sets ``--iterator_type task`` returns :func:`build_chunk_iter_factory` from its
``build_task_iter_factory``. Options used: ``--chunk_length`` (samples), ``--chunk_shift_ratio``, ``--batch_size`` (of
all processes together), ``--num_iters_per_epoch``, ``--num_workers``, ``--chunks_per_utterance``, ``--augmentation``.
"""

import argparse
import atexit
import logging
import multiprocessing
import random
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import soundfile
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.train.dataset import AbsDataset
from espnet2.utils.nested_dict_action import NestedDictAction
from torch.utils.data import DataLoader, Dataset

from i2srf_kd.audio.io import audio_source
from i2srf_kd.data.augmentation import MIXTURE, Augmentation
from i2srf_kd.data.chunks import Batch, Chunk, training_batches, training_steps, validation_batches
from i2srf_kd.system.errors import UserError

Preprocess = Callable[[str, Dict[str, np.ndarray]], Dict[str, np.ndarray]]
DataSource = Tuple[str, str, str]  # path of the scp file, name in the batch, type
NUM_SAMPLES = "num_samples"  # in a batch: samples of each chunk before padding


class SeededChunk(NamedTuple):
    """A chunk and the seed of what happens to it at random."""

    chunk: Chunk
    seed: Tuple[int, ...]


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


def read_scp(path: str) -> Dict[str, str]:
    """Read ``<utterance> <file>`` lines.

    Raises:
        UserError: the file is absent, or a line has no file, names an utterance again or is a pipe.
    """
    entries: Dict[str, str] = {}
    for number, fields in _read_table(path):
        utt_id, value = fields
        if value.endswith("|"):
            raise UserError(f"{path}:{number}: utterance {utt_id} is a pipe; write audio files first (stage 2)")
        if utt_id in entries:
            raise UserError(f"{path}:{number}: utterance {utt_id} is listed twice")
        entries[utt_id] = value
    return entries


def read_lengths(shape_files: Sequence[str]) -> Dict[str, int]:
    """Samples per utterance from ESPnet's shape files (``<utterance> <samples>[,<channels>]``).

    Raises:
        UserError: a file is absent or malformed, or two files disagree about an utterance.
    """
    if not shape_files:
        raise UserError("give the lengths of the utterances: --train_shape_file and --valid_shape_file (stage 3)")
    lengths: Dict[str, int] = {}
    for file_number, path in enumerate(shape_files):
        current: Dict[str, int] = {}
        for number, (utt_id, shape) in _read_table(path):
            try:
                current[utt_id] = int(shape.split(",")[0])
            except ValueError:
                raise UserError(
                    f"{path}:{number}: {shape!r} is no length; make the shape files anew (stage 3)"
                ) from None
        if file_number and current != lengths:
            odd = sorted(u for u in {**current, **lengths} if current.get(u) != lengths.get(u))
            raise UserError(f"{path} and {shape_files[0]} disagree about {_some(odd)}; make them anew (stage 3)")
        lengths = current
    return lengths


def _read_table(path: str) -> Iterator[Tuple[int, Tuple[str, str]]]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        fields = line.split(maxsplit=1)
        if len(fields) == 2:
            yield number, (fields[0], fields[1].strip())
        elif fields:
            raise UserError(f"{path}:{number}: expected two columns, found {line!r}")


def _some(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class ChunkDataset(AbsDataset):
    """Reads chunks of parallel audio files (mixture, references).

    Args:
        sources: ``(scp file, name, "sound")`` per signal.
        lengths: samples per utterance; the utterances to be used.
        chunk_length: samples; shorter chunks are zero-padded at the end. ``None``: no padding.
        preprocess: optional ``(utterance, signals) -> signals`` applied before padding, with Python's, numpy's and
            torch's generators seeded per chunk; it must keep the number of samples.
        dtype: of the signals.
        augment: optional ``(signals, seed) -> signals`` applied after ``preprocess``.

    Raises:
        UserError: a type other than ``sound``, an utterance without file, or an unreadable file.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        lengths: Mapping[str, int],
        chunk_length: Optional[int],
        preprocess: Optional[Preprocess] = None,
        dtype: str = "float32",
        augment: Optional[Augmentation] = None,
    ):
        self.lengths = lengths
        self.chunk_length = chunk_length
        self.preprocess = preprocess
        self.dtype = dtype
        self.augment = augment
        self.files: Dict[str, Dict[str, str]] = {}
        for path, name, kind in sources:
            if kind != "sound":
                raise UserError(f"{path},{name},{kind}: only the type 'sound' (audio files) is read in chunks")
            self.files[name] = read_scp(path)
            missing = [utt_id for utt_id in lengths if utt_id not in self.files[name]]
            if missing:
                raise UserError(f"{path} lacks {_some(missing)}, which the shape file lists; redo stage 2 or 3")
            unused = len(self.files[name]) - len(lengths)
            if unused:
                logging.warning(f"{unused} utterance(s) of {path} are not in the shape file and are not used")
        self.sample_rate = self._first_rate()

    def _first_rate(self) -> int:
        for files in self.files.values():
            for utt_id in self.lengths:
                try:
                    return int(soundfile.info(audio_source(files[utt_id])).samplerate)
                except UserError as error:  # an archive that cannot be read
                    raise UserError(f"utterance {utt_id}: {error}") from None
                except soundfile.SoundFileError as error:
                    raise UserError(f"utterance {utt_id}: cannot read {files[utt_id]}: {error}") from None
        raise UserError("no data: give --train_data_path_and_name_and_type and a shape file that is not empty")

    def names(self) -> Tuple[str, ...]:
        """Names of the signals (ESPnet's dataset interface)."""
        return tuple(self.files)

    def has_name(self, name: str) -> bool:
        """Whether there is a signal of that name (ESPnet's dataset interface)."""
        return name in self.files

    def read(self, chunk: Chunk) -> Dict[str, np.ndarray]:
        """Read one chunk of every signal: ``(samples,)`` or ``(samples, channels)``, without padding."""
        return {name: self._read_one(files[chunk.utt_id], chunk) for name, files in self.files.items()}

    def _read_one(self, path: str, chunk: Chunk) -> np.ndarray:
        try:
            audio, rate = soundfile.read(audio_source(path), frames=chunk.length, start=chunk.start, dtype=self.dtype)
        except UserError as error:  # an archive that cannot be read
            raise UserError(f"utterance {chunk.utt_id}: {error}") from None
        except (soundfile.SoundFileError, ValueError, RuntimeError) as error:
            raise UserError(f"utterance {chunk.utt_id}: cannot read {path}: {error}") from None
        if len(audio) != chunk.length:
            raise UserError(
                f"utterance {chunk.utt_id}: {path} ends at sample {chunk.start + len(audio)}, but the shape file says "
                f"{self.lengths[chunk.utt_id]}; redo the statistics (stage 3)"
            )
        if rate != self.sample_rate:
            raise UserError(
                f"utterance {chunk.utt_id}: {path} has {rate} Hz, the other files {self.sample_rate} Hz; "
                "resample the data (stage 2, --fs)"
            )
        return audio

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: SeededChunk) -> Tuple[str, int, Dict[str, np.ndarray]]:
        """Return utterance, samples before padding, and the padded signals of a chunk."""
        chunk, seed = item
        signals = self.read(chunk)
        if self.preprocess is not None:
            with seeded(seed):
                signals = self.preprocess(chunk.utt_id, signals)
        if self.augment is not None:
            signals = self.augment(signals, seed)
        for name, signal_ in signals.items():
            if len(signal_) != chunk.length:
                raise UserError(
                    f"utterance {chunk.utt_id}: preprocessing changed the length of {name} from {chunk.length} to "
                    f"{len(signal_)} samples; such a preprocessor cannot be used with chunks"
                )
        return chunk.utt_id, chunk.length, {name: self._pad(signal_) for name, signal_ in signals.items()}

    def _pad(self, audio: np.ndarray) -> np.ndarray:
        missing = (self.chunk_length or 0) - len(audio)
        audio = audio.astype(self.dtype, copy=False)
        return np.pad(audio, [(0, missing)] + [(0, 0)] * (audio.ndim - 1)) if missing > 0 else audio


@contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed Python's, numpy's and torch's CPU generators, and give them back as they were."""
    words = np.random.SeedSequence(list(seed)).generate_state(2)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(words[0]))
        np.random.seed(words[0])
        torch.default_generator.manual_seed(int(words[1]))
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def collate(items: Sequence[Tuple[str, int, Dict[str, np.ndarray]]]) -> Tuple[List[str], Dict[str, torch.Tensor]]:
    """Stack chunks: ``name`` ``(B, S)`` or ``(B, S, C)``, ``name_lengths`` ``(B,)``, ``num_samples`` ``(B,)``.

    The lengths count the padding. ESPnet cuts a batch to its longest item and would otherwise let the loss of a short
    utterance depend on its companions. ``num_samples`` are those before padding.
    """
    utt_ids, samples, signals = zip(*items, strict=True)
    batch = {NUM_SAMPLES: torch.tensor(samples, dtype=torch.long)}
    for name in signals[0]:
        shapes = {signal_[name].shape[1:] for signal_ in signals}
        if len(shapes) > 1:
            raise UserError(f"{name} has different channel counts in {_some(sorted(set(utt_ids)), 8)}: {shapes}")
        batch[name] = torch.from_numpy(np.stack([signal_[name] for signal_ in signals]))
        batch[f"{name}_lengths"] = torch.tensor([len(signal_[name]) for signal_ in signals], dtype=torch.long)
    return list(utt_ids), batch


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
        return collate(items)
    except UserError as error:
        return error


class ChunkLoader(DataLoader):
    """A loader that raises a data error as it was, with any number of workers."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _start_worker(worker: int) -> None:
    """Let a worker live through the first SIGTERM.

    A scheduler signals every process of a job, and the trainer still needs its batch to finish the step and save.
    """

    def wait_for_trainer(signum: int, frame: object) -> None:
        signal.signal(signum, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, wait_for_trainer)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill the workers of a trainer that ends by an error.

    Python would send each one SIGTERM and wait; by :func:`_start_worker` that one signal does not end them. Exit
    functions run in reverse order of their registration, so this one comes before Python's own.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class FixedChunkIterFactory(AbsIterFactory):
    """Makes the batches of an epoch; see :mod:`i2srf_kd.data.chunks` for which chunks they hold.

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

    @property
    def sample_rate(self) -> int:
        """Samples per second of the data."""
        return self.dataset.sample_rate

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
            worker_init_fn=_start_worker,
            # The loader's own draw must not move the global generator, or a resumed run would leave the track.
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )


def build_chunk_iter_factory(
    args: argparse.Namespace, iter_options: Any, mode: str, task_cls: Any
) -> FixedChunkIterFactory:
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
    lengths = read_lengths(iter_options.shape_files)
    dataset = ChunkDataset(
        iter_options.data_path_and_name_and_type,
        lengths,
        chunk_length,
        iter_options.preprocess_fn,
        args.train_dtype,
        augment=Augmentation.from_options(getattr(args, "augmentation", None) or {}) if mode == "train" else None,
    )
    if getattr(task_cls, "check_sample_rate", False) and args.sample_rate != dataset.sample_rate:
        raise UserError(
            f"the {mode} data have {dataset.sample_rate} Hz and --sample_rate is {args.sample_rate}: "
            f"set --sample_rate {dataset.sample_rate}, or resample the data (stage 2, --fs)"
        )
    task_cls.check_task_requirements(dataset, args.allow_variable_data_keys, train=iter_options.train)
    _check_augmentation(dataset)
    rank, world_size = 0, 1
    if iter_options.distributed:
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    batch_size = iter_options.batch_size
    if mode == "train":
        make_batches = _training(args, iter_options, lengths, chunk_length, rank, world_size)
    else:
        make_batches = _validation(lengths, chunk_length, batch_size, rank, world_size)
    factory = FixedChunkIterFactory(
        dataset, make_batches, args.seed, rank, world_size, args.num_workers, pin_memory=args.ngpu > 0
    )
    hours = sum(lengths.values()) / dataset.sample_rate / 3600
    logging.info(
        f"{mode}: {len(lengths)} utterances, {hours:.2f} h at {dataset.sample_rate} Hz, {len(make_batches(1))} batches "
        f"of {batch_size} chunks of {chunk_length} samples an epoch, {world_size} process(es)"
    )
    return factory


def _check_augmentation(dataset: ChunkDataset) -> None:
    """Compare the options with the first mixture; log what will be drawn."""
    if dataset.augment is None or dataset.augment == Augmentation():
        dataset.augment = None
        return
    channels = soundfile.info(audio_source(dataset.files[MIXTURE][next(iter(dataset.lengths))])).channels
    dataset.augment.check(channels)
    logging.info(f"augmentation of {channels} channel(s): {dataset.augment.describe(channels)}")


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
