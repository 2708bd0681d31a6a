"""Copies on a machine's own disk: verified, found by the readers, and gone at the end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any, List

import pytest
from places import REPOSITORY
from reliability.processes import wait_for

from i2srf_kd.bin import with_scratch
from i2srf_kd.system import scratch
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.fingerprints import sha256_of
from i2srf_kd.system.scratch import VARIABLE, local_copy, resolve_folder, scratch_copy


@pytest.fixture()
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Three files, named relative to the current folder."""
    (tmp_path / "dump/ü x").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"dump/ü x/{number}.flac").write_bytes(bytes([number]) * (1000 + number))
    monkeypatch.chdir(tmp_path)
    return [f"dump/ü x/{number}.flac" for number in range(3)]


def entries(base: Path) -> List[str]:
    return sorted(path.name for path in base.iterdir()) if base.exists() else []


def test_readers_find_the_copy_and_it_is_removed(files: List[str], tmp_path: Path, monkeypatch: Any) -> None:
    assert local_copy(files[0]) == files[0]
    with scratch_copy(str(tmp_path / "fast"), files[:2]) as copy:
        monkeypatch.setenv(VARIABLE, str(copy))
        found = local_copy(files[1])
        assert found.startswith(str(tmp_path / "fast/i2srf-")) and Path(found).read_bytes() == b"\1" * 1001
        assert local_copy(os.path.abspath(files[1])) == found
        assert local_copy(files[2]) == files[2]  # was not copied
    assert local_copy(files[0]) == files[0] and entries(tmp_path / "fast") == []


def test_jobs_have_copies_of_their_own(files: List[str], tmp_path: Path) -> None:
    with scratch_copy(str(tmp_path / "fast"), files) as first:
        with scratch_copy(str(tmp_path / "fast"), files) as second:
            assert first != second
        assert Path(f"{first}{os.path.abspath(files[2])}").read_bytes() == b"\2" * 1002 and not second.exists()
    assert entries(tmp_path / "fast") == []


def test_a_copy_that_differs_is_an_error(files: List[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(scratch, "sha256_of", lambda path: "0" * 64 if path.endswith("1.flac") else sha256_of(path))
    with pytest.raises(UserError, match=r"1\.flac and its copy .* differ"), scratch_copy(str(tmp_path / "f"), files):
        pass
    assert entries(tmp_path / "f") == []


def test_too_little_room_is_said_before_anything_is_copied(files: List[str], tmp_path: Path, monkeypatch: Any) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(3000, 0, 3000))
    with pytest.raises(UserError, match=r"3 files of 0.00 GB do not fit on .*: name another folder"):
        with scratch_copy(str(tmp_path / "f"), files):
            pass
    assert entries(tmp_path / "f") == []


def test_a_missing_source_is_named(files: List[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.flac: cannot be read"), scratch_copy(str(tmp_path / "f"), ["gone.flac"]):
        pass
    assert entries(tmp_path / "f") == []


def test_folders_are_those_of_the_machine(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("JOB_FOLDER", str(tmp_path))
    monkeypatch.delenv("NOT_SET", raising=False)
    assert resolve_folder("$JOB_FOLDER/a") == tmp_path / "a"
    with pytest.raises(UserError, match=r"--scratch \$NOT_SET/a: a variable is not set on "):
        resolve_folder("$NOT_SET/a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make"):
        resolve_folder(f"{tmp_path}/file/a")


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture()
def dump(files: List[str]) -> Path:
    """A data folder of two utterances, one of whose references lies in an archive."""
    folder = Path("dump/train")
    folder.mkdir()
    (folder / "wav.scp").write_text(f"a {files[0]}\nb {files[1]}\n")
    (folder / "spk1.scp").write_text(f"a {files[2]}\nb dump/x.ark:7\n")
    Path("dump/x.ark").write_bytes(b"archive")
    return folder


SHOW = f"""
import os, sys
from i2srf_kd.system.scratch import local_copy
print(open(local_copy(sys.argv[1])).read(), os.environ["{VARIABLE}"])
"""


def test_the_command_reads_the_copy_and_its_exit_code_counts(dump: Path, tmp_path: Path, capfd: Any) -> None:
    words = ["--scratch", str(tmp_path / "fast"), "--sets", str(dump), "--", sys.executable]
    assert with_scratch.main([*words, "-c", SHOW, "dump/x.ark"]) == 0
    text, root = capfd.readouterr().out.split()
    assert text == "archive" and root.startswith(str(tmp_path / "fast")) and entries(tmp_path / "fast") == []
    assert with_scratch.main([*words, "-c", "import sys; sys.exit(75)"]) == 75
    assert entries(tmp_path / "fast") == []
    with pytest.raises(UserError, match="nothing to run"):
        with_scratch.main(words[:-1])


def start(dump: Path, base: Path, *command: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "i2srf_kd.bin.with_scratch", "--scratch", str(base), "--sets", str(dump), "--"]
    return subprocess.Popen([*words, *command], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


def test_a_signal_reaches_the_command_and_the_copy_goes(dump: Path, tmp_path: Path) -> None:
    saves = "trap 'rm -f ready; exit 75' USR1; touch ready; while :; do sleep 0.05; done"
    process = start(dump, tmp_path / "fast", "bash", "-c", saves)
    assert wait_for(Path("ready").exists, 60)
    assert entries(tmp_path / "fast")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75 and entries(tmp_path / "fast") == []


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_while_copying_leaves_nothing(dump: Path, tmp_path: Path, number: int, code: int) -> None:
    os.mkfifo("dump/pipe")  # to copy it takes as long as its writer likes
    with (dump / "wav.scp").open("a") as table:
        table.write("c dump/pipe\n")
    with (dump / "spk1.scp").open("a") as table:
        table.write("c dump/x.ark:7\n")
    process = start(dump, tmp_path / "fast", "touch", "started")
    with open("dump/pipe", "wb", buffering=0) as pipe:  # returns when it is being read
        process.send_signal(number)
        pipe.write(b"x")
        time.sleep(0.2)
    assert process.wait(60) == code
    assert entries(tmp_path / "fast") == [] and not Path("started").exists()
