"""The L3DAS23 recipe for real, as small as it goes: from simulated rooms to the table of one and two microphones."""

import subprocess
import sys
from pathlib import Path
from typing import List

import numpy as np
import pytest
import soundfile
from places import REPOSITORY

from i2srf_kd import load_enhancer
from i2srf_kd.bin import enhance, mini_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = REPOSITORY / "egs" / "l3das23"
MODELS = ("teacher", "student", "student_kd")


def run(root: Path) -> str:
    options = {
        "mini": "true",
        "num_mics": "1 2",
        "python": sys.executable,
        "corpus_dir": root / "corpus",
        "datadir": root / "data",
        "dumpdir": root / "dump",
        "expdir": root / "exp",
        "train_args": "--max_epoch 1 --num_iters_per_epoch 4 --quality_utts 1",
        "nj": "1",
        "inference_nj": "1",
        "num_threads": "1",
        "ngpu": "0",
    }
    words: List[str] = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [RECIPE / "run.sh", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("a recipe")
    sizes = ("--train_utts", "8", "--valid_utts", "2", "--test_utts", "2", "--layout", "l3das23")
    mini_corpus.main([str(root / "corpus"), *sizes])
    run(root)
    return root


def mixture(root: Path, mics: int):
    utt, path = (root / f"dump/mics{mics}/raw/test/wav.scp").read_text().splitlines()[0].split(maxsplit=1)
    return utt, path, soundfile.read(path, dtype="float32")[0]


def test_one_table_has_every_system_of_both(finished: Path) -> None:
    table = (finished / "exp" / "RESULTS.md").read_text()
    for system in ("noisy", *(f"{model}_{mics}" for mics in ("A", "AB") for model in MODELS)):
        assert table.count(f"\n| {system} |") == 1, table
    for difference in ("student_kd_A - student_A", "student_kd_AB - student_AB", "student_kd_AB - student_kd_A"):
        assert f"| {difference} |" in table
    for mics in (1, 2):
        assert (finished / f"exp/mics{mics}/RESULTS.md").is_file()
        assert len(list((finished / f"exp/mics{mics}/examples_test").glob("*.png"))) == 2
    report = (finished / "exp/mics2/stats/corpus_report.md").read_text()
    assert "| channels | 8 | 8 | 8 |" in report


def test_the_second_run_skips_everything(finished: Path) -> None:
    output = run(finished)
    assert "already finished, skipped" in output and "(trainer:" not in output
    assert f"already finished, skipped: {finished / 'exp'} ({finished / 'exp' / '.done_results'})" in output


@pytest.mark.parametrize("mics", [1, 2])
def test_exported_student_enhances_w_of_a(finished: Path, mics: int, tmp_path: Path) -> None:
    export = finished / f"exp/mics{mics}/student_kd/export"
    utt, path, noisy = mixture(finished, mics)
    enhancer = load_enhancer(export)
    assert noisy.shape[1] == enhancer.num_mics == 4 * mics
    expected, fs = soundfile.read(finished / f"exp/mics{mics}/student_kd/enhanced_test/wav/{utt}.wav", dtype="float32")
    np.testing.assert_allclose(enhancer(noisy, fs), expected, atol=1.1 / 32768)
    assert enhance.main([str(export), path, "-o", str(tmp_path / "enhanced")]) == 0
    (written,) = (tmp_path / "enhanced").rglob(f"{utt}*")
    np.testing.assert_allclose(soundfile.read(written)[0], expected, atol=1.1 / 32768)
    for channel in range(noisy.shape[1]):
        altered = noisy.copy()
        altered[:, channel] = 0.0
        assert np.abs(enhancer(altered, fs) - enhancer(noisy, fs)).max() > 1e-6, f"channel {channel} is not used"


def test_one_microphone_means_a(finished: Path) -> None:
    a, both = mixture(finished, 1)[2], mixture(finished, 2)[2]
    np.testing.assert_array_equal(both[:, :4], a)
    enhancer = load_enhancer(finished / "exp/mics1/student_kd/export")
    np.testing.assert_array_equal(enhancer(both, 16000), enhancer(a, 16000))
