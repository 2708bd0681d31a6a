"""What run.sh of egs/dns makes of folders and rates."""

import subprocess
from pathlib import Path
from typing import Dict

import pytest
from places import REPOSITORY

RUN = REPOSITORY / "egs" / "dns" / "run.sh"


def settled(*words: str, code: int = 0) -> Dict[str, str]:
    """The options of the pipeline, or the error."""
    done = subprocess.run([RUN, *words, "--show_options", "true"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines()) if code == 0 else {"error": done.stderr}


def test_folders_reach_stage_1_and_the_mixtures(tmp_path: Path) -> None:
    options = settled("--speech_dir", "/s", "--noise_dir", "/n", "--rir_dir", "/r", "--datadir", str(tmp_path))
    assert options["local_data_opts"].split() == "--fs 16000 --speech_dir /s --noise_dir /n --rir_dir /r".split()
    words = options["train_args"].split()
    assert f"noise=[{tmp_path}/noise.scp]" in words and f"responses=[{tmp_path}/rir.scp]" in words
    assert "--chunk_length" not in words and options["teacher_config"] == "conf/train_teacher.yaml"


@pytest.mark.parametrize("fs, n_fft", [("8000", "256"), ("24000", "768"), ("48000", "1536")])
def test_windows_and_chunks_follow_the_rate(fs: str, n_fft: str) -> None:
    options = settled("--speech_dir", "/s", "--noise_dir", "/n", "--fs", fs, "--train_args", "--chunk_length 7")
    words = options["train_args"].split()
    assert words.count(f"n_fft={n_fft}") == 2 and words.count(f"hop_length={int(n_fft) // 2}") == 2
    assert words[-4:] == ["--chunk_length", str(2 * int(fs)), "--chunk_length", "7"]  # the last one counts


def test_folders_of_the_challenge_are_found(tmp_path: Path) -> None:
    for name in ("clean", "noise", "impulse_responses"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
    words = settled("--corpus_dir", str(tmp_path))["local_data_opts"].split()
    for option, name in (("--speech_dir", "clean"), ("--noise_dir", "noise"), ("--rir_dir", "impulse_responses")):
        assert words[words.index(option) + 1] == str(tmp_path / "datasets" / name)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--speech_dir", "/a b", "--noise_dir", "/n"], "holds white space"),
        (["--corpus_dir", "/", "--speech_dir", "/s"], "give one of them"),
        (["--corpus_dir", "/"], "no folders clean and noise"),
        (["--speech_dir", "/s", "--noise_dir", "/n", "--fs", "44100"], "multiple of 1000 Hz"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(words, message) -> None:
    assert message in settled(*words, code=2)["error"]
