"""ablate.sh with stand-ins for training, enhancement and scoring: what runs, what is skipped, what survives kill -9."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
import slurm_cluster
from places import REPOSITORY, VOICEBANK

from i2srf_kd.ablation import ablation as study
from i2srf_kd.bin import ablate
from i2srf_kd.system.errors import UserError

# Plays `python`: runs the ablation and run_jobs for real and pretends the rest.
STUB = r"""#!{python} -S
import json, os, sys, time, zlib
from pathlib import Path

args = sys.argv[1:]
name = args[1].rpartition(".")[2] if args[0] == "-m" else Path(args[0]).name
if name in ("ablate", "ablate_run", "step"):
    os.execv("{python}", ["{python}", *args])
if name == "run_jobs":
    options = [] if "slurm" in args else ["-S"]  # Slurm's settings are in YAML
    os.execv("{python}", ["{python}", *options, *args])
rest = args[2:] if args[0] == "-m" else args[1:]

def after(option):
    return rest[rest.index(option) + 1] if option in rest else None

def touch(path, text="x\n"):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

what = name + ":" + (after("--output_dir") or "")
with open(os.environ["STUB_RECORD"], "a") as record:
    record.write(json.dumps([what, rest]) + "\n")
if name == "train":
    folder = Path(after("--output_dir"))
    touch(folder / "options.yaml")
    slow = os.environ.get("STUB_SLOW", "")
    if slow and slow in what:
        touch(os.environ["STUB_RECORD"] + ".ready")
        time.sleep(60)
    failing = os.environ.get("STUB_FAIL", "")
    if failing and failing in what:
        print("the training says why")
        sys.exit(3)
    touch(folder / "config.yaml")
    line = {"epoch": 1, "phase": "train", "total_count": 5, "train_time": 0.5}
    touch(folder / "metrics.jsonl", json.dumps(line) + "\n")
elif name == "data.py":
    for folder in ("train", "valid", "test"):
        for table in ("wav.scp", "spk1.scp"):
            touch(Path(after("--data_dir"), folder, table), "".join(f"{u} /{u}.wav\n" for u in "abcd"))
elif name == "format_data" and "--shard" not in rest:
    touch(Path(rest[1], "wav.scp"), "".join(f"{u} /{u}.flac\n" for u in "abcd"))
elif name == "corpus_stats":
    touch(Path(after("--out_dir"), "corpus_report.md"), "| the corpus |\n")
elif name == "enhance_set":
    touch(Path(rest[2], "wav.scp"))
elif name == "score" and "--shard" not in rest:
    out = Path(rest[2])
    rows = [(u, 2 + zlib.crc32(f"{out}{u}".encode()) / 2**32) for u in "abcd"]
    touch(out / "scores.csv", "utt,seconds,pesq_wb\n" + "".join(f"{u},1.0,{v!r}\n" for u, v in rows))
    mean = sum(v for _, v in rows) / 4
    touch(out / "summary.json", json.dumps({"metrics": {"pesq_wb": {"mean": mean}}, "seconds": 4.0}))
"""


@contextmanager
def _outputs_in(descriptor: int) -> Iterator[None]:
    """Both outputs of this process and of what it starts go to a file; pytest's own capture is put back."""
    kept = [os.dup(number) for number in (1, 2)]
    streams = sys.stdout, sys.stderr
    with open(descriptor, "w", closefd=False) as stream:
        for number in (1, 2):
            os.dup2(descriptor, number)
        sys.stdout = sys.stderr = stream
        try:
            yield
        finally:
            stream.flush()
            sys.stdout, sys.stderr = streams
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


GRID = """
seeds: [0, 1]
baseline: plain
compare_with: [half]
cells:
  plain: {distill: null}
  half: {distill: conf/distill/i2srf_tfckd.yaml, overrides: {weight: 0.5}}
"""
RUNS = [f"{cell}/seed{seed}" for seed in (0, 1) for cell in ("plain", "half")]


