"""A tiny VoiceBank recipe in a folder of its own: states before each stage, and commands that go on from them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import yaml
from places import REPOSITORY, VOICEBANK
from reliability.losses import MODELS
from reliability.processes import MARK
from slurm_cluster import SlurmCluster

STEPS = 14  # of an epoch
EPOCHS = 2
SAVE_EVERY = 3  # steps
RANKS = 2  # of the trainings of several processes


def _listen_to_ctrl_c() -> None:
    """As in a terminal: what a shell starts in the background would ignore it, and all that it starts as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """One command line of the recipe that was started."""

    def __init__(self, command: Sequence[str], environment: Dict[str, str], output: Path) -> None:
        self.output = output
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, cwd=REPOSITORY, preexec_fn=_listen_to_ctrl_c,
            )  # fmt: skip
        self.started = time.time()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float = 400.0) -> int:
        """Exit code; below 0 when a signal ended it."""
        return self.process.wait(seconds)

    def text(self) -> str:
        """What it said on the terminal."""
        return self.output.read_text(encoding="utf-8", errors="replace")


class Workspace:
    """Everything below ``root``: ``corpus``, the working folder ``run``, and ``before/<variant>/<stage>``."""

    def __init__(self, root: Path, cluster: Optional[SlurmCluster] = None) -> None:
        self.root = root
        self.run_dir = root / "run"
        self.cluster = cluster
        self.mark = ""
        self.number = 0

    # The recipe -------------------------------------------------------------------------------------------------

    def write_inputs(self) -> None:
        """Corpus and configurations."""
        from i2srf_kd.bin import mini_corpus

        self.root.mkdir(parents=True, exist_ok=True)
        counts = ["--train_utts", "8", "--valid_utts", "4", "--test_utts", "4"]
        mini_corpus.main([str(self.root / "corpus"), *counts])
        for name, channels in (("teacher", 12), ("student", 8)):
            options: Dict[str, Any] = yaml.safe_load((VOICEBANK / "conf/mini/train_student.yaml").read_text())
            options["separator_conf"] = {"channels": channels, "blocks": 1, "heads": 2}
            options.update(chunk_length=4000, batch_size=2, num_iters_per_epoch=STEPS, max_epoch=EPOCHS)
            options.update(quality_utts=0, log_interval=1, save_interval_steps=SAVE_EVERY, use_tensorboard=False)
            options.update(scheduler_conf={"max_lr": 3e-3, "total_steps": STEPS * EPOCHS, "pct_start": 0.1})
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(options))
        (self.root / "distill.yaml").write_text("method: i2srf_tfckd\nmethod_conf: {middle_channels: 4}\n")
        # Shortest waits for Slurm: what is tried here is what happens, not how long it takes.
        (self.root / "slurm.yaml").write_text("default: {poll_seconds: 0.5, time: '1:00:00'}\n")

    def command(self, first: int, last: int, *more: str) -> List[str]:
        """The command line of stages ``first`` to ``last``."""
        options = {
            "python": sys.executable, "corpus_dir": self.root / "corpus", "datadir": self.run_dir / "data",
            "dumpdir": self.run_dir / "dump", "expdir": self.run_dir / "exp",
            "teacher_config": self.root / "teacher.yaml", "student_config": self.root / "student.yaml",
            "distill_config": self.root / "distill.yaml", "check_counts": "false", "nj": 2, "inference_nj": 2,
            "num_threads": 1, "ngpu": 0, "stage": first, "stop_stage": last, "results_title": "Tiny",
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [str(VOICEBANK / "run.sh"), *words, *more]

    def environment(self) -> Dict[str, str]:
        """That of all commands, with the mark of the present fault."""
        own = {
            MARK: self.mark, "I2SRF_SLURM_CONFIG": str(self.root / "slurm.yaml"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        return {**os.environ, **(self.cluster.environment if self.cluster else {}), **own}

    def start(self, command: Sequence[str]) -> Run:
        """Start a command line, with a file of its own for what it says."""
        self.number += 1
        return Run(command, self.environment(), self.root / "said" / f"{self.number}.txt")

    # States -----------------------------------------------------------------------------------------------------

    def before(self, stage: int, variant: str = "") -> Path:
        """The state before a stage, which is that after the one before it."""
        return self.root / f"before{variant}" / str(stage)

    def prepare(self, say: Any = print, last: int = 6) -> None:
        """Run the recipe undisturbed up to a stage, and keep the state before each and after the last; what is there
        already is not made again.
        """
        (self.root / "said").mkdir(parents=True, exist_ok=True)
        if self.before(last + 1).exists():
            return
        self.write_inputs()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.run_dir.mkdir()
        for stage in range(1, last + 1):
            if stage == 6:  # what is left for the stage: the student, examples, and the table
                self.undisturbed(6, "--score_systems", "noisy teacher")
            self._keep(self.before(stage))
            seconds = self.undisturbed(stage)
            (self.before(stage).parent / f"{stage}.json").write_text(json.dumps(seconds))
            say(f"undisturbed stage {stage}: {seconds['all']:.1f} s")
        self._keep(self.before(last + 1))

    def prepare_variant(self, stage: int, variant: str, more: Sequence[str], say: Any = print) -> None:
        """Run a stage undisturbed with further options that make something else, such as a training of several
        processes, which differs from that of one by rounding.
        """
        if self.before(stage + 1, variant).exists():
            return
        self.reset(stage)
        seconds = self.undisturbed(stage, *more)
        self._keep(self.before(stage + 1, variant))
        (self.before(stage, variant).parent / f"{stage}.json").write_text(json.dumps(seconds))
        say(f"undisturbed stage {stage}, {variant[1:]}: {seconds['all']:.1f} s")

    def undisturbed(self, stage: int, *more: str) -> Dict[str, float]:
        """Run a stage; seconds of all of it, and of its training."""
        run = self.start(self.command(stage, stage, *more))
        if run.wait() != 0:
            raise RuntimeError(f"the undisturbed stage {stage} failed:\n{run.text()[-3000:]}")
        seconds = {"all": time.time() - run.started}
        begun = self.run_dir / "exp" / MODELS.get(stage, "") / "environment.json"
        if stage in MODELS and begun.exists():
            seconds["work"] = time.time() - begun.stat().st_mtime
        return seconds

    def seconds(self, stage: int, variant: str = "") -> Dict[str, float]:
        """What :meth:`undisturbed` took."""
        return json.loads((self.before(stage, variant).parent / f"{stage}.json").read_text())

    def reset(self, stage: int) -> None:
        """Let the working folder be as before a stage, and give it a new mark."""
        self.mark = uuid.uuid4().hex
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.copytree(self.before(stage), self.run_dir, symlinks=True)

    def _keep(self, place: Path) -> None:
        partial = place.with_name(place.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.run_dir, partial, symlinks=True)
        partial.rename(place)

    # What the present run left ----------------------------------------------------------------------------------

    def log(self, stage: int, earlier: bool = False) -> str:
        """Log of the training of a stage, or of the run before it."""
        path = self.run_dir / "exp" / "logs" / f"train_{MODELS[stage]}.log{'.1' if earlier else ''}"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def experiment(self, stage: int) -> Path:
        """Folder of the training of a stage."""
        return self.run_dir / "exp" / MODELS[stage]
