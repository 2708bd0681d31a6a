"""egs/voicebank/local/side_by_side.sh: a foreign network through the real commands, in two steps of training."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from places import REPOSITORY, VOICEBANK

from i2srf_kd.bin import mini_corpus

SCRIPT = VOICEBANK / "local" / "side_by_side.sh"
TRAINING = "--num_iters_per_epoch 2 --max_epoch 1 --scheduler none --quality_utts 0 --batch_size 2 --chunk_length 8000"


def run(*words: str, code: int = 0, compiled: Optional[Path] = None) -> str:
    """What the script says.

    Args:
        words: its options.
        code: exit code that is expected.
        compiled: folder for Python's compiled modules. Five commands import ESPnet; where modules cannot be kept beside
            their source, each would compile all of it.
    """
    command = [str(SCRIPT), "--python", sys.executable, *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    if compiled is not None:
        environment["PYTHONPYCACHEPREFIX"] = str(compiled)
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == code, done.stdout[-4000:]
    return done.stdout


def test_a_network_without_configuration_is_refused_before_any_work(tmp_path):
    output = run("--systems", "nothing", "--expdir", str(tmp_path / "exp"), code=2)
    assert "conf/side_by_side/nothing.yaml: no such file" in output and not (tmp_path / "exp").exists()


def test_help_shows_its_options_and_those_of_the_pipeline():
    output = run("--help")
    assert "--cost_only" in output and "--corpus_dir" in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_foreign_network_beside_the_mixture(tmp_path):
    mini_corpus.main([str(tmp_path / "corpus"), "--train_utts", "8", "--valid_utts", "2", "--test_utts", "2"])
    folders = [f"--{name}={tmp_path / name[:-3]}" for name in ("datadir", "dumpdir", "expdir")]
    words = [*folders, "--corpus_dir", str(tmp_path / "corpus"), "--systems", "dccrn_tiny", "--cost_only", ""]
    words += ["--nj", "1", "--inference_nj", "1", "--num_threads", "1", "--train_args", TRAINING]
    words += ["--bench_utterances", "1", "--bench_repeats", "1", "--score_args", "--metrics pesq_wb stoi si_sdr"]
    run(*words, compiled=tmp_path / "compiled")
    table = tmp_path / "exp" / "SIDE_BY_SIDE.md"
    rows = {row["name"]: row for row in json.loads(table.with_name("side_by_side.json").read_text())["systems"]}
    assert list(rows) == ["noisy", "dccrn_tiny"]
    cost = rows["dccrn_tiny"]["complexity"]
    assert cost["parameters"] == 157325 and cost["rtf_1"] > 0 and cost["rtf_2"] > 0 and cost["peak_mb"] > 0
    assert set(rows["dccrn_tiny"]["metrics"]) == {"pesq_wb", "stoi", "si_sdr"} and "| 157,325 |" in table.read_text()

    before = table.with_name("cost.json").stat().st_mtime_ns
    output = run(*words, compiled=tmp_path / "compiled")
    assert "already finished, skipped" in output and table.with_name("cost.json").stat().st_mtime_ns == before
