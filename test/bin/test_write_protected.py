"""Folders that may not be written to: every command that writes says so in one line, and leaves nothing behind."""

import importlib
import json
import os
from pathlib import Path
from typing import Iterator, List

import numpy as np
import pytest
import soundfile
from export.trained import make_experiment, make_network
from plain_user import plain_user

from i2srf_kd.bin import export
from i2srf_kd.system.errors import UserError


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model, a data set and its scores, and the folder ``closed``; also the current folder."""
    monkeypatch.chdir(tmp_path)
    make_experiment(Path("model"), make_network())
    Path("data").mkdir()
    for table, seed in (("wav", 0), ("spk1", 1)):
        soundfile.write(f"{table}.wav", 0.1 * np.random.default_rng(seed).standard_normal(8000), 16000)
        Path("data", f"{table}.scp").write_text(f"utt {table}.wav\n")
    Path("closed").mkdir(mode=0o555)
    yield tmp_path
    for name in ("closed", "model"):
        os.chmod(name, 0o755)


@pytest.mark.parametrize(
    "words",
    [
        ["format_data", "data", "closed/x"],
        ["corpus_stats", "--dump_dir", ".", "--sets", "data", "--out_dir", "closed/x"],
        ["enhance_set", "model", "data", "closed/x"],
        ["score", "data", "data/wav.scp", "closed/x", "--metrics", "si_sdr"],
        ["examples", "data", "-o", "closed/x"],
        ["mini_corpus", "closed/x"],
        ["export", "model", "-o", "closed/x", "--onnx", "false"],
        ["step", "false", "closed/x/.done", "redo", "a=1", "--", "1", "true"],
        ["run_jobs", "closed/x/log", "true"],
    ],
    ids=lambda words: words[0],
)
def test_it_is_named(folder: Path, words: List[str]) -> None:
    command = importlib.import_module(f"i2srf_kd.bin.{words[0]}")
    with plain_user(), pytest.raises((UserError, PermissionError)) as error:
        command.main(words[1:])
    # What a command does with a PermissionError that names a file is one line as well.
    assert "closed" in str(error.value) and "Permission denied" in str(error.value)
    assert os.listdir("closed") == []


def test_a_model_in_a_closed_folder_can_be_exported(folder: Path) -> None:
    os.chmod("model", 0o555)
    before = sorted(os.listdir("model"))
    with plain_user():
        assert export.main(["model", "-o", "out", "--onnx", "false"]) == 0
    assert json.loads(Path("out/complexity.json").read_text())["parameters"] > 0
    assert sorted(os.listdir("model")) == before
