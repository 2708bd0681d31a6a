"""The plain references of ``test/reference``, which a checkout has and an installation has not."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Optional

import i2srf_kd

FOLDER = Path(i2srf_kd.__file__).resolve().parents[1] / "test" / "reference"
MISSING = "Ratios to the plain reference are left out: they need test/reference of a checkout."


def load_reference(name: str) -> Optional[ModuleType]:
    """A module of ``test/reference``, or None outside a checkout."""
    path = FOLDER / f"{name}.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"i2srf_kd_reference_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
