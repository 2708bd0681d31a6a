"""Waves, and folders of them, as many tests want them."""

from pathlib import Path
from typing import Iterator, Mapping, Sequence

import numpy as np
import soundfile


def noise(*shape: int, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """Normal noise of a shape, float32."""
    return np.random.default_rng(seed).normal(0, level, shape).astype(np.float32)


def blocks_of(wave: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Cut, with the sizes over and over again; sizes of 0 give empty blocks."""
    begin = i = 0
    while begin < len(wave):
        yield wave[begin : begin + sizes[i % len(sizes)]]
        begin += sizes[i % len(sizes)]
        i += 1


def write_table(folder: Path, name: str, waves: Mapping[str, np.ndarray], fs: int = 16000, kind: str = "wav") -> Path:
    """Files of 16 bit, one for each utterance, and their table ``<name>.scp``, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for utt, wave in waves.items():
        path = folder / f"{utt}.{name}.{kind}"
        soundfile.write(path, wave, fs, subtype="PCM_16")
        lines.append(f"{utt} {path}\n")
    (folder / f"{name}.scp").write_text("".join(lines))
    return folder / f"{name}.scp"