class Recipe:
    """A recipe in a repository of its own, whose path has a space in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        repository = root / "a repository"
        shutil.copytree(REPOSITORY / "egs" / "TEMPLATE", repository / "egs" / "TEMPLATE")
        (repository / "i2srf_kd").symlink_to(REPOSITORY / "i2srf_kd")
        self.folder = repository / "egs" / "corpus"
        for name in ("run.sh", "ablate.sh", "cmd.sh", "path.sh"):
            self.write(name, (VOICEBANK / name).read_text())
            (self.folder / name).chmod(0o755)
        for name in ("local/data.py", "conf/mini/train_teacher.yaml", "conf/mini/train_student.yaml"):
            self.write(name, "# of the test\n")
        self.write("conf/distill/i2srf_tfckd.yaml", "method: i2srf_tfckd\nmethod_conf: {middle_channels: 4}\n")
        self.write("grid.yaml", GRID)
        self.stub = root / "stub python"
        self.stub.write_text(STUB.replace("{python}", sys.executable))
        self.stub.chmod(self.stub.stat().st_mode | stat.S_IXUSR)
        self.record = root / "record"
        self.results = self.folder / "mini/exp/ablation/grid"

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def words(self, *options: str) -> List[str]:
        return ["--python", str(self.stub), "--grid", "grid.yaml", "--mini", "true", "--nj", "1", *options]

    def environment(self, **more: str) -> dict:
        kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
        return {**kept, "STUB_RECORD": str(self.record), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}

    def start(self, *options: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [str(self.folder / "ablate.sh"), *self.words(*options)],
            cwd=self.root,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str, code: int = 0, **environment: str) -> str:
        """The command in this process, which has imported torch already; what it and its programs print."""
        log = self.root / "output"
        with pytest.MonkeyPatch.context() as patch, log.open("w+") as output:
            patch.chdir(self.folder)
            for name, value in self.environment(**environment).items():
                patch.setenv(name, value)
            patch.setenv("PYTHONPATH", str(REPOSITORY))
            with _outputs_in(output.fileno()):
                try:
                    found = ablate.main(self.words(*options))
                except UserError as error:
                    found = 2
                    print(f"error: {error}")
        assert found == code, log.read_text()
        return log.read_text()

    def calls(self) -> List[list]:
        """``[command, arguments]`` since the last question."""
        if not self.record.exists():
            return []
        calls = [json.loads(line) for line in self.record.read_text().splitlines()]
        self.record.unlink()
        return calls

    def trained(self) -> List[str]:
        """Folders that were trained since the last question."""
        return [c.partition(":mini/exp/")[2].removeprefix("ablation/grid/") for c, _ in self.calls() if "train:" in c]

    def table(self, test_set: str = "test") -> dict:
        results = json.loads((self.results / f"results_{test_set}.json").read_text())
        for varying in ("environment", "command"):
            del results[varying]
        return results

    def processes(self) -> List[int]:
        """Everything that an ablation has started here and that still runs."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"STUB_RECORD={self.record}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it has just ended, or is another user's
        return found

    def wait_for(self, what: str, condition, process: Optional[subprocess.Popen] = None) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, f"{what}: not within two minutes"
            assert process is None or process.poll() is None, process.communicate()[0]
            time.sleep(0.02)


@pytest.fixture(scope="module")
def _finished_once(tmp_path_factory):
    recipe = Recipe(tmp_path_factory.mktemp("finished"))
    output = recipe.run()
    return recipe, output, recipe.calls()


@pytest.fixture
def finished(_finished_once, tmp_path) -> Recipe:
    """A recipe whose ablation has finished."""
    recipe = Recipe(tmp_path)
    shutil.copytree(_finished_once[0].folder / "mini", recipe.folder / "mini")
    return recipe


@pytest.fixture
def prepared(finished) -> Recipe:
    """A recipe whose stages 1 to 4 have finished."""
    shutil.rmtree(finished.results)
    return finished


def words_for_the_recipe(recipe: Recipe) -> List[str]:
    """The options of the command that are those of run.sh."""
    return ablate.get_parser().parse_known_args(recipe.words())[1]


