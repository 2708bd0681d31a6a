"""Fixtures of the tests that read and write audio."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def protected_folder():
    """A folder that nobody may write to; its parent may be written to. Root becomes somebody else meanwhile."""
    root, folder = os.geteuid() == 0, Path(tempfile.mkdtemp()) / "protected"
    folder.mkdir()
    folder.chmod(0o555)
    folder.parent.chmod(0o777)
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder.parent)
