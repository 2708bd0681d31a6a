"""From folders of speech and noise to a scored and exported student, at a rate of one's own, with the real commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from places import REPOSITORY

from i2srf_kd import load_enhancer
from i2srf_kd.bin import mini_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DNS = REPOSITORY / "egs" / "dns"
RATE = 8000


def test_every_stage_at_another_rate(tmp_path: Path) -> None:
    mini_corpus.main([str(tmp_path / "sources"), "--layout", "sources", "--train_utts", "16", "--test_utts", "4"])
    student = yaml.safe_load((DNS / "conf/mini/train_student.yaml").read_text())
    student.update(batch_size=2, num_iters_per_epoch=10, train_hours=0.02, num_workers=0)
    student["separator_conf"] = {"channels": 8, "blocks": 1, "heads": 2}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(student))
    (tmp_path / "kd.yaml").write_text("method: i2srf_tfckd\nmethod_conf: {middle_channels: 6}\n")
    options = {
        "speech_dir": tmp_path / "sources/speech", "noise_dir": tmp_path / "sources/noise",
        "speaker_regex": "([0-9]+)-", "teacher_config": tmp_path / "student.yaml",
        "student_config": tmp_path / "student.yaml",
        "distill_config": tmp_path / "kd.yaml", "with_baseline": "true", "ngpu": 0, "num_threads": 1, "fs": RATE,
        "nj": 1, "inference_nj": 1, "python": sys.executable, "local_data_opts": "--mixtures 2 --snr 5 10",
        **{name: tmp_path / name.removesuffix("dir") for name in ("datadir", "dumpdir", "expdir")},
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [DNS / "run.sh", *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    results = (tmp_path / "exp/RESULTS.md").read_text()
    assert "| student_kd |" in results and "NB-PESQ" in results and "undefined" not in results
    config = yaml.safe_load((tmp_path / "exp/student_kd/config.yaml").read_text())
    assert config["encoder_conf"]["n_fft"] == 256 and config["chunk_length"] == 2 * RATE
    assert config["mixing"]["noise"] == [f"{tmp_path}/data/noise.scp"] and config["mixing"]["second_noise"] == 0.3
    enhancer = load_enhancer(tmp_path / "exp/student_kd/export")
    noisy, fs = soundfile.read(next((tmp_path / "data/mixtures/test/noisy").glob("*.flac")), dtype="float32")
    assert fs == RATE and enhancer.fs == RATE and enhancer(noisy, fs).shape == noisy.shape
