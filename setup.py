"""Packaging; the metadata is here so that the version has one home, i2srf_kd/__init__.py."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

root = Path(__file__).parent
match = re.search(r'^__version__ = "(.+)"$', (root / "i2srf_kd" / "__init__.py").read_text(encoding="utf-8"), re.M)
if match is None:
    raise RuntimeError("no __version__ in i2srf_kd/__init__.py")
readme = root / "README.md"

TORCH = ["torch>=2.1", "scipy>=1.15"]
# Releases differ by Python version; tools/requirements-py3*.txt pin what was tested.
ESPNET = ["espnet>=202511", "torchaudio", "torch_complex", "ci_sdr", "fast-bss-eval", "kaldiio"]
ESPNET += ["tensorboard", "matplotlib", "pystoi", "mir_eval<0.9"]  # the last two for its enh_scoring

setup(
    name="i2srf_kd",
    version=match.group(1),
    description="Knowledge distillation for speech enhancement: I2SRF-TFCKD on DPDCRN, as an ESPnet-style recipe",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_namespace_packages(include=["i2srf_kd", "i2srf_kd.*"]),
    package_data={"i2srf_kd": ["py.typed", "**/*.yaml", "**/*.json", "**/*.md", "**/*.j2", "models/*/*"]},
    entry_points={"console_scripts": ["i2srf = i2srf_kd.bin.__main__:main"]},
    # Enough to enhance recordings with a model that comes with the package, or another exported one.
    install_requires=["numpy>=1.24", "soundfile", "soxr", "pyyaml", "tqdm", "onnxruntime"],
    extras_require={
        "torch": TORCH,  # any trained model, load_enhancer in Python, streams in PyTorch
        "train": [*TORCH, *ESPNET, "pesq", "onnx"],
        "metrics": ["pesq", "pystoi"],
        "asr": ["transformers", "editdistance"],
        "reports": ["matplotlib", "jinja2"],
        "mini_corpus": ["espeakng-loader", "pyroomacoustics"],
        "export": ["onnx", "onnxruntime"],
        "hub": ["huggingface_hub"],
        "espnet": [*TORCH, *ESPNET],
        "dev": ["pytest", "pytest-timeout", "hypothesis", "ruff", "mypy", "pre-commit", "yamllint", "codespell"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
