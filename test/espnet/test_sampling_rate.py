"""The sampling rate of a corpus, from the data to the exported model."""

import argparse
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import speech_task
import torch
from waves import write_table

from i2srf_kd import load_enhancer
from i2srf_kd.audio.io import read_audio
from i2srf_kd.bin import corpus_stats, enhance_set, export, format_data, score
from i2srf_kd.data.kaldi_dir import read_audio_table
from i2srf_kd.espnet import task
from i2srf_kd.system.errors import UserError

SET_RATE = 24000  # of the recordings, before stage 2


def write_corpus(folder: Path) -> None:
    """Three sets of noise with a tone, as stage 1 leaves them."""
    random = np.random.default_rng(0)
    for name, utterances in (("train", 4), ("valid", 2), ("test", 2)):
        clean = {
            f"{name}{i}": 0.3 * np.sin(np.arange(SET_RATE) * 2 * np.pi * (300 + 100 * i) / SET_RATE)
            for i in range(utterances)
        }
        noisy = {utt: wave + random.normal(0, 0.1, len(wave)) for utt, wave in clean.items()}
        for table, waves in (("wav", noisy), ("spk1", clean)):
            write_table(folder / name, table, waves, SET_RATE)
        (folder / name / "utt2spk").write_text("".join(f"{utt} {utt}\n" for utt in clean))


@pytest.mark.slow
@pytest.mark.parametrize("fs", [8000, 16000, 48000])
def test_one_rate_from_stage_2_to_stage_7(tmp_path: Path, fs: int) -> None:
    write_corpus(tmp_path / "data")
    dump, stats = tmp_path / "dump", tmp_path / "stats"
    for name in ("train", "valid", "test"):
        assert format_data.main([f"{tmp_path}/data/{name}", f"{dump}/{name}", "--fs", str(fs)]) == 0
    sets = ["--sets", "train", "valid", "test"]
    assert corpus_stats.main(["--dump_dir", str(dump), *sets, "--out_dir", str(stats)]) == 0
    for name in ("train", "valid"):
        (dump / name / "speech_shape").write_text((stats / name / "speech_shape").read_text())

    short = ["--sample_rate", str(fs), "--max_epoch", "1", "--num_iters_per_epoch", "2", "--batch_size", "2"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert speech_task.train(speech_task.arguments(dump, teacher, *short, separator=speech_task.TEACHER)) == 0
    distill = {"method": "spkd", "weight": 0.1}
    command = speech_task.arguments(dump, student, *short, distill=distill, teacher=teacher)
    assert speech_task.train(command) == 0
    assert speech_task.train([*command, "--sample_rate", "11025", "--output_dir", str(tmp_path / "other")]) == 2

    enhanced = student / "enhanced_test"
    assert enhance_set.main([str(student), f"{dump}/test", str(enhanced)]) == 0
    metrics = ["--metrics", "si_sdr", "stoi"]
    assert score.main([f"{dump}/test", f"{enhanced}/spk1.scp", str(student / "scores"), *metrics]) == 0
    assert export.main([str(student), "-o", str(student / "export")]) == 0
    mixtures = read_audio_table(dump / "test" / "wav.scp")
    noisy, rate = read_audio(mixtures["test0"])
    assert rate == fs
    expected = load_enhancer(student).model.enhance_window(torch.from_numpy(noisy)[None])[0]
    written, rate = read_audio(enhanced / "wav" / "test0.wav")
    assert rate == fs
    np.testing.assert_allclose(written, expected, atol=1e-4)  # 16 bits; resampled would be another signal
    for model in (student, student / "export"):
        enhancer = load_enhancer(model, runtime="torch")
        assert enhancer.fs == fs
        np.testing.assert_allclose(enhancer(noisy, fs), expected, atol=1e-6)


@pytest.mark.parametrize(
    "config, ours, refused",
    [
        ({"distill": {}, "sample_rate": 8000}, 16000, True),
        ({"distill": {}, "sample_rate": 8000}, 8000, False),
        ({"sample_rate": 48000}, 16000, True),
        ({"sample_rate": 8000, "encoder_conf": {"default_fs": 48000}}, 16000, True),
        ({"sample_rate": 8000}, 16000, False),  # ESPnet's default
        ({}, 16000, False),
    ],
)
def test_teacher_of_another_rate_is_refused(config: Dict[str, Any], ours: int, refused: bool) -> None:
    def check() -> None:
        task._check_rates(argparse.Namespace(sample_rate=ours), argparse.Namespace(**config))

    if not refused:
        return check()
    with pytest.raises(UserError, match=f"teacher was trained at .* Hz, the student is to be trained at {ours} Hz"):
        check()
