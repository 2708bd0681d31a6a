"""The commands of ESPnet's ``enh.sh``, from statistics to a packed model, through ``i2srf_kd.espnet.run`` alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import pytest
import soundfile
import toy
import yaml
from places import REPOSITORY
from speech_task import CRITERION

from i2srf_kd import load_enhancer

pytestmark = pytest.mark.slow

STFT = {"n_fft": 128, "hop_length": 64}
CONFIG: Dict[str, Any] = {
    "encoder": "stft", "encoder_conf": STFT, "decoder": "stft", "decoder_conf": STFT, "separator": "dpdcrn",
    "separator_conf": {"channels": 8, "heads": 2}, "criterions": [CRITERION], "max_epoch": 2, "optim": "adam",
    "optim_conf": {"lr": 1e-3}, "sample_rate": 16000, "num_workers": 0, "num_att_plot": 0,
    "use_matplotlib": False, "batch_size": 4,
}  # fmt: skip
SEQUENCES = {"iterator_type": "sequence", "batch_type": "unsorted"}  # of ESPnet's own trainer
CHUNKS = {"iterator_type": "chunk", "chunk_length": 2000, "quality_utts": 0}  # of this project's
DISTILLATION = {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 4}}
PYTHON = f"{sys.executable} -m i2srf_kd.espnet.run"  # what enh.sh is given as --python
RUN_PL = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift 2; done
log="$1"; shift
exec "$@" >"$log" 2>&1
"""


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """``${python} -m ...`` of the recipe in ``folder``."""
    done = subprocess.run(command(*words), cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def command(*words: str) -> List[str]:
    return [*PYTHON.split(), "-m", *words]


def environment(folder: Path) -> Dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{folder}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def data(*sets: str) -> List[str]:
    words = []
    for name in sets:
        for signal, scp in (("speech_mix", "wav"), ("speech_ref1", "spk1")):
            words += [f"--{name}_data_path_and_name_and_type", f"dump/{name}/{scp}.scp,{signal},sound"]
    return words


def shapes(*sets: str) -> List[str]:
    signals = [(name, signal) for name in sets for signal in ("speech_mix", "speech_ref1")]
    return [word for name, signal in signals for word in (f"--{name}_shape_file", f"exp/stats/{name}/{signal}_shape")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder after stages 1 to 5."""
    folder = tmp_path_factory.mktemp("enh1")
    longer = {name: [length // 64 * 64 + 6400 for length in lengths] for name, lengths in toy.LENGTHS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "LENGTHS", longer)
        toy.write_data(folder / "dump")
    (folder / "run.pl").write_text(RUN_PL)
    (folder / "run.pl").chmod(0o755)
    for name, more in (("espnet", SEQUENCES), ("ours", CHUNKS)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**CONFIG, **more}))
    (folder / "kd.yaml").write_text(yaml.safe_dump(DISTILLATION))
    # A distillation needs the same statistics, and no teacher for them.
    for name, more in (("espnet", ()), ("ours", ("--distill_config", "kd.yaml", "--teacher_exp", "absent"))):
        words = ["--collect_stats", "true", *data("train", "valid"), "--config", f"{name}.yaml", *more]
        words += ["--train_shape_file", "dump/train/wav.scp", "--valid_shape_file", "dump/valid/wav.scp"]
        run(folder, "espnet2.bin.enh_train", *words, "--output_dir", f"exp/stats/logdir/{name}.1")
    collected = [path.read_text() for path in sorted((folder / "exp/stats/logdir").glob("*/train/speech_mix_shape"))]
    assert len(collected) == 2 and collected[0] == collected[1]
    merged = ["--input_dir", "exp/stats/logdir/espnet.1", "--output_dir", "exp/stats"]
    run(folder, "espnet2.bin.aggregate_stats_dirs", *merged)
    return folder


def train(recipe: Path, exp: str, processes: int, *options: str) -> None:
    """Stage 6."""
    words = ["espnet2.bin.enh_train", *data("train", "valid"), *shapes("train", "valid"), "--fold_length", "80000"]
    words += ["--fold_length", "80000", "--resume", "true", "--output_dir", exp, *options]
    (recipe / exp).mkdir()
    if processes == 1:
        launch = f"espnet2.bin.launch --cmd run.pl --log {exp}/train.log --ngpu 0 --num_nodes 1 --init_file_prefix"
        launch += f" {exp}/.dist_init_ --multiprocessing_distributed true --"
        run(recipe, *launch.split(), *command(*words))
        return
    ranks = [
        "--ngpu",
        "0",
        "--multiprocessing_distributed",
        "false",
        "--dist_backend",
        "gloo",
        "--dist_world_size",
        "2",
    ]
    ranks += ["--dist_master_addr", "localhost", "--dist_master_port", str(toy.free_port())]
    started = [
        subprocess.Popen(
            command(*words, *ranks, "--dist_rank", str(rank)), cwd=recipe, env=environment(recipe),
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=280)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-2000:] for text in said)


def check_the_rest(recipe: Path, exp: str) -> None:
    """Inference, scoring and packing: stages 7, 8 and the last but one."""
    model = ["--train_config", f"{exp}/config.yaml", "--model_file", f"{exp}/valid.loss.ave.pth"]
    run(
        recipe, "espnet2.bin.enh_inference", "--ngpu", "0", "--fs", "16k", "--key_file", "dump/valid/wav.scp", *model,
        "--data_path_and_name_and_type", "dump/valid/wav.scp,speech_mix,sound", "--output_dir", f"{exp}/enhanced",
    )  # fmt: skip
    tables = dict(line.split() for line in (recipe / exp / "enhanced" / "spk1.scp").read_text().splitlines())
    mixtures = dict(line.split() for line in (recipe / "dump/valid/wav.scp").read_text().splitlines())
    assert tables.keys() == mixtures.keys()
    run(recipe, "espnet2.bin.pack", "enh", *model, "--outpath", f"{exp}/packed.zip")
    enhancer = load_enhancer(recipe / exp / "packed.zip")
    for utterance, path in mixtures.items():
        noisy, fs = soundfile.read(recipe / path, dtype="float32")
        theirs = soundfile.read(recipe / tables[utterance], dtype="float32")[0]
        np.testing.assert_allclose(theirs, enhancer(noisy, fs), atol=2**-15)
    words = ["--key_file", "dump/valid/wav.scp", "--output_dir", f"{exp}/scoring", "--ref_scp", "dump/valid/spk1.scp"]
    run(recipe, "espnet2.bin.enh_scoring", *words, "--inf_scp", f"{exp}/enhanced/spk1.scp", "--ref_channel", "0")
    assert (recipe / exp / "scoring" / "SI_SNR_spk1").is_file()


def test_on_one_process(recipe: Path) -> None:
    train(recipe, "exp/enh_plain", 1, "--config", "espnet.yaml")
    check_the_rest(recipe, "exp/enh_plain")


def test_on_two_processes_and_in_chunks(recipe: Path) -> None:
    """ESPnet's trainer makes a model, and this project's one that learns from it."""
    chunks = ["--iterator_type", "chunk", "--chunk_length", "2000"]
    train(recipe, "exp/enh_teacher", 2, "--config", "espnet.yaml", *chunks)
    learning: Sequence[str] = ("--distill_config", "kd.yaml", "--teacher_exp", "exp/enh_teacher")
    train(recipe, "exp/enh_student", 2, "--config", "ours.yaml", *learning)
    check_the_rest(recipe, "exp/enh_student")
    by_espnet, by_ours = (recipe / "exp" / name / "metrics.jsonl" for name in ("enh_teacher", "enh_student"))
    assert by_ours.is_file() and not by_espnet.exists()
