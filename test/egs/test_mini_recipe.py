"""The recipe with the real commands, made tiny: through all stages, skipped when repeated, unharmed by kill -9."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import pytest
import torch
import yaml
from places import VOICEBANK

from i2srf_kd.bin import mini_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

MODELS = ("teacher", "student", "student_kd")


def processes_with(text: str) -> List[int]:
    """Processes whose command line holds ``text`` (words end with a null byte)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes() and b"i2srf_kd.bin.train\0" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended
    return found


class Recipe:
    """The VoiceBank recipe on a tiny corpus, with folders of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        mini_corpus.main([str(root / "corpus"), "--train_utts", "8", "--valid_utts", "4", "--test_utts", "3"])
        for name, channels in (("teacher", 12), ("student", 8)):
            options = yaml.safe_load((VOICEBANK / "conf/mini/train_student.yaml").read_text())
            options["separator_conf"] = {"channels": channels, "blocks": 1, "heads": 2}
            options.update(chunk_length=8000, batch_size=4, num_iters_per_epoch=30, max_epoch=2, quality_utts=2)
            options.update(save_interval_steps=7, scheduler_conf={"max_lr": 3e-3, "total_steps": 60, "pct_start": 0.1})
            (root / f"{name}.yaml").write_text(yaml.safe_dump(options))
        (root / "distill.yaml").write_text("method: i2srf_tfckd\nmethod_conf: {middle_channels: 6}\nweight: 1.0\n")

    def command(self, expdir: str, *more: str) -> List[str]:
        options = {
            "python": sys.executable,
            "corpus_dir": str(self.root / "corpus"),
            "datadir": str(self.root / "data"),
            "dumpdir": str(self.root / "dump"),
            "expdir": str(self.root / expdir),
            "teacher_config": str(self.root / "teacher.yaml"),
            "student_config": str(self.root / "student.yaml"),
            "distill_config": str(self.root / "distill.yaml"),
            "with_baseline": "true",
            "check_counts": "false",
            "nj": "2",
            "inference_nj": "1",
            "num_threads": "1",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [str(VOICEBANK / "run.sh"), *words, *more]

    def run(self, expdir: str, *more: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(expdir, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    def run_and_kill(self, expdir: str, model: str, wait: float) -> bool:
        """Start, kill -9 the training of ``model`` ``wait`` seconds after its start; whether it was still running."""
        folder = self.root / expdir / model
        process = subprocess.Popen(
            self.command(expdir, "--stage", "3", "--stop_stage", "5"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while not (folder / "environment.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline, f"{model} did not start"
            time.sleep(0.05)
        time.sleep(wait)
        trainers = processes_with(f"--output_dir\0{folder}\0")
        for trainer in trainers:
            os.kill(trainer, signal.SIGKILL)
        if not trainers:  # it was faster: stop the pipeline before it trains the next model
            process.terminate()
        process.wait(timeout=120)
        return bool(trainers)

    def weights(self, expdir: str) -> Dict[str, Dict[str, torch.Tensor]]:
        return {model: torch.load(self.root / expdir / model / "valid.compressed_spectrum.ave.pth") for model in MODELS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = Recipe(tmp_path_factory.mktemp("a recipe"))
    recipe.run("exp")
    return recipe


def test_ends_with_a_table_pictures_audio_and_an_export(finished: Recipe) -> None:
    exp = finished.root / "exp"
    table = (exp / "RESULTS.md").read_text()
    for system in ("noisy", *MODELS):
        assert f"| {system} |" in table.replace("`", ""), table
    assert "p226 and p287" in table and "--corpus_dir" in table
    assert len(list((exp / "examples_test").glob("*.png"))) == 3
    assert len(list((exp / "examples_test").glob("*_student_kd.wav"))) == 3
    assert (exp / "student_kd" / "export" / "model.onnx").is_file()


def test_the_second_run_skips_everything(finished: Recipe) -> None:
    start = time.monotonic()
    output = finished.run("exp")
    assert time.monotonic() - start < 30
    assert "already finished, skipped" in output and "WB-PESQ" in output


def test_other_options_for_a_finished_model_are_refused(finished: Recipe) -> None:
    output = finished.run("exp", "--stage", "5", "--seed", "1", code=2)
    assert "seed: 0 -> 1" in output


def test_the_exported_student_equals_the_enhanced_audio(finished: Recipe) -> None:
    import numpy as np
    import soundfile

    from i2srf_kd import load_enhancer

    enhancer = load_enhancer(finished.root / "exp" / "student_kd" / "export")
    lines = (finished.root / "dump/raw/test/wav.scp").read_text().splitlines()
    assert lines
    for line in lines:
        utt, path = line.split(maxsplit=1)
        mixture, fs = soundfile.read(path, dtype="float32")
        expected, _ = soundfile.read(finished.root / f"exp/student_kd/enhanced_test/wav/{utt}.wav", dtype="float32")
        np.testing.assert_allclose(enhancer(mixture, fs), expected, atol=1.1 / 32768)


def test_kill_9_changes_nothing(finished: Recipe) -> None:
    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")
    moments = random.Random(seed)
    hit = [finished.run_and_kill("killed", model, moments.uniform(0.2, 5.0)) for model in MODELS]
    assert any(hit), "no training was running at any of the moments"
    finished.run("killed", "--stage", "3", "--stop_stage", "5")
    expected, actual = finished.weights("exp"), finished.weights("killed")
    for model in MODELS:
        assert expected[model].keys() == actual[model].keys()
        for name, value in expected[model].items():
            assert torch.equal(value, actual[model][name]), f"{model}: {name}"
