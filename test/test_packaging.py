"""What setup.py promises: the plain installation is enough to enhance."""

import ast
import runpy
import sys
from pathlib import Path

import setuptools

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = {"yaml": "pyyaml"}  # modules called otherwise than the package they come with
# Metrics, reports, ONNX and ESPnet are extras; so is what only ablations and some data commands need.
EXTRAS = ("ablation", "bin", "corpora", "data", "espnet", "export", "metrics", "results", "training")
OPTIONAL = {"soxr"}


def test_plain_installation_holds_what_enhancing_imports(monkeypatch):
    said = {}
    monkeypatch.setattr(setuptools, "setup", said.update)
    runpy.run_path(str(REPOSITORY / "setup.py"))
    promised = {requirement.partition(">")[0] for requirement in said["install_requires"]}
    package = REPOSITORY / "i2srf_kd"
    files = [f for f in package.rglob("*.py") if f.relative_to(package).parts[0] not in EXTRAS]
    files += [package / "bin" / "enhance.py", package / "export" / "bundle.py", package / "metrics" / "complexity.py"]
    imported = set().union(*map(third_party, files))
    assert {"torch", "yaml", "soundfile"} <= imported
    assert {PACKAGES.get(name, name) for name in imported - OPTIONAL} <= promised


def third_party(file):
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"i2srf_kd"}
