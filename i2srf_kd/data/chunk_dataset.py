"""Chunks of mixture and reference as a data set: read piece by piece, changed at random by their own seed, stacked.

The seam for other sources of audio is :class:`ChunkSource`: what turns a :class:`SeededChunk` into signals, as a pure
function of it, can be trained on; a run then resumes, and shares its batches between processes, as with files.
"""

import logging
import random
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import Dataset

from i2srf_kd.audio.io import AudioInfo, audio_source, probe
from i2srf_kd.data.augmentation import Augmentation
from i2srf_kd.data.chunks import Chunk
from i2srf_kd.data.kaldi_dir import describe, read_audio_table, read_table
from i2srf_kd.system.errors import UserError

logger = logging.getLogger(__name__)

NUM_SAMPLES = "num_samples"  # in a batch: samples of each chunk before padding

Signals = Dict[str, np.ndarray]  # by name (speech_mix, speech_ref1): (samples,) or (samples, channels)
Preprocess = Callable[[str, Signals], Signals]
Example = Tuple[str, int, Signals]  # utterance, samples before padding, padded signals


class SeededChunk(NamedTuple):
    """A chunk and the seed of what happens to it at random: seed of the training, epoch, place in the epoch."""

    chunk: Chunk
    seed: Tuple[int, ...]


class ChunkSource(Protocol):
    """Where the signals of chunks come from.

    Attributes:
        lengths: samples of each utterance.
        sample_rate: in Hz.
    """

    lengths: Mapping[str, int]
    sample_rate: int

    def names(self) -> Tuple[str, ...]:
        """Names of the signals."""
        ...

    def channels(self, name: str) -> int:
        """Channels of a signal."""
        ...

    def read(self, item: SeededChunk) -> Signals:
        """The signals of a chunk without padding: a pure function of the chunk and its seed."""
        ...


def read_lengths(shape_files: Sequence[str]) -> Dict[str, int]:
    """Samples per utterance from ESPnet's shape files (``<utterance> <samples>[,<channels>]``).

    Raises:
        UserError: a file is absent or malformed, or two files disagree about an utterance.
    """
    if not shape_files:
        raise UserError("give the lengths of the utterances: --train_shape_file and --valid_shape_file (stage 3)")
    tables = [_read_shapes(path) for path in shape_files]
    for path, table in zip(shape_files[1:], tables[1:], strict=True):
        if table != tables[0]:
            odd = sorted(u for u in {**table, **tables[0]} if table.get(u) != tables[0].get(u))
            raise UserError(f"{path} and {shape_files[0]} disagree about {describe(odd)}; make them anew (stage 3)")
    return tables[0]


def _read_shapes(path: str) -> Dict[str, int]:
    lengths = {}
    for utt_id, shape in read_table(path, ordered=False).items():
        try:
            lengths[utt_id] = int(shape.split(",")[0])
        except ValueError:
            raise UserError(
                f"{path}: {shape!r} is no length of {utt_id}; make the shape files anew (stage 3)"
            ) from None
    return lengths


