"""Models that come with the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from i2srf_kd import load_enhancer, models
from i2srf_kd.bin import enhance
from i2srf_kd.export.bundle import is_bundle
from i2srf_kd.inference.enhancer import Enhancer
from i2srf_kd.metrics.signal import si_sdr


@pytest.fixture()
def tones() -> np.ndarray:
    """A harmonic sound with pauses, like a voice, of one second at 16 kHz."""
    time = np.arange(16000) / 16000
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    return (0.05 * voice * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


def test_every_model_is_an_exported_folder_with_a_card() -> None:
    assert models.names()[0] == models.DEFAULT
    for name in models.names():
        folder = models.folder_of(name)
        assert is_bundle(folder) and "licence of the weights" in (folder / "README.md").read_text()
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000


def test_a_folder_of_the_users_goes_before_a_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / models.DEFAULT).mkdir()
    assert models.folder_of(models.DEFAULT) == Path(models.DEFAULT)
    assert models.folder_of("exp/student") == Path("exp/student")


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_the_default_removes_noise(tones: np.ndarray, runtime: str) -> None:
    noisy = tones + np.random.default_rng(0).normal(0, 0.02, tones.shape).astype(np.float32)
    enhancer = load_enhancer(runtime=runtime)
    assert isinstance(enhancer, Enhancer)
    assert si_sdr(tones, enhancer(noisy, 16000)) > si_sdr(tones, noisy) + 2


def test_the_command_takes_the_default_where_no_model_is_named(tones: np.ndarray, tmp_path: Path, capsys: Any) -> None:
    soundfile.write(tmp_path / "noisy.wav", tones, 16000)
    assert enhance.main([str(tmp_path / "noisy.wav"), "-o", str(tmp_path / "a")]) == 0
    for number, words in enumerate(
        (["--model", models.DEFAULT], [models.DEFAULT], [str(models.folder_of(models.DEFAULT))])
    ):
        assert enhance.main([*words, str(tmp_path / "noisy.wav"), "-o", str(tmp_path / f"b{number}")]) == 0
        assert (tmp_path / f"b{number}/noisy.wav").read_bytes() == (tmp_path / "a/noisy.wav").read_bytes()
    capsys.readouterr()
    assert enhance.main(["--list_models"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == models.names()