def option(arguments: list, name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_shared_stages_run_once_and_every_cell_is_trained_and_scored(_finished_once):
    recipe, output, calls = _finished_once
    trained = {Path(a[a.index("--output_dir") + 1]): a for c, a in calls if c.startswith("train:")}
    root = Path("mini/exp/ablation/grid")
    assert set(trained) == {Path("mini/exp/teacher"), *(root / run for run in RUNS)}
    for run in RUNS:
        arguments = trained[root / run]
        assert (
            option(arguments, "--seed") == run[-1] and option(arguments, "--config") == "conf/mini/train_student.yaml"
        )
        if run.startswith("plain"):
            assert "--distill_config" not in arguments and "--teacher_exp" not in arguments
        else:
            assert option(arguments, "--distill_config") == str(root / "half/distill.yaml")
            assert option(arguments, "--teacher_exp") == "mini/exp/teacher"
    assert "weight: 0.5" in (recipe.results / "half/distill.yaml").read_text()
    scored = [a[2] for c, a in calls if c == "score:" and "--shard" not in a]
    assert sorted(scored) == sorted(
        f"{folder}/scored_test" for folder in ("mini/exp/noisy", "mini/exp/teacher", *(str(root / run) for run in RUNS))
    )
    # nothing of the recipe's own results is touched
    assert not {c for c, _ in calls} & {"results:", "examples:", "export:"}
    results = recipe.table()
    assert [seed["state"] for cell in results["cells"] for seed in cell["seeds"]] == ["finished"] * 4
    assert "| half | 2 |" in output and "results_test.md" in output


def test_the_second_run_skips_everything(finished):
    before = finished.table()
    output = finished.run()
    assert finished.calls() == []
    assert finished.table() == before
    assert "4 of 4 runs are finished and are not run again" in output and "JOB=" not in output


def test_only_what_is_missing_is_started(finished):
    (finished.results / "half/seed1/.done_test").unlink()
    output = finished.run("--inference_nj", "2", "--num_threads", "3")  # which change no result
    assert "3 of 4 runs" in output and re.findall(r"JOB=\d: .*", output) == ["JOB=1: half, seed 1"]
    assert {a[2] for c, a in finished.calls() if c == "score:"} == {"mini/exp/ablation/grid/half/seed1/scored_test"}


def test_runs_are_started_again_where_what_they_read_has_changed(finished):
    """The pipeline then says what it makes of that: trained models are never thrown away unasked."""
    finished.write("conf/mini/train_student.yaml", "# another\n")
    output = finished.run(code=2)
    assert "JOB=4" in output and "was not run again, its results are kept" in output


def test_a_grid_is_one_array_with_a_cap_under_slurm(prepared, tmp_path):
    """What is submitted, seen by a stand-in that refuses."""
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\nexit 1\n")
    sbatch.chmod(0o755)
    path = f"{sbatch.parent}:{os.environ['PATH']}"
    # The stages before the grid are finished: nothing else is submitted.
    prepared.run("--cmd_backend", "slurm", "--max_jobs", "3", "--cells", "half", code=2, PATH=path)
    lines = (prepared.results / "logs/run.slurm/job.sbatch").read_text().splitlines()
    assert {"#SBATCH --array=1-2%3", "#SBATCH --job-name=i2srf.corpus.ablation_grid"} <= {*lines}


def test_the_validation_set_is_scored_beside_the_test_set(finished):
    finished.run("--test_sets", "valid", "--seeds", "0")
    calls = finished.calls()
    assert not [c for c, _ in calls if c.startswith("train:") or c in ("data.py:", "format_data:", "corpus_stats:")]
    assert {a[0] for c, a in calls if c == "score:"} == {"mini/dump/raw/valid"}
    assert "validation set `valid`" in (finished.results / "results_valid.md").read_text()
    assert finished.table("valid")["is_validation"] and not finished.table()["is_validation"]
    assert finished.table("valid")["cells"][0]["seeds"][0]["scored"] == "plain/seed0/scored_valid"


@pytest.mark.slow
def test_a_failing_cell_does_not_stop_the_others_and_is_named(finished):
    for run in RUNS[1:]:
        shutil.rmtree(finished.results / run)
    output = finished.run("--max_jobs", "1", code=1, STUB_FAIL="half/seed0")
    assert "error: half, seed 0 failed; log: mini/exp/ablation/grid/half/seed0/logs/run.log" in output
    assert "the training says why" in (finished.results / "half/seed0/logs/run.log").read_text()
    assert finished.trained() == RUNS[1:]
    results = finished.table()
    assert [seed["state"] for seed in results["cells"][1]["seeds"]] == ["failed", "finished"]
    assert results["cells"][1]["differences"]["plain"]["pesq_wb"]["n_seeds"] == 1
    assert "failed       half, seed 0" in finished.run("--action", "list")
    finished.run()
    assert finished.trained() == ["half/seed0"]


def test_finished_runs_are_kept_where_a_rerun_is_refused(finished):
    before = finished.table()
    output = finished.run("--student_args", "--max_epoch 2", code=2)
    assert "error: half, seed 1 was not run again, its results are kept; log: " in output
    assert finished.trained() == [] and finished.table() == before
    assert finished.run("--action", "list").count("finished ") == 4
    finished.run("--action", "collect")
    assert finished.table() == before


@pytest.mark.parametrize("code, expected", [(143, 143), (75, 75), (1, 1)])
def test_a_signal_counts_more_than_a_failure(prepared, monkeypatch, capsys, code, expected):
    monkeypatch.chdir(prepared.folder)
    for name, value in prepared.environment().items():
        monkeypatch.setenv(name, value)
    ablation = study.Ablation(Path("grid.yaml"), words_for_the_recipe(prepared), python=str(prepared.stub))
    failed = prepared.results / "half/seed0/state.json"
    failed.parent.mkdir(parents=True)
    failed.write_text('{"exit_code": 3}')
    assert ablation._outcome(code) == expected
    printed = capsys.readouterr().err
    assert "half, seed 0 failed" in printed and "3 runs are unfinished: run the same command again" in printed


@pytest.mark.cluster
def test_cluster_grid_is_an_array_and_a_second_call_submits_what_is_missing(prepared, tmp_path_factory):
    """A real Slurm carries the array out; the trainings are stand-ins."""
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    prepared.write("conf/slurm.yaml", "default: {poll_seconds: 0.5}\n")
    words = ["--cmd_backend", "slurm", "--ngpu", "0", "--num_threads", "1", "--max_jobs", "1"]
    script = prepared.results / "logs/run.slurm/job.sbatch"
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        output = prepared.run(*words, code=1, STUB_FAIL="half/seed1", **cluster.environment)
        assert "error: half, seed 1 failed" in output and "4 of 4 done, 1 failed" in output
        assert "#SBATCH --array=1-4%1\n" in script.read_text()
        assert sorted(prepared.trained()) == sorted(RUNS)
        output = prepared.run(*words, **cluster.environment)
        assert "3 of 4 runs are finished" in output and "1 of 1 done" in output
        assert "#SBATCH --array=1%1\n" in script.read_text() and prepared.trained() == ["half/seed1"]
        assert "4 of 4 runs are finished" in prepared.run(*words, **cluster.environment)
        assert not cluster.queue()


def test_failures_of_cells_that_were_not_chosen_do_not_count(finished):
    (finished.results / "half/seed0/.done_test").unlink()
    (finished.results / "half/seed0/state.json").write_text('{"exit_code": 3}')
    finished.run("--cells", "plain")
    finished.run("--cells", "plain", "--action", "collect")
    finished.run("--action", "collect", code=1)


@pytest.mark.slow
def test_kill_9_of_everything_changes_no_number(prepared, _finished_once):
    process = prepared.start(STUB_SLOW="half/seed0")
    prepared.wait_for("training", Path(f"{prepared.record}.ready").exists, process)
    while prepared.processes():
        for number in prepared.processes():
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                pass
    process.communicate(timeout=60)
    assert "half/seed0" in prepared.trained()
    prepared.run()
    assert "half/seed0" in prepared.trained()
    assert prepared.table() == _finished_once[0].table()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to orphans is Linux's")
def test_kill_9_of_the_command_ends_everything_below_it(prepared, _finished_once):
    process = prepared.start("--max_jobs", "1", STUB_SLOW="plain/seed0")
    prepared.wait_for("training", Path(f"{prepared.record}.ready").exists, process)
    process.kill()
    prepared.wait_for("the end of all processes", lambda: not prepared.processes())
    process.communicate(timeout=60)
    prepared.run()
    assert prepared.table() == _finished_once[0].table()


@pytest.mark.slow
def test_a_signal_ends_it_and_the_same_command_continues(prepared):
    process = prepared.start("--max_jobs", "1", STUB_SLOW="plain/seed0")
    prepared.wait_for("training", Path(f"{prepared.record}.ready").exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "run the same command again" in output, output
    assert not prepared.processes()
    assert prepared.trained() == ["plain/seed0"]
    assert "interrupted  plain, seed 0" in prepared.run("--action", "list")


def test_selected_cells_and_seeds(prepared):
    prepared.run("--cells", "half", "--seeds", "1")
    assert prepared.trained() == ["half/seed1"]
    assert "## Differences from plain" not in (prepared.results / "results_test.md").read_text()


@pytest.mark.parametrize("ngpu, max_jobs, jobs, threads", [("1", None, 3, 4), ("2", None, 1, 12), ("1", 2, 2, 6)])
def test_runs_share_the_gpus_and_the_threads(finished, monkeypatch, ngpu, max_jobs, jobs, threads):
    monkeypatch.chdir(finished.folder)
    for name, value in finished.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(study, "visible_gpus", lambda: ["0", "1", "2"])
    words = words_for_the_recipe(finished)
    ablation = study.Ablation(Path("grid.yaml"), words, max_jobs=max_jobs, python=str(finished.stub))
    ablation.options.update(ngpu=ngpu, num_threads="12")
    shares = ablation._shares()
    assert shares["num_threads"] == str(threads)
    assert ablation._resources(shares) == [
        "--gpu", ngpu, "--num_threads", str(threads), "--max_jobs", str(jobs)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        (["--student_tag", "x"], "student_tag cannot be given: each cell has its own folder"),
        (["--studnt_config", "x"], "unknown option --studnt_config; did you mean --student_config?"),
        (["--max_jobs", "0"], "--max_jobs 0: must be at least 1"),
        (["--cells", "third"], "--cells third"),
        (["more"], "unexpected argument 'more'"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(finished, options, message):
    assert message in finished.run(*options, code=2)
    assert finished.calls() == []
