"""Pictures are written and show what they should."""

import json

import numpy as np
import pytest

from i2srf_kd.results.files import read_log
from i2srf_kd.results.spectrogram import log_spectrogram, spectrogram_grid
from i2srf_kd.system.errors import UserError

pytest.importorskip("matplotlib")


def _log(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_spectrogram_level_and_frequency():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    spectrum = log_spectrogram(tone, 16000)
    assert spectrum.shape[0] == 257
    assert np.all(spectrum.argmax(axis=0) == 32)  # 1000 Hz in steps of 31.25 Hz
    assert spectrum.max() == pytest.approx(-6.0, abs=0.1)  # a full-scale sine under a Hann window


def test_grid_has_one_row_per_waveform(tmp_path):
    from PIL import Image

    noise = np.random.default_rng(0).standard_normal(8000)
    spectrogram_grid({"noisy": noise, "silent": np.zeros(8000), "short": noise[:100]}, 16000, tmp_path / "a" / "3.png")
    spectrogram_grid({"noisy": noise}, 16000, tmp_path / "1.png")
    with Image.open(tmp_path / "a" / "3.png") as three, Image.open(tmp_path / "1.png") as one:
        assert three.size[0] == one.size[0] and three.size[1] > 2 * one.size[1]
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["3.png"]


def test_unfinished_last_line_is_left_out(tmp_path):
    log = _log(tmp_path / "l.jsonl", [{"epoch": 1, "phase": "train", "loss": 3.0}])
    log.write_text(log.read_text() + '{"epoch": 2, "pha')
    assert len(read_log(log)) == 1


def test_bad_logs_are_named(tmp_path):
    log = _log(tmp_path / "l.jsonl", [{"epoch": 1, "phase": "train"}, {"loss": 1}])
    with pytest.raises(UserError, match=r"l.jsonl:2: expected a record with epoch and phase"):
        read_log(log)
    with pytest.raises(UserError, match="no such training log"):
        read_log(tmp_path / "absent")
