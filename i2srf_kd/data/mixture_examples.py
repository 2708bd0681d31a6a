"""Mixtures that a training will make, written to be listened to."""

import itertools
from pathlib import Path
from typing import Any, Iterator, Mapping

from i2srf_kd.audio.io import write_audio
from i2srf_kd.data.augmentation import MIXTURE
from i2srf_kd.data.chunk_dataset import ParallelFiles, SeededChunk, read_lengths
from i2srf_kd.data.chunks import training_batches
from i2srf_kd.data.mixing import REFERENCE, MixedSource, MixingOptions
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text

TABLE = "mixtures.tsv"


def write_examples(config: Mapping[str, Any], data_dir: Path, folder: Path, count: int, seed: int, epoch: int) -> Path:
    """Write the first mixtures of an epoch and their references, and a table that says what each is made of.

    Args:
        config: of the training, with a section ``mixing``.
        data_dir: formatted training set (``wav.scp``, ``spk1.scp``, ``utt2num_samples``).
        folder: to write, absent or empty.
        count: mixtures.
        seed, epoch: of the training.

    Returns:
        The table.

    Raises:
        UserError: as :class:`MixedSource`; there is no section ``mixing``, or the folder holds something.
    """
    if not config.get("mixing"):
        raise UserError("the configuration has no section mixing (docs/training.md)")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name another folder, or remove it")
    lengths = read_lengths([str(data_dir / "utt2num_samples")])
    scp_files = {MIXTURE: str(data_dir / "wav.scp"), REFERENCE: str(data_dir / "spk1.scp")}
    options = MixingOptions.from_section(config["mixing"])
    source = MixedSource(ParallelFiles(scp_files, lengths), options, int(config["chunk_length"]))
    rows = ["name\tutterance\tspeech\tnoise\troom\tsnr_db\teffects"]
    for number, item in enumerate(itertools.islice(_chunks(config, source, seed, epoch), count), 1):
        example, name = source.make(item), f"{number:04d}"
        write_audio(folder / f"{name}_mixture.flac", example.mixture, source.sample_rate)
        write_audio(folder / f"{name}_reference.flac", example.reference, source.sample_rate)
        rows.append("\t".join(map(str, (name, item.chunk.utt_id, *example.made_of.values()))))
    write_text(folder / TABLE, "\n".join(rows) + "\n")
    return folder / TABLE


def _chunks(config: Mapping[str, Any], source: MixedSource, seed: int, epoch: int) -> Iterator[SeededChunk]:
    """The chunks of an epoch and of those after it, as one training process sees them."""
    hop = round(source.chunk_length * config.get("chunk_shift_ratio", 0.5))
    batch_size, per_utterance = config.get("batch_size", 20), config.get("chunks_per_utterance", 0)
    for number in itertools.count(epoch):
        batches = training_batches(
            source.lengths, source.chunk_length, hop, batch_size, seed, number,
            chunks_per_utterance=per_utterance, steps_per_epoch=config.get("num_iters_per_epoch"),
        )  # fmt: skip
        for place, chunk in enumerate(itertools.chain.from_iterable(batches)):
            yield SeededChunk(chunk, (seed, number, place))
