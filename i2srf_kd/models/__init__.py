"""Trained models that come with the package: each is an exported folder whose card says what it was trained on."""

from pathlib import Path
from typing import List

from i2srf_kd.system.files import PathLike

DEFAULT = "dpdcrn_tiny"
HUB = "hf://"
"""What the name of a model on the hub begins with."""
_FOLDER = Path(__file__).parent


def names() -> List[str]:
    """Of all models, the default first."""
    found = sorted(path.parent.name for path in _FOLDER.glob("*/config.yaml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def folder_of(model: PathLike) -> Path:
    """The folder of a model that comes with the package, by its name, or of one on the hub (``hf://owner/name``).

    Anything else, and what exists, is returned as it is.

    Raises:
        UserError: a model of the hub cannot be downloaded.
    """
    if str(model).startswith(HUB):
        from i2srf_kd.models.hub import download

        return download(str(model))
    path = Path(model)
    return _FOLDER / path if str(model) in names() and not path.exists() else path
