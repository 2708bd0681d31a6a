"""Raw PCM on pipes: samples without a header, channels interleaved, little-endian."""

import os
from typing import Dict, Iterator

import numpy as np

from i2srf_kd.audio.io import as_samples
from i2srf_kd.system.errors import UserError

# Name of the format, as sox and ffmpeg users know it, to numpy's.
PCM_FORMATS: Dict[str, str] = {"s16le": "<i2", "f32le": "<f4"}


def read_pcm(descriptor: int, pcm_format: str, channels: int, block_samples: int) -> Iterator[np.ndarray]:
    """Read a pipe or file as samples come in.

    Args:
        descriptor: file descriptor to read from.
        pcm_format: a key of ``PCM_FORMATS``.
        channels: interleaved channels.
        block_samples: most samples per channel that a block may have; it has fewer where no more have come yet.

    Yields:
        float32 ``(samples, channels)`` with full scale 1, never empty.

    Raises:
        UserError: at the end, when it lies within a sample.
    """
    size = np.dtype(PCM_FORMATS[pcm_format]).itemsize * channels
    rest = b""
    while chunk := os.read(descriptor, block_samples * size - len(rest)):
        data = rest + chunk
        whole = len(data) // size * size
        rest = data[whole:]
        if whole:
            yield _decode(data[:whole], pcm_format).reshape(-1, channels)
    if rest:
        raise UserError(
            f"the input ends within a sample ({len(rest)} bytes left over, {size} for {channels} channels of "
            f"{pcm_format}): check --pcm_format and --channels; what came before has been enhanced"
        )


def write_pcm(descriptor: int, samples: np.ndarray, pcm_format: str) -> None:
    """Write ``(samples,)`` or ``(samples, channels)`` at once; integer formats clip what lies beyond full scale.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    subtype = "PCM_16" if pcm_format == "s16le" else "FLOAT"
    data = memoryview(as_samples(samples, subtype).astype(PCM_FORMATS[pcm_format]).tobytes())
    while data:
        data = data[os.write(descriptor, data) :]


def _decode(data: bytes, pcm_format: str) -> np.ndarray:
    values = np.frombuffer(data, PCM_FORMATS[pcm_format])
    return values.astype(np.float32) / (32768 if pcm_format == "s16le" else 1)
