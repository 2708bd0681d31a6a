"""How a command ends, and what it says of a disk that cannot be written to."""

import errno
import os
import weakref
from pathlib import Path

import pytest

from i2srf_kd.system import errors
from i2srf_kd.system.errors import FULL, DiskFull, UserError, disk_full, writing


class Held:
    """Stands for an open file that was removed: it takes space until the last one lets go of it."""


def test_what_an_error_keeps_open_is_closed_before_the_message(monkeypatch) -> None:
    held = []

    def command(_) -> int:
        file = Held()
        held.append(weakref.ref(file))
        try:
            raise RuntimeError("the disk is full")
        except RuntimeError:
            raise UserError("free space") from None

    monkeypatch.setattr(errors, "_leave", lambda message, code: held.append((message, code, held[0]() is None)))
    with pytest.raises(SystemExit):
        errors.run_command(command)
    assert held[1] == ("error: free space", 2, True)


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_named_with_what_is_left_and_needed(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskFull, match=f"cannot write {tmp_path}: .* \\({tmp_path} has .* MB left, 2.00 MB are needed"):
        with writing(tmp_path, 2_000_000):
            raise OSError(number, os.strerror(number))
    assert f"({tmp_path} has" in str(disk_full(tmp_path / "not yet" / "x"))


def test_a_folder_that_may_not_be_written_to_is_named_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write .*: Read-only file system; mend that"):
        with writing(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(FileNotFoundError):
        with writing(tmp_path):
            raise FileNotFoundError(errno.ENOENT, "nothing there")
