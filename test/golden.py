"""Reading the golden vectors: ``<set>_<part>.npz``, where only the part after the first underscore is fixed."""

import os
from pathlib import Path
from typing import Dict, List

import numpy as np
import torch

GOLDEN_DIR = Path(os.environ.get("I2SRF_GOLDEN_DIR", Path(__file__).parents[1].parent / "shared" / "golden"))


def golden_files(part: str) -> List[Path]:
    """All files whose name after the first underscore starts with ``part``."""
    if not GOLDEN_DIR.is_dir():
        return []
    return sorted(p for p in GOLDEN_DIR.glob("*.npz") if p.stem.partition("_")[2].startswith(part))


def load(path: Path) -> Dict[str, torch.Tensor]:
    """All arrays of a file as tensors."""
    with np.load(path) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference relative to the largest magnitude expected."""
    assert value.shape == expected.shape, (tuple(value.shape), tuple(expected.shape))
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((value - expected).abs().max() / scale)
