"""How a command ends, and what it says of a disk that cannot be written to."""

import errno
import io
import os
import sys
import weakref
from pathlib import Path

import pytest

from i2srf_kd.system import errors
from i2srf_kd.system.errors import FULL, DiskFull, NotWritten, UserError, disk_full, writing
from i2srf_kd.system.files import write_text


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


def test_places_that_cannot_be_written_to_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for place, reason in (("folder", "Is a directory"), ("gone/x", "File exists"), ("loop/x", "File exists")):
        with pytest.raises(NotWritten, match=f"cannot write {tmp_path / place}: .*{reason}"):
            write_text(tmp_path / place, "x")
    write_text(tmp_path / ("u" * 250), "as long as a name may be")
    with pytest.raises(UserError, match="File name too long; give it a shorter") as error:
        write_text(tmp_path / ("u" * 260), "x")
    assert not isinstance(error.value, NotWritten)  # others may have names that are taken
    assert len(os.listdir(tmp_path)) == 4


def test_names_that_are_not_utf8_can_be_printed(monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(os.dup(1), "w"), encoding="utf-8"))
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda _: print(os.fsdecode(b"caf\xe9")))
    sys.stdout.flush()
    assert end.value.code == 0 and capfd.readouterr().out == "caf\\udce9\n"


def test_a_file_that_cannot_be_used_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda _: open("/proc/self/nothing.txt") and 0)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: /proc/self/nothing.txt: No such file or directory; mend that")
