"""Fixtures shared by all tests."""

import os
import sys
import warnings
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    """Folder of test material that is not part of the repository; the test is skipped, with a warning, without it."""
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / default)
    if not folder.is_dir():
        reason = f"{folder} does not exist; set {variable} to the folder with the test material"
        warnings.warn(f"tests SKIPPED: {reason}", stacklevel=2)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def audio_dir() -> Path:
    """Real recordings (``I2SRF_AUDIO_DIR``)."""
    return _folder("I2SRF_AUDIO_DIR", "audio")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference vectors (``I2SRF_GOLDEN_DIR``)."""
    return _folder("I2SRF_GOLDEN_DIR", "golden")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Small tensors are faster on one thread, and machines with few cores stay usable; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)
