"""Copies on a machine's own disk: shared, verified, found by the readers, and gone at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any, Callable, List

import pytest
from places import REPOSITORY

from i2srf_kd.bin import with_scratch
from i2srf_kd.system import scratch
from i2srf_kd.system.errors import UserError
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
        monkeypatch.setenv(VARIABLE, str(copy.root))
        found = local_copy(files[1])
        assert found.startswith(str(tmp_path / "fast/i2srf-")) and Path(found).read_bytes() == b"\1" * 1001
        assert local_copy(os.path.abspath(files[1])) == found
        assert local_copy(files[2]) == files[2]  # was not copied
    assert local_copy(files[0]) == files[0] and entries(tmp_path / "fast") == []


def test_one_copy_serves_all_and_the_last_removes_it(files: List[str], tmp_path: Path) -> None:
    base, gate, roots = tmp_path / "fast", threading.Barrier(4), []

    def use() -> None:
        with scratch_copy(str(base), files) as copy:
            roots.append((copy.root, (copy.root.parent / "manifest.json").stat().st_ino))
            gate.wait(20)  # all of them hold it at a time
            assert Path(str(copy.root) + os.path.abspath(files[2])).read_bytes() == b"\2" * 1002

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(roots) == 4 and len(set(roots)) == 1
    assert entries(base) == []


def test_the_copy_stays_while_another_job_uses_it(files: List[str], tmp_path: Path) -> None:
    with scratch_copy(str(tmp_path / "fast"), files) as copy:
        with (
            scratch_copy(str(tmp_path / "fast"), files) as same,
            scratch_copy(str(tmp_path / "fast"), files[:1]) as other,
        ):
            assert same.root == copy.root and other.root != copy.root
        assert copy.root.exists() and not other.root.exists()
    assert entries(tmp_path / "fast") == []


def left_by_a_killed_job(files: List[str], base: Path) -> Path:
    """A complete copy that nobody holds."""
    child = os.fork()
    if child == 0:
        with scratch_copy(str(base), files):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (place,) = base.glob("i2srf-*")
    return place


def test_an_intact_leftover_is_taken_up_and_others_are_removed(files: List[str], tmp_path: Path) -> None:
    base = tmp_path / "fast"
    place = left_by_a_killed_job(files, base)
    inode = (place / "manifest.json").stat().st_ino
    with scratch_copy(str(base), files) as copy:
        assert copy.root.parent == place and (place / "manifest.json").stat().st_ino == inode
    place = left_by_a_killed_job(files, base)
    with scratch_copy(str(base), files[:1]):
        assert not place.exists()
    assert entries(base) == []


def damage_copy(place: Path, source: Path) -> None:
    Path(f"{place}/files{source}").write_bytes(b"\2" * 1001 + b"x")  # of the same size


def lose_manifest(place: Path, source: Path) -> None:
    (place / "manifest.json").unlink()


def change_source(place: Path, source: Path) -> None:
    source.write_bytes(b"another file")


@pytest.mark.parametrize("happen", [damage_copy, lose_manifest, change_source])
def test_a_leftover_that_is_not_intact_is_made_anew(
    files: List[str], tmp_path: Path, happen: Callable[[Path, Path], None]
) -> None:
    source = Path(os.path.abspath(files[2]))
    place = left_by_a_killed_job(files, tmp_path / "fast")
    happen(place, source)
    with scratch_copy(str(tmp_path / "fast"), files) as copy:
        assert Path(f"{copy.root}{source}").read_bytes() == source.read_bytes()
        assert json.loads((place / "manifest.json").read_text())[str(source)][0] == source.stat().st_size


def test_a_copy_that_differs_is_an_error(files: List[str], tmp_path: Path, monkeypatch: Any) -> None:
    copied = scratch._copy

    def with_a_fault(source: str, target: str, stop: Any) -> Any:
        result = copied(source, target, stop)
        if target.endswith("1.flac"):
            Path(target).write_bytes(b"\1" * 1000 + b"\0")
        return result

    monkeypatch.setattr(scratch, "_copy", with_a_fault)
    with pytest.raises(UserError, match=r"1\.flac and its copy on .* differ"), scratch_copy(str(tmp_path / "f"), files):
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


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_signal_reaches_the_command_and_the_copy_goes(dump: Path, tmp_path: Path) -> None:
    saves = "trap 'rm -f ready; exit 75' USR1; touch ready; while :; do sleep 0.05; done"
    process = start(dump, tmp_path / "fast", "bash", "-c", saves)
    wait_for(Path("ready").exists)
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
