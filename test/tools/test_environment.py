"""The environment scripts, with stand-ins for uv and Python that build an empty environment."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from places import REPOSITORY

TOOLS = REPOSITORY / "tools"
LOCKS = [TOOLS / "requirements-py311.txt", TOOLS / "requirements-py312.txt"]

UV = r"""#!/usr/bin/env bash
echo "$*" >>"${STUB_RECORD}"
case "$1 $2" in
    "venv "*)
        venv="${@: -1}"
        mkdir -p "${venv}/bin" "${venv}/site packages"
        {
            echo '#!/usr/bin/env bash'
            printf '[[ "$2" != *sysconfig* ]] || echo "%s/site packages"\n' "${venv}"
        } >"${venv}/bin/python"
        chmod +x "${venv}/bin/python"
        printf 'VIRTUAL_ENV="%s"\nexport VIRTUAL_ENV\nPATH="%s/bin:$PATH"\n' "${venv}" "${venv}" >"${venv}/bin/activate"
        touch "${venv}/pyvenv.cfg" ;;
    "pip sync") exec 8>"${VENV_OF_TEST}/.lock"; flock --nonblock 8 || exit 9 # as uv does; it would wait for minutes
        sleep "${STUB_SLEEP:-0}"; exit "${STUB_FAIL:-0}" ;;
    *) exit 1 ;;
