"""Steps: skipped, run again, refused or waited for; their records are also those of earlier versions."""

import os
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
from places import REPOSITORY

from i2srf_kd.bin import step
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.locks import held


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("read").write_text("first\n")
    return tmp_path


def words(*settings: str, mode: str = "redo", command: str = "echo x >>ran", force: str = "false") -> List[str]:
    return [force, "exp/.done", mode, *settings, "--", "3", "bash", "-c", command]


def runs() -> int:
    return len(Path("ran").read_text().split()) if Path("ran").exists() else 0


def test_a_step_is_done_once_with_its_settings(capfd: pytest.CaptureFixture) -> None:
    for _ in range(2):
        assert step.main(words("a=1", "input_x@read", "input_x@absent")) == 0
    assert runs() == 1 and "already finished, skipped: exp (exp/.done)" in capfd.readouterr().out
    assert [path.name for path in Path("exp").iterdir()] == [".done"]
    with pytest.raises(UserError, match="a: 1 -> 2"):
        step.main(words("a=2", "input_x@read"))
    assert step.main(words("a=2", "input_x@read", force="true")) == 0 and runs() == 2


def test_what_was_read_counts_by_its_content(capfd: pytest.CaptureFixture) -> None:
    step.main(words("input_x@read"))
    Path("read").rename("moved")
    step.main(words("input_x@moved"))
    assert runs() == 1
    Path("moved").write_text("second\n")
    with pytest.raises(UserError, match="input_x"):
        step.main(words("input_x@moved", mode="keep"))
    step.main(words("input_x@moved"))
    assert runs() == 2 and "has changed, running again: exp" in capfd.readouterr().out


def test_an_interrupted_step_is_not_done() -> None:
    step.main(words("a=1"))
    assert step.main(words("a=1", force="true", command="exit 7")) == 7
    assert not Path("exp/.done").exists()
    assert step.main(words("a=1")) == 0 and runs() == 2


def test_the_key_of_what_is_read_reaches_the_commands() -> None:
    for setting in ("a=1", "a=2"):
        step.main(words(setting, force="true", command='echo "key:${I2SRF_RESUME_KEY}" >>ran'))
    assert Path("ran").read_text().split() == ["key:"] * 2
    Path("exp/.done").unlink()
    step.main(words("a=1", command='test -n "${I2SRF_RESUME_KEY}"'))


def test_another_run_is_waited_for_and_its_work_counts() -> None:
    command = [sys.executable, "-m", "i2srf_kd.bin.step"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with held(Path("exp/.done.lock"), "exp"):
        other = subprocess.Popen([*command, *words("a=1")], env=environment, stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None and "in use, waiting for process" in other.stderr.readline()
        Path("exp/.done").write_text("a=1\n")
    assert other.wait(60) == 0 and runs() == 0


@pytest.mark.parametrize("place", ["file/exp", "/proc/exp"])
def test_a_lock_that_cannot_be_made_is_said_at_once(place: str) -> None:
    Path("file").touch()
    with pytest.raises(UserError, match=f"cannot write {place}/.done.lock: "):
        step.main(["false", f"{place}/.done", "redo", "--", "1", "true"])


def test_it_starts_at_once() -> None:
    code = "import sys; import i2srf_kd.bin.step; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
