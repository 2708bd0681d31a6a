"""Has it changed since? Fingerprints of files and texts, to notice another content behind the same name."""

import hashlib
import os
from pathlib import Path
from typing import Iterable, Union

from i2srf_kd.system.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]

_LENGTH = 16  # hexadecimal digits: enough to tell versions of one thing apart
_BLOCK = 1 << 20


def sha256_of(path: PathLike) -> str:
    """SHA-256 of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def fingerprint(paths: Iterable[PathLike]) -> str:
    """One fingerprint of the contents of several files, whatever they are called.

    Raises:
        UserError: one of them cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()[:_LENGTH]


def fingerprint_of_existing(paths: Iterable[PathLike]) -> str:
    """:func:`fingerprint` of those files that exist; empty when none does."""
    existing = [path for path in paths if Path(path).is_file()]
    return fingerprint(existing) if existing else ""


def fingerprint_of_text(text: str) -> str:
    """Fingerprint of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]
