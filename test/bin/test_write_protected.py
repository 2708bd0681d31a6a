"""Folders that may not be written to: every command that writes says so in one line, and leaves nothing behind."""

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Iterator, List

import numpy as np
import pytest
import soundfile
from export.trained import make_experiment, make_network
from plain_user import plain_user

from i2srf_kd.bin import enhance, export, score
from i2srf_kd.system.errors import run_command


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model, a data set and its scores, and the folder ``closed``; also the current folder."""
    monkeypatch.chdir(tmp_path)
    make_experiment(Path("model"), make_network())
    Path("data").mkdir()
    for table, seed in (("wav", 0), ("spk1", 1)):
        soundfile.write(f"{table}.wav", 0.1 * np.random.default_rng(seed).standard_normal(8000), 16000)
        Path("data", f"{table}.scp").write_text(f"utt {table}.wav\n")
    Path("model/metrics.jsonl").write_text('{"epoch": 1, "phase": "train", "loss": 1.0}\n')
    Path("data/utt2num_samples").write_text("utt 8000\n")
    Path("mix.yaml").write_text("mixing: {snr_db: [0, 5], noise: [speech]}\nchunk_length: 4000\nbatch_size: 1\n")
    assert score.main(["data", "data/wav.scp", "scored", "--metrics", "si_sdr"]) == 0
    shutil.copytree("scored", "model/scored_test")
    for speaker in "abc":
        Path("speech", speaker).mkdir(parents=True)
        shutil.copy("wav.wav", f"speech/{speaker}/{speaker}_1.wav")
    Path("closed").mkdir(mode=0o555)
    yield tmp_path
    for name in ("closed", "model"):
        os.chmod(name, 0o755)


COMMANDS = [
    ["format_data", "data", "PLACE"],
    ["corpus_stats", "--dump_dir", ".", "--sets", "data", "--out_dir", "PLACE"],
    ["enhance", "model", "wav.wav", "-o", "PLACE/y.wav"],
    ["enhance_set", "model", "data", "PLACE"],
    ["score", "data", "data/wav.scp", "PLACE", "--metrics", "si_sdr"],
    ["results", "--system", "noisy=scored", "--out", "PLACE/RESULTS.md"],
    ["report", "model", "-o", "PLACE/report.html"],
    ["examples", "data", "-o", "PLACE"],
    ["mix", "--config", "mix.yaml", "--data_dir", "data", "--count", "1", "-o", "PLACE"],
    ["mini_corpus", "PLACE"],
    ["simulate_rooms", "--speech_dir", "speech", "--noise_dir", "speech", "--out", "PLACE"],
    ["export", "model", "-o", "PLACE", "--onnx", "false"],
    ["pack", "model", "-o", "PLACE/model.zip"],
    ["step", "false", "PLACE/.done", "redo", "a=1", "--", "1", "true"],
    ["run_jobs", "PLACE/log", "true"],
]


@pytest.mark.parametrize("place, reason", [("closed", "Permission denied"), ("wav.wav", "Not a directory")])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_it_is_named(folder: Path, words: List[str], place: str, reason: str, capsys: Any) -> None:
    command = importlib.import_module(f"i2srf_kd.bin.{words[0]}")
    words = [word.replace("PLACE", f"{place}/x") for word in words[1:]]
    before = sorted(os.listdir())
    with plain_user(), pytest.raises(SystemExit) as end:
        run_command(lambda _: command.main(words))
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert end.value.code == (1 if command is enhance else 2)  # which goes on with the other recordings
    assert last.startswith("error: ") and place in last and reason in last
    assert os.listdir("closed") == [] and sorted(os.listdir()) == before


def test_a_model_in_a_closed_folder_can_be_exported(folder: Path) -> None:
    os.chmod("model", 0o555)
    before = sorted(os.listdir("model"))
    with plain_user():
        assert export.main(["model", "-o", "out", "--onnx", "false"]) == 0
    assert json.loads(Path("out/complexity.json").read_text())["parameters"] > 0
    assert sorted(os.listdir("model")) == before
