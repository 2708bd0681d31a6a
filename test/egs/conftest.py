"""Fixtures shared by the tests of recipes."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Callable

import pytest


@pytest.fixture(scope="session")
def data_script(repository: Path) -> Callable[[str], ModuleType]:
    """Load ``local/data.py`` of a recipe as a module."""

    def load(recipe: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(
            f"{recipe}_data", repository / "egs" / recipe / "local" / "data.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
