"""What setup.py promises: the plain installation is enough to enhance."""

import ast
import importlib
import runpy
import subprocess
import sys

import setuptools
from places import REPOSITORY

PACKAGES = {"yaml": "pyyaml"}  # modules called otherwise than the package they come with
# Metrics, reports, ONNX and ESPnet are extras; so is what only ablations and some data commands need.
EXTRAS = ("ablation", "bin", "corpora", "data", "espnet", "export", "metrics", "models", "results", "training")


def test_plain_installation_holds_what_enhancing_imports(monkeypatch):
    said = read_setup(monkeypatch)
    promised = {requirement.partition(">")[0] for requirement in said["install_requires"]}
    package = REPOSITORY / "i2srf_kd"
    files = [f for f in package.rglob("*.py") if f.relative_to(package).parts[0] not in EXTRAS]
    files += [package / "bin" / "enhance.py", package / "export" / "bundle.py", package / "metrics" / "complexity.py"]
    imported = set().union(*map(third_party, files))
    assert {"torch", "yaml", "soundfile"} <= imported
    assert {PACKAGES.get(name, name) for name in imported} <= promised


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
