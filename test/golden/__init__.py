"""The golden vectors: inputs, parameters and what the published code makes of them.

A small set lies in this folder and is checked everywhere; ``make.py`` made it from the large one, which lies outside of
the repository (``I2SRF_GOLDEN_DIR``). Files are called ``<set>_<part>.npz``.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Dict, List, Mapping

import numpy as np
import torch

SMALL_DIR = Path(__file__).resolve().parent
LARGE_DIR = Path(os.environ.get("I2SRF_GOLDEN_DIR") or SMALL_DIR.parents[2] / "shared" / "golden")
Golden = Dict[str, torch.Tensor]


def golden_files(part: str) -> List[Path]:
    """All files whose name after the first underscore starts with ``part``."""
    if not any(LARGE_DIR.glob("*.npz")):
        message = f"tests SKIPPED: no large golden sets in {LARGE_DIR}; set I2SRF_GOLDEN_DIR to the folder with them"
        warnings.warn(message, stacklevel=2)
    files = [*SMALL_DIR.glob("*.npz"), *LARGE_DIR.glob("*.npz")]
    return sorted(path for path in files if path.stem.partition("_")[2].startswith(part))


def load(path: Path) -> Golden:
    """All arrays of a file as tensors."""
    with np.load(path) as arrays:
        golden = {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}
    if set(golden) != {"index", "values"}:
        return golden
    shapes = json.loads(bytes(golden["index"].tolist()))
    values = golden["values"].split([int(np.prod(shape)) for shape in shapes.values()])
    return {key: value.reshape(shape) for (key, shape), value in zip(shapes.items(), values, strict=True)}


def save(path: Path, golden: Mapping[str, torch.Tensor]) -> None:
    """Write all arrays, of one type, as one: the names of a thousand small arrays take more room than their values."""
    index = json.dumps({key: list(value.shape) for key, value in golden.items()}).encode()
    values = torch.cat([value.detach().flatten() for value in golden.values()])
    np.savez_compressed(path, index=np.frombuffer(index, dtype=np.uint8), values=values.numpy())


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference relative to the largest magnitude expected."""
    assert value.shape == expected.shape, (tuple(value.shape), tuple(expected.shape))
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((value - expected).abs().max() / scale)


def check(actual: Mapping[str, torch.Tensor], golden: Golden, tolerance: float) -> None:
    """Compare by name; all of ``actual`` must be within ``tolerance``."""
    errors = {key: relative_error(value.detach(), golden[key].to(value.dtype)) for key, value in actual.items()}
    bad = {key: error for key, error in errors.items() if not error <= tolerance}
    assert errors and not bad, bad
