"""Models that come with the package."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from i2srf_kd import load_enhancer, models
from i2srf_kd.bin import enhance, enhance_set, score
from i2srf_kd.export.bundle import is_bundle
from i2srf_kd.export.model_card import scores_section
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


def table(folder: Path, pairs: Path) -> Path:
    """A data folder of mixtures and references."""
    folder.mkdir()
    for name, kind in (("wav.scp", "noisy"), ("spk1.scp", "clean")):
        files = sorted((pairs / kind).iterdir())
        (folder / name).write_text("".join(f"{file.stem} {file}\n" for file in files))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_the_card_tells_the_scores_of_the_model(name: str, audio_dir: Path, tmp_path: Path) -> None:
    data = table(tmp_path / "test", audio_dir / "test")
    enhance_set.main([name, str(data), str(tmp_path / "enhanced")])
    score.main([str(data), str(tmp_path / "enhanced/spk1.scp"), str(tmp_path / "scored_test")])
    section = scores_section("test", json.loads((tmp_path / "scored_test/summary.json").read_text()))
    told = (models.folder_of(name) / "README.md").read_text()
    pattern = re.compile(r"^\| +(?=WB-PESQ)(.+) \|\n\|[-|]+\|\n\| (.+) \|$", re.M)
    card, found = (pattern.search(text) for text in (told, section))
    assert card and found, "the card has no scores"
    scores = dict(zip(found[1].split(" | "), map(float, found[2].split(" | ")), strict=True))
    told_by_the_card = dict(zip(card[1].split(" | "), map(float, card[2].split(" | ")), strict=True))
    assert scores.keys() <= told_by_the_card.keys()  # which also has DNSMOS, whose weights are not at hand here
    for label, value in scores.items():
        assert value == pytest.approx(told_by_the_card[label], rel=2e-3), label
