"""ablate.sh with real trainings, made tiny: kill -9 at any moment, the same command again, the same table."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import pytest
import yaml
from places import VOICEBANK

from i2srf_kd.bin import mini_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

GRID = {
    "seeds": [0],
    "baseline": "undistilled",
    "cells": {
        "undistilled": {"distill": None},
        "i2srf": {"distill": {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 4}}},
    },
}


class Study:
    """A tiny corpus, teacher and grid; the ablation runs in folders of the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        mini_corpus.main([str(root / "corpus"), "--train_utts", "8", "--valid_utts", "4", "--test_utts", "3"])
        for name in ("teacher", "student"):
            options = yaml.safe_load((VOICEBANK / "conf/mini/train_student.yaml").read_text())
            options["separator_conf"] = {"channels": 8, "blocks": 1, "heads": 2}
            options.update(chunk_length=4000, batch_size=4, num_iters_per_epoch=8, max_epoch=2, quality_utts=0)
            options.update(save_interval_steps=3, scheduler_conf={"max_lr": 3e-3, "total_steps": 16})
            (root / f"{name}.yaml").write_text(yaml.safe_dump(options))
        (root / "tiny.yaml").write_text(yaml.safe_dump(GRID))

    def command(self, expdir: str) -> List[str]:
        options: Dict[str, object] = {
            "grid": self.root / "tiny.yaml",
            "python": sys.executable,
            "corpus_dir": self.root / "corpus",
            "datadir": self.root / "data",
            "dumpdir": self.root / "dump",
            "expdir": self.root / expdir,
            "inference_nj": 1,
            "teacher_config": self.root / "teacher.yaml",
            "student_config": self.root / "student.yaml",
            "teacher_exp": self.root / "teacher",
            "check_counts": "false",
            "nj": 1,
            "num_threads": 1,
        }
        return [
            str(VOICEBANK / "ablate.sh"),
            *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
        ]

    def start(self, expdir: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(expdir),
            env={**os.environ, "ABLATION_TEST": f"{self.root}/{expdir}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, expdir: str) -> None:
        process = self.start(expdir)
        output, _ = process.communicate()
        assert process.returncode == 0, output[-4000:]

    def processes(self, expdir: str) -> List[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"ABLATION_TEST={self.root}/{expdir}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def scores(self, expdir: str) -> dict:
        """What the table says, without what differs between any two runs (times, dates, places)."""
        folder = self.root / expdir / "ablation" / "tiny"
        results = json.loads((folder / "results_test.json").read_text())
        cells = [
            {key: cell[key] for key in ("name", "metrics", "differences", "gap_closed")}
            | {"steps": cell["training"]["steps"]}
            for cell in results["cells"]
        ]
        return {"cells": cells, "noisy": results["noisy"]["metrics"], "teacher": results["teacher"]["metrics"]}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = Study(tmp_path_factory.mktemp("a study"))
    options = study.command("exp")
    given = options[options.index("--python") : options.index("--teacher_exp")]  # without --grid and --teacher_exp
    shared = [str(VOICEBANK / "run.sh"), *given, "--check_counts", "false", "--nj", "1", "--num_threads", "1"]
    done = subprocess.run([*shared, "--stop_stage", "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (study.root / "exp" / "teacher").rename(study.root / "teacher")
    study.run("exp")
    return study


def test_kill_9_changes_no_number(study: Study) -> None:
    seed = random.randrange(10**6)
    print(f"moment drawn with seed {seed}")
    process = study.start("killed")
    folder = study.root / "killed" / "ablation" / "tiny"
    deadline = time.monotonic() + 600
    while not list(folder.glob("*/seed*/environment.json")):
        assert time.monotonic() < deadline and process.poll() is None, "no training has started"
        time.sleep(0.05)
    time.sleep(random.Random(seed).uniform(0.0, 6.0))
    assert study.processes("killed"), "it was faster than the chosen moment"
    while study.processes("killed"):
        for number in study.processes("killed"):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.communicate()
    study.run("killed")
    assert study.scores("killed") == study.scores("exp")
