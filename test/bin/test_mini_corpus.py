"""The command that writes the mini corpus."""

import importlib.util
import os
import subprocess
import sys

import pytest

from i2srf_kd.bin.mini_corpus import main
from i2srf_kd.corpora.synthesis import MiniCorpusOptions


@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")
def test_sizes_follow_the_options(tmp_path, capsys):
    options = ["--fs", "8000", "--train_utts", "9", "--valid_utts", "2", "--test_utts", "3"]
    assert main([str(tmp_path / "mini corpus"), *options]) == 0
    assert "mini corpus" in capsys.readouterr().out
    assert len(os.listdir(tmp_path / "mini corpus" / "noisy_trainset_28spk_wav")) == 11
    assert len(os.listdir(tmp_path / "mini corpus" / "clean_testset_wav")) == 3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="no espeakng-loader")
def test_default_corpus_has_the_promised_size(tmp_path):
    from i2srf_kd.audio.io import probe

    assert main([str(tmp_path / "mini")]) == 0
    seconds = {"train": 0.0, "valid": 0.0, "test": 0.0}
    for path in tmp_path.glob("mini/noisy_*/*.wav"):
        held_out = path.name[:4] in ("p226", "p287")
        info = probe(path)
        seconds["test" if "testset" in path.parent.name else "valid" if held_out else "train"] += info.frames / info.fs
    assert 10 * 60 < seconds["train"] < 12 * 60
    assert 80 < seconds["valid"] < 110
    assert 80 < seconds["test"] < 120


def test_user_errors_are_one_line(tmp_path, repository):
    (tmp_path / "file").write_text("mine")
    command = [sys.executable, "-m", "i2srf_kd.bin.mini_corpus", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--train_utt", "3"])  # options are not abbreviated


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert f"default: {MiniCorpusOptions().train_utts}" in shown and "--test_utts" in shown