esac
"""
PYTHON = '#!/bin/sh\n[ "$1" = -c ] || exit 1\necho "{version} $0"\n'
VERSIONS = ("3.11", "3.12", "3.13")
UNSUPPORTED = "#!/bin/sh\nexit 1\n"


class Checkout:
    """A copy of tools/ in a repository of its own."""

    def __init__(self, root: Path) -> None:
        self.repository = root / "a repository"
        shutil.copytree(TOOLS, self.repository / "tools")
        self.venv = self.repository / ".venv"
        self.bin = root / "bin"
        self.bin.mkdir()
        self.record = root / "record"
        self.program("uv", UV)
        for name in ("python3", "python"):
            self.program(name, UNSUPPORTED)
        for version in VERSIONS:
            self.program(f"python{version}", PYTHON.format(version=version))

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def environment(self, **more: str) -> dict:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("I2SRF_") and k != "PYTHONPATH"}
        return {
            **kept,
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "PYENV_ROOT": str(self.bin.parent / "pyenv"),
            "STUB_RECORD": str(self.record),
            "VENV_OF_TEST": str(self.venv),
            **more,
        }

    def setup(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run setup_env.sh; returns what it wrote to standard error."""
        done = subprocess.run(
            [str(self.repository / "tools" / "setup_env.sh"), *arguments],
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done.stderr

    def syncs(self) -> list:
        """Locks that were installed since the last question."""
        text = self.record.read_text() if self.record.exists() else ""
        self.record.unlink(missing_ok=True)
        return re.findall(r"^pip sync --compile-bytecode --require-hashes .*/(requirements-\S+)$", text, re.M)


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_second_set_up_does_nothing_and_is_instant(checkout):
    checkout.setup()
    assert checkout.syncs() == ["requirements-py312.txt"]
    start = time.monotonic()
    assert checkout.setup() == ""
    assert time.monotonic() - start < 5  # seconds, also on a busy machine
    assert not checkout.record.exists()


def test_changed_lock_builds_again(checkout):
    checkout.setup()
    with (checkout.repository / "tools" / "requirements-py312.txt").open("a") as lock:
        lock.write("# changed\n")
    (checkout.venv / "stale").touch()
    checkout.setup()
    assert len(checkout.syncs()) == 2
    assert not (checkout.venv / "stale").exists()


def test_force_builds_again(checkout):
    checkout.setup()
    checkout.setup("--force")
    assert len(checkout.syncs()) == 2


def test_named_python_is_used_and_kept(checkout):
    checkout.setup(I2SRF_PYTHON="python3.11")
    checkout.setup()
    assert checkout.syncs() == ["requirements-py311.txt"]
    checkout.setup(I2SRF_PYTHON="python3.12")
    assert checkout.syncs() == ["requirements-py312.txt"]


@pytest.mark.parametrize("version, lock", [("3.11", "py311"), ("3.12", "py312"), ("3.13", "py312")])
def test_only_python_there_is_used_with_its_lock(checkout, version, lock):
    for other in set(VERSIONS) - {version}:
        checkout.program(f"python{other}", UNSUPPORTED)
    assert f"with Python {version} " in checkout.setup()
    assert checkout.syncs() == [f"requirements-{lock}.txt"]
    assert checkout.setup() == ""


def test_python_of_pyenv_is_found_where_its_command_on_the_path_fails(checkout):
    folder = Path(checkout.environment()["PYENV_ROOT"]) / "versions" / "3.12.1" / "bin"
    folder.mkdir(parents=True)
    checkout.program("python3.12", PYTHON.format(version="3.12")).rename(folder / "python3.12")
    checkout.program("python3.12", UNSUPPORTED)
    assert str(folder / "python3.12") in checkout.setup()
    assert checkout.syncs() == ["requirements-py312.txt"]


def test_python_can_be_named_by_its_version(checkout):
    checkout.setup(I2SRF_PYTHON="3.11")
    assert checkout.setup(I2SRF_PYTHON="3.11") == ""
    assert checkout.syncs() == ["requirements-py311.txt"]
    checkout.program("python3.11", UNSUPPORTED)
    assert "I2SRF_PYTHON=3.11 is not" in checkout.setup("--force", code=2, I2SRF_PYTHON="3.11")


def test_failed_installation_is_not_used(checkout):
    assert "failed" in checkout.setup(code=2, STUB_FAIL="1")
    assert not (checkout.venv / ".i2srf_stamp").exists()
    checkout.setup()
    assert len(checkout.syncs()) == 2


def test_interrupted_rebuild_is_not_used(checkout):
    checkout.setup()
    checkout.setup("--force", code=2, STUB_FAIL="1")
    checkout.syncs()
    checkout.setup()
    assert len(checkout.syncs()) == 1


def test_concurrent_set_ups_build_once(checkout):
    command = [str(checkout.repository / "tools" / "setup_env.sh")]
    environment = checkout.environment(STUB_SLEEP="0.5")
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    messages = [process.communicate(timeout=30)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 6, messages
    assert len(checkout.syncs()) == 1
    assert sum("waiting for it" in message for message in messages) == 5


def test_no_supported_python(checkout):
    for version in VERSIONS:
        checkout.program(f"python{version}", UNSUPPORTED)
    error = checkout.setup(code=2)
    assert "no Python 3.11, 3.12 or 3.13 found" in error and "I2SRF_PYTHON=" in error
    unsupported = str(checkout.bin / "python3")
    assert f"I2SRF_PYTHON={unsupported} is not" in checkout.setup(code=2, I2SRF_PYTHON=unsupported)


def test_folder_with_other_files_is_left_alone(checkout, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").touch()
    assert "no Python environment" in checkout.setup(code=2, I2SRF_VENV=str(tmp_path / "home"))
    assert (tmp_path / "home" / "precious").exists()


def test_place_that_cannot_be_written_is_told_with_the_option_for_another(checkout):
    checkout.venv.parent.joinpath("file").touch()
    error = checkout.setup(code=2, I2SRF_VENV=str(checkout.venv.parent / "file" / "venv"))
    assert "cannot be written; set I2SRF_VENV to" in error


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_activation_from_any_directory(checkout, tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    activate = f'. "{checkout.repository}/tools/activate_python.sh"'
    command = f'set -eu; {activate}; echo "$VIRTUAL_ENV|$PYTHONPATH"; command -v python'
    for _ in range(2):
        done = subprocess.run(
            [shell, "-c", command], cwd=tmp_path, env=checkout.environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout == f"{checkout.venv}|{checkout.repository}\n{checkout.venv}/bin/python\n"
    assert len(checkout.syncs()) == 1


def test_activation_reports_a_failed_set_up(checkout):
    command = f'. "{checkout.repository}/tools/activate_python.sh" || echo "failed with $?"'
    environment = checkout.environment(STUB_FAIL="1")
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout == "failed with 2\n"


FAST = ["-m", "not slow and not cluster"]


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], FAST),
        (["-k", "x y"], [*FAST, "-k", "x y"]),
        (["-n", "0"], [*FAST, "-n", "0"]),
        (["--all"], []),
        (["-m", "slow"], ["-m", "slow"]),
    ],
)
def test_selection_of_tests(checkout, arguments, expected):
    checkout.setup()
    python = checkout.venv / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    command = [str(checkout.repository / "tools" / "test.sh"), *arguments]
    done = subprocess.run(command, env=checkout.environment(), capture_output=True, text=True, check=True)
    workers = ["-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
    assert done.stdout.splitlines() == ["-m", "pytest", *workers, *expected]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_pin_with_hashes_and_name_no_host(lock):
    text = lock.read_text()
    assert not re.search(r"https?:|^--|^-f|@ *(git|file)|/(opt|home|root|tmp)/", text, re.M)
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
    assert len(blocks) > 80
    for block in blocks:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", block) and "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_hold_what_is_asked_for(lock):
    wanted = re.findall(r"^([A-Za-z][\w.-]*)", (TOOLS / "requirements.in").read_text(), re.M)
    pinned = {name.lower() for name in re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock.read_text(), re.M)}
    assert "espnet" in pinned and "torch" in pinned
    assert not {name.lower().replace("_", "-") for name in wanted} - pinned
