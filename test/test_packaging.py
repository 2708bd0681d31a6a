"""What setup.py promises: the plain installation is enough to enhance."""

import ast
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import distribution

import numpy as np
import pytest
import setuptools
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import REPOSITORY

from i2srf_kd import load_enhancer

PACKAGES = {"yaml": "pyyaml"}  # modules called otherwise than the package they come with
# Metrics, reports, ONNX and ESPnet are extras; so is what only ablations and some data commands need.
EXTRAS = ("ablation", "bin", "corpora", "data", "espnet", "export", "metrics", "models", "results", "training")


def test_the_extra_torch_holds_what_enhancing_imports(monkeypatch):
    said = read_setup(monkeypatch)
    requirements = [*said["install_requires"], *said["extras_require"]["torch"]]
    promised = {requirement.partition(">")[0] for requirement in requirements}
    package = REPOSITORY / "i2srf_kd"
    files = [f for f in package.rglob("*.py") if f.relative_to(package).parts[0] not in EXTRAS]
    files += [package / "bin" / "enhance.py", package / "export" / "bundle.py", package / "metrics" / "complexity.py"]
    imported = set().union(*map(third_party, files))
    assert {"torch", "yaml", "soundfile"} <= imported
    assert {PACKAGES.get(name, name) for name in imported} <= promised


def link_distributions(names, target):
    """Let an environment have installed packages, and those that they require, from this one."""
    waiting, seen = list(names), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for requirement in map(Requirement, found.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (target / top).exists():
                (target / top).symlink_to(found.locate_file(top))
    return seen


@pytest.mark.slow
def test_the_wheel_enhances_in_an_environment_without_torch(tmp_path, monkeypatch):
    """It is small, and holds a model; what it requires is enough, offline, and quick."""
    shutil.copytree(REPOSITORY / "i2srf_kd", tmp_path / "source/i2srf_kd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / "source" / name)
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 10e6
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    required = [Requirement(text).name for text in read_setup(monkeypatch)["install_requires"]]
    assert not {"torch", "scipy", "espnet"} & link_distributions(required, packages)
    zipfile.ZipFile(wheel).extractall(packages)
    wave = 0.1 * np.random.default_rng(0).standard_normal(48000)
    soundfile.write(tmp_path / "noisy.wav", wave, 48000)
    wave, _ = soundfile.read(tmp_path / "noisy.wav")
    python = str(tmp_path / "venv/bin/python")
    begin = time.monotonic()
    call = [python, "-I", "-m", "i2srf_kd.bin", "enhance", "noisy.wav", "-o", "out", "--strength", "0.9"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 60  # a few seconds where nothing else runs
    heard, fs = soundfile.read(tmp_path / "out/noisy.wav")
    np.testing.assert_allclose(heard, load_enhancer(strength=0.9)(wave, 48000), atol=2**-14)
    assert fs == 48000
    call = [python, "-I", "-c", "from i2srf_kd import load_enhancer"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert "load_enhancer needs PyTorch" in done.stderr
    call = [python, "-I", "-m", "i2srf_kd.bin", "enhance", "noisy.wav", "-o", "other", "--runtime", "torch"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "needs PyTorch" in done.stderr


def read_setup(monkeypatch):
    said = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    return said


def i2srf(*words):
    """The program that an installation makes, with the modules of this package that it imported."""
    call = (
        "import atexit, sys\n"
        "from i2srf_kd.bin.__main__ import main\n"
        "names = lambda: sorted(m for m in sys.modules if m.startswith('i2srf_kd.bin') or m == 'torch')\n"
        "atexit.register(lambda: print(*names(), file=sys.stderr))\n"
        "main()\n"
    )
    return subprocess.run([sys.executable, "-c", call, *words], capture_output=True, text=True)


def test_one_program_has_all_commands(monkeypatch):
    [script] = read_setup(monkeypatch)["entry_points"]["console_scripts"]
    name, _, place = script.partition(" = ")
    module, _, function = place.partition(":")
    assert name == "i2srf" and callable(getattr(importlib.import_module(module), function))
    listed = i2srf("--help")
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()[2:]]
    commands = {file.stem for file in (REPOSITORY / "i2srf_kd" / "bin").glob("[a-z]*.py")}
    assert {line[0] for line in lines} == commands and all(line[1].endswith((".", "--status")) for line in lines)
    assert listed.stderr.split() == ["i2srf_kd.bin", "i2srf_kd.bin.__main__"]


def test_the_program_imports_the_chosen_command_alone():
    done = i2srf("run_jobs", "--help")
    assert done.returncode == 0 and "JOB=FIRST:LAST" in done.stdout
    assert done.stderr.split() == ["i2srf_kd.bin", "i2srf_kd.bin.__main__", "i2srf_kd.bin.run_jobs"]
    done = i2srf("nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: no command is called nothing: i2srf --help lists")


def third_party(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"i2srf_kd"}
