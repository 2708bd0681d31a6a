"""Fixtures shared by all tests."""

import os
import sys
import warnings
from pathlib import Path
from typing import List

import pytest
from hypothesis import settings
from places import REPOSITORY

# The same examples and numbers in every run, however slow the machine; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Long tests get longer than the others before they count as stuck: machines may be busy."""
    for item in items:
        long = item.get_closest_marker("slow") or item.get_closest_marker("cluster")
        if long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="session")
def audio_dir() -> Path:
    """Real recordings, which are not part of the repository (``I2SRF_AUDIO_DIR``); tests are skipped without them."""
    folder = Path(os.environ.get("I2SRF_AUDIO_DIR") or REPOSITORY.parent / "shared" / "audio")
    if not folder.is_dir():
        reason = f"no recordings in {folder}; set I2SRF_AUDIO_DIR to the folder with them"
        warnings.warn(f"tests SKIPPED: {reason}", stacklevel=2)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _one_seeded_torch_thread() -> None:
    """Small tensors are faster on one thread, and machines with few cores stay usable; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)
        torch.manual_seed(0)
