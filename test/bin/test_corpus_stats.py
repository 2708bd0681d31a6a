"""The command that measures the formatted sets."""

import numpy as np
import pytest
import soundfile

from i2srf_kd.bin.corpus_stats import main
from i2srf_kd.data.kaldi_dir import DataDir
from i2srf_kd.system.errors import UserError


def test_files_that_the_training_reads(tmp_path, capsys):
    for number, name in enumerate(("train", "valid")):
        wave = np.random.default_rng(number).uniform(-0.1, 0.1, 1000 + number)
        for kind, gain in (("noisy", 2.0), ("clean", 1.0)):
            soundfile.write(tmp_path / f"{name}_{kind}.wav", gain * wave, 16000)
        wav, spk1 = ({"u": str(tmp_path / f"{name}_{kind}.wav")} for kind in ("noisy", "clean"))
        DataDir(wav, spk1, {"u": name}).write(tmp_path / "raw" / name)
    out = tmp_path / "stats"
    assert main(["--dump_dir", str(tmp_path / "raw"), "--sets", "train", "valid", "--out_dir", str(out)]) == 0
    assert (out / "train" / "speech_shape").read_text() == "u 1000\n"
    assert (out / "valid" / "speech_shape").read_text() == "u 1001\n"
    assert (out / "corpus_report.json").exists() and (out / "corpus_report.png").exists()
    assert capsys.readouterr().out == (out / "corpus_report.md").read_text()


def test_missing_set_is_named(tmp_path):
    with pytest.raises(UserError, match="train: no such data folder"):
        main(["--dump_dir", str(tmp_path), "--sets", "train", "--out_dir", str(tmp_path / "stats")])
