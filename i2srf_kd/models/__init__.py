"""Trained models that come with the package: each is an exported folder whose card says what it was trained on."""

from pathlib import Path
from typing import List

from i2srf_kd.system.files import PathLike

DEFAULT = "dpdcrn_tiny"
_FOLDER = Path(__file__).parent


def names() -> List[str]:
    """Of all models, the default first."""
    found = sorted(path.parent.name for path in _FOLDER.glob("*/config.yaml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def folder_of(model: PathLike) -> Path:
    """The folder of a model that comes with the package, by its name; anything else, and what exists, as it is."""
    path = Path(model)
    return _FOLDER / path if str(model) in names() and not path.exists() else path
