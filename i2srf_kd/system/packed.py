"""Models in the form of ``espnet2.bin.pack``: a zip, or the folder that one was unpacked to, with ``meta.yaml``.

It names a configuration and weights inside. They are read where they are: nothing of a zip is written anywhere.
"""

import io
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Union

import yaml

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

META = "meta.yaml"
CONFIG_KEY, WEIGHTS_KEY = "train_config", "model_file"
_SECTIONS = {CONFIG_KEY: "yaml_files", WEIGHTS_KEY: "files"}
_HIGHEST_RATIO = 100  # bytes of a member for each byte of the zip: weights and configurations stay far below
_SMALL = 1 << 24

Inside = Union[Path, zipfile.Path]


def is_packed(path: PathLike) -> bool:
    """Whether this is a zip, by its name, or a folder with ``meta.yaml``."""
    path = Path(path)
    return path.is_file() if path.suffix == ".zip" else (path / META).is_file()


def inside(path: PathLike, key: str) -> Inside:
    """The file that ``meta.yaml`` names; any other path, which is no packed model, is that of the file itself.

    Args:
        path: a packed model or a file.
        key: :data:`CONFIG_KEY` or :data:`WEIGHTS_KEY`.

    Raises:
        UserError: it is damaged, or no packed enhancement model.
    """
    path = Path(path)
    if not is_packed(path):
        return path
    try:
        root: Inside = zipfile.Path(path) if path.is_file() else path
        names = _named(yaml.safe_load(_content(root / META)), key)
    except (zipfile.BadZipFile, OSError, KeyError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{path} is no model packed by ESPnet, or damaged ({error}); get it anew") from None
    if len(names) != 1:
        raise UserError(f"{path} is no packed enhancement model: its {META} names no {key}")
    if Path(names[0]).is_absolute() or ".." in Path(names[0]).parts:
        raise UserError(f"{path}: its {META} points outside, to {names[0]}; do not trust this file")
    file = root / names[0]
    if not file.is_file():
        raise UserError(f"{path} is incomplete: {names[0]} is missing; get it anew")
    return file


def _named(meta: Any, key: str) -> Any:
    """Names of the files of a kind; models of older releases have enh_train_config and enh_model_file."""
    return [str(name) for found, name in meta.get(_SECTIONS[key], {}).items() if found in (key, f"enh_{key}")]


def _content(file: Inside) -> bytes:
    """A file's content; a zip's member that grows beyond all measure is refused before it is unpacked.

    Raises:
        UserError: the member is such a one, or damaged.
    """
    if isinstance(file, zipfile.Path):
        info = file.root.getinfo(file.at)
        if info.file_size > max(_SMALL, _HIGHEST_RATIO * info.compress_size):
            raise UserError(f"{file}: {info.compress_size} bytes would become {info.file_size}; do not trust this file")
    return file.read_bytes()


def open_file(path: PathLike, key: str) -> BinaryIO:
    """Open :func:`inside` for reading.

    Raises:
        OSError: a file cannot be read.
        UserError: a packed model is damaged.
    """
    file = inside(path, key)
    if isinstance(file, Path):
        return file.open("rb")
    try:
        return io.BytesIO(_content(file))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); get it anew") from None
