"""egs/l3das23/local/compare_channels.sh with a stand-in for the ablations: what it asks of them, and its table."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

from i2srf_kd.results.scores import write_scores

ARMS = {"exp/mics2": 0.3, "exp/mics1": 0.2, "exp/w/mics1": 0.1}

ABLATE = """#!{python} -S
import json, sys
with open("asked.json", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def write_arm(folder: Path, gain: float) -> None:
    """The scores of noisy, teacher and two seeds of both cells."""
    places = {"noisy/scored_test": 0.0, "teacher/scored_test": 2 * gain}
    for seed in (0, 1):
        for cell, more in (("undistilled", 0), ("i2srf_tfckd", 0.05)):
            places[f"ablation/compare/{cell}/seed{seed}/scored_test"] = gain + more + 0.01 * seed
    for name, value in places.items():
        rows = [{"utt": f"u{i}", "seconds": 1.0, "pesq_wb": 1.5 + 0.1 * i + value} for i in range(4)]
        (folder / name).mkdir(parents=True)
        write_scores(folder / name, rows, ["pesq_wb"], fs=16000)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "a recipe"
    (folder / "local").mkdir(parents=True)
    shutil.copy(REPOSITORY / "egs/l3das23/local/compare_channels.sh", folder / "local")
    (folder / "path.sh").write_text(f'python() {{ "{sys.executable}" "$@"; }}\n')
    stub = folder / "ablate.sh"
    stub.write_text(ABLATE.format(python=sys.executable))
    for arm, gain in ARMS.items():
        write_arm(folder / arm, gain)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.slow
def test_three_ablations_and_one_table_of_all_seeds(recipe, tmp_path):
    command = [str(recipe / "local/compare_channels.sh"), "--speech_dir", "my speech", "--nj", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    common = ["--grid", "conf/ablation/compare.yaml", "--speech_dir", "my speech", "--nj", "2", "--num_mics"]
    assert [json.loads(line) for line in (recipe / "asked.json").read_text().splitlines()] == [
        [*common, "2"],
        [*common, "1"],
        [*common, "1", "--train_args", "--separator_conf num_mics=1", "--expdir", "exp/w"],
    ]
    table = json.loads((recipe / "exp/channels.json").read_text())
    means = {system["name"]: system["metrics"]["pesq_wb"]["mean"] for system in table["systems"]}
    assert means["noisy"] == pytest.approx(1.65) and means["teacher_AB"] == pytest.approx(2.25)
    assert means["undistilled_W"] == pytest.approx(1.755) and means["i2srf_tfckd_A"] == pytest.approx(1.905)
    differences = {entry["name"]: entry["metrics"]["pesq_wb"] for entry in table["differences"]}
    assert len(differences) == 12 and differences["i2srf_tfckd_AB - undistilled_AB"]["n_seeds"] == 2
    assert differences["i2srf_tfckd_W - undistilled_W"]["mean"] == pytest.approx(0.05)
    assert differences["undistilled_AB - undistilled_A"]["mean"] == pytest.approx(0.1)
    assert differences["undistilled_AB - undistilled_W"]["mean"] == pytest.approx(0.2)
    text = (recipe / "exp/CHANNELS.md").read_text()
    assert "i2srf_tfckd_AB (2)" in text and "local/compare_channels.sh --speech_dir my\\ speech --nj 2" in text