class ParallelFiles:
    """Reads stretches of parallel audio files (mixture, references).

    Args:
        scp_files: table of audio files by name of the signal.
        lengths: samples per utterance; the utterances to be used.

    Raises:
        UserError: an utterance has no file, or the first file cannot be read.
    """

    def __init__(self, scp_files: Mapping[str, str], lengths: Mapping[str, int]):
        self.lengths = lengths
        self.files = {name: read_audio_table(path, ordered=False) for name, path in scp_files.items()}
        for name, path in scp_files.items():
            missing = [utt_id for utt_id in lengths if utt_id not in self.files[name]]
            if missing:
                raise UserError(f"{path} lacks {describe(missing)}, which the shape file lists; redo stage 2 or 3")
            unused = len(self.files[name]) - len(lengths)
            if unused:
                logger.warning("%d utterance(s) of %s are not in the shape file and are not used", unused, path)
        if not (self.files and lengths):
            raise UserError("no data: give --train_data_path_and_name_and_type and a shape file that is not empty")
        self.sample_rate = self._probe_first(next(iter(self.files))).fs

    def _probe_first(self, name: str) -> AudioInfo:
        utt_id = next(iter(self.lengths))
        try:
            return probe(self.files[name][utt_id])
        except UserError as error:
            raise UserError(f"utterance {utt_id}: {error}") from None

    def names(self) -> Tuple[str, ...]:
        """Names of the signals."""
        return tuple(self.files)

    def channels(self, name: str) -> int:
        """Channels of a signal's first file."""
        return self._probe_first(name).channels

    def read(self, item: SeededChunk) -> Signals:
        """The samples of a chunk in each file; nothing here is random.

        Raises:
            UserError: names the file that cannot be read, is shorter than its length, or has another rate.
        """
        return {name: self._read_one(files[item.chunk.utt_id], item.chunk) for name, files in self.files.items()}

    def _read_one(self, path: str, chunk: Chunk) -> np.ndarray:
        try:
            audio, rate = soundfile.read(audio_source(path), frames=chunk.length, start=chunk.start, dtype="float32")
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


class ChunkDataset(Dataset):
    """Chunks of a source, changed at random where asked for, padded to one length.

    Args:
        source: of the signals.
        chunk_length: samples; shorter chunks are zero-padded at the end. ``None``: no padding.
        preprocess: optional ``(utterance, signals) -> signals`` applied before padding, with Python's, numpy's and
            torch's generators seeded per chunk; it must keep the number of samples.
        augment: optional random changes, applied after ``preprocess``.
        dtype: of the signals.
    """

    def __init__(
        self,
        source: ChunkSource,
        chunk_length: Optional[int],
        preprocess: Optional[Preprocess] = None,
        augment: Optional[Augmentation] = None,
        dtype: str = "float32",
    ):
        self.source = source
        self.chunk_length = chunk_length
        self.preprocess = preprocess
        self.augment = augment
        self.dtype = dtype

    def names(self) -> Tuple[str, ...]:
        """Names of the signals (ESPnet's dataset interface)."""
        return self.source.names()

    def has_name(self, name: str) -> bool:
        """Whether there is a signal of that name (ESPnet's dataset interface)."""
        return name in self.names()

    def __len__(self) -> int:
        return len(self.source.lengths)

    def __getitem__(self, item: SeededChunk) -> Example:
        chunk, seed = item
        signals = self.source.read(item)
        if self.preprocess is not None:
            with seeded(seed):
                signals = self.preprocess(chunk.utt_id, signals)
        if self.augment is not None:
            signals = self.augment(signals, seed)
        for name, signal in signals.items():
            if len(signal) != chunk.length:
                raise UserError(
                    f"utterance {chunk.utt_id}: preprocessing changed the length of {name} from {chunk.length} to "
                    f"{len(signal)} samples; such a preprocessor cannot be used with chunks"
                )
        return chunk.utt_id, chunk.length, {name: self._pad(signal) for name, signal in signals.items()}

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


def collate(items: Sequence[Example]) -> Tuple[List[str], Dict[str, Tensor]]:
    """Stack chunks: ``name`` ``(B, S)`` or ``(B, S, C)``, ``name_lengths`` ``(B,)``, ``num_samples`` ``(B,)``.

    The lengths count the padding. ESPnet cuts a batch to its longest item and would otherwise let the loss of a short
    utterance depend on its companions. ``num_samples`` are those before padding.
    """
    utt_ids, samples, signals = zip(*items, strict=True)
    batch = {NUM_SAMPLES: torch.tensor(samples, dtype=torch.long)}
    for name in signals[0]:
        shapes = {signal[name].shape[1:] for signal in signals}
        if len(shapes) > 1:
            raise UserError(f"{name} has different channel counts in {describe(sorted(set(utt_ids)), 8)}: {shapes}")
        batch[name] = torch.from_numpy(np.stack([signal[name] for signal in signals]))
        batch[f"{name}_lengths"] = torch.tensor([len(signal[name]) for signal in signals], dtype=torch.long)
    return list(utt_ids), batch
