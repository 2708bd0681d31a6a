"""The staged pipeline, with a stand-in for the commands that records its arguments and makes their outputs."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import REPOSITORY, VOICEBANK

from i2srf_kd.models import folder_of

# Plays `python`: runs run_jobs and step for real and pretends the rest.
STUB = r"""#!{python} -S
import json, os, signal, sys, time
from pathlib import Path

args = sys.argv[1:]
if args[:2] in (["-m", "i2srf_kd.bin.run_jobs"], ["-m", "i2srf_kd.bin.step"]):
    site = ["-S"] if "run_jobs" in args[1] else []  # distillation files are in YAML
    os.execv("{python}", ["{python}", *site, *args])
name = args[1].rpartition(".")[2] if args[0] == "-m" else Path(args[0]).name
rest = args[2:] if args[0] == "-m" else args[1:]
if name == "with_scratch":
    with open(os.environ["STUB_RECORD"], "a") as record:
        record.write(json.dumps([name, rest, None]) + "\n")
    command = rest[rest.index("--") + 1 :]
    os.execvp(command[0], command)
malloc = os.environ.get("MALLOC_MMAP_MAX_")
with open(os.environ["STUB_RECORD"], "a") as record:
    record.write(json.dumps([name, rest, malloc]) + "\n")

def after(option):
    return rest[rest.index(option) + 1]

def touch(path, text="x\n"):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

what = name + (":" + Path(after("--output_dir")).name if name == "train" else "")
if os.environ.get("STUB_SLEEP") == what:
    def save(number, frame):
        print("saving", flush=True)
        time.sleep(0.3)
        touch(os.environ["STUB_RECORD"] + ".saved")
        sys.exit(75)
    signal.signal(signal.SIGUSR1, save)
    touch(os.environ["STUB_RECORD"] + ".ready")
    time.sleep(60)
failing, _, code = os.environ.get("STUB_FAIL", "").partition("=")
if failing == what:
    sys.exit(int(code))
if name == "data.py":
    for folder in ("train", "valid", "test"):
        touch(Path(after("--data_dir"), folder, "wav.scp"), "a /a.wav\nb /b.wav\nc /c.wav\n")
        touch(Path(after("--data_dir"), folder, "spk1.scp"), "a /a.wav\nb /b.wav\nc /c.wav\n")
elif name == "format_data" and "--shard" not in rest:
    touch(Path(rest[1], "wav.scp"), "a /a.flac\nb /b.flac\nc /c.flac\n")
elif name == "corpus_stats":
    touch(Path(after("--out_dir"), "train", "speech_shape"))
    touch(Path(after("--out_dir"), "corpus_report.md"), "| the corpus |\n")
elif name == "train":
    touch(Path(after("--output_dir"), "config.yaml"))
elif name == "results":
    touch(after("--out"), "| the table |\n")
    touch(Path(after("--out")).parent / "images" / "a.png")
elif name == "enhance_set":
    touch(Path(rest[2], "wav.scp"))
elif name == "export":
    touch(Path(after("-o"), "model.json"))
"""


class Recipe:
    """A recipe in a repository of its own, whose path has a space in it."""

    def __init__(self, root: Path) -> None:
        repository = root / "a repository"
        shutil.copytree(REPOSITORY / "egs" / "TEMPLATE", repository / "egs" / "TEMPLATE")
        (repository / "i2srf_kd").symlink_to(REPOSITORY / "i2srf_kd")
        self.folder = repository / "egs" / "corpus"
        self.folder.mkdir()
        for name in ("run.sh", "cmd.sh", "path.sh"):
            shutil.copy(VOICEBANK / name, self.folder / name)
        for name in (
            "local/data.py",
            "conf/train_teacher.yaml",
            "conf/train_student.yaml",
            "conf/distill/i2srf_tfckd.yaml",
            "conf/mini/train_teacher.yaml",
            "conf/mini/train_student.yaml",
            "conf/mini/distill.yaml",
        ):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("# of the test\n")
        self.stub = root / "stub python"
        self.stub.write_text(STUB.replace("{python}", sys.executable))
        self.stub.chmod(self.stub.stat().st_mode | stat.S_IXUSR)
        self.record = root / "record"
        self.root = root

    def environment(self, **more: str) -> dict:
        kept = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")}
        return {**kept, "STUB_RECORD": str(self.record), "CUDA_VISIBLE_DEVICES": "", **more}

    def command(self, *options: str) -> list:
        return [str(self.folder / "run.sh"), "--python", str(self.stub), *options]

    def run(self, *options: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
        """Run from another folder; the exit code must be ``code``."""
        done = subprocess.run(
            self.command(*options),
            cwd=self.root,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,  # a busy machine takes its time
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def calls(self) -> list:
        """``[command, arguments, MALLOC_MMAP_MAX_]`` since the last question."""
        if not self.record.exists():
            return []
        calls = [json.loads(line) for line in self.record.read_text().splitlines()]
        self.record.unlink()
        return calls

    def names(self) -> list:
        return [call[0] for call in self.calls()]


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return Recipe(tmp_path)


@pytest.fixture(scope="module")
def _finished_once(tmp_path_factory):
    recipe = Recipe(tmp_path_factory.mktemp("finished"))
    done = recipe.run("--mini", "true", "--nj", "4")
    return recipe, done.stdout, recipe.calls()


@pytest.fixture
def finished(_finished_once, tmp_path) -> Recipe:
    """A recipe in which the mini pipeline has finished."""
    source, _, _ = _finished_once
    recipe = Recipe(tmp_path)
    shutil.copytree(source.folder / "mini", recipe.folder / "mini")
    return recipe


def option(arguments: list, name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_mini_runs_every_stage(_finished_once):
    recipe, output, calls = _finished_once
    names = [call[0] for call in calls]
    assert names[:2] == ["mini_corpus", "data.py"]
    assert calls[0][1] == ["mini/data/corpus"]
    assert option(calls[1][1], "--corpus_dir") == "mini/data/corpus"
    assert option(calls[1][1], "--check_counts") == "false"
    trained = [(Path(option(a, "--output_dir")).name, option(a, "--config")) for n, a, _ in calls if n == "train"]
    assert trained == [
        ("teacher", "conf/mini/train_teacher.yaml"),
        ("student", "conf/mini/train_student.yaml"),
        ("student_kd", "conf/mini/train_student.yaml"),
    ]
    assert names.count("results") == names.count("export") == names.count("corpus_stats") == 1
    assert "| the corpus |" in output and "| the table |" in output
    assert "table:    mini/exp/RESULTS.md" in output and "pictures: mini/exp/images" in output
    assert "audio:    mini/exp/student_kd/enhanced_test" in output
    assert not (recipe.folder / "data").exists() and not (recipe.folder / "exp").exists()


def test_arrays_have_no_more_parts_than_utterances(_finished_once):
    _, _, calls = _finished_once
    parts = [a for n, a, _ in calls if n == "format_data" and a[0] == "mini/data/train"]
    assert sorted(option(a, "--shard") for a in parts if "--shard" in a) == ["1/3", "2/3", "3/3"]
    assert parts[-1] == [
        *("mini/data/train", "mini/dump/raw/train", "--fs", "16000", "--audio_format", "flac"),
        *("--collect", "3"),
    ]


def test_training_command(_finished_once):
    _, _, calls = _finished_once
    _, arguments, malloc = [call for call in calls if call[0] == "train"][-1]
    assert option(arguments, "--distill_config") == "conf/mini/distill.yaml"
    assert option(arguments, "--teacher_exp") == "mini/exp/teacher"
    assert option(arguments, "--train_shape_file") == "mini/exp/stats/train/speech_shape"
    assert option(arguments, "--valid_shape_file") == "mini/exp/stats/valid/speech_shape"
    data = [arguments[i + 1] for i, word in enumerate(arguments) if word.endswith("_data_path_and_name_and_type")]
    assert data == [
        "mini/dump/raw/train/wav.scp,speech_mix,sound",
        "mini/dump/raw/train/spk1.scp,speech_ref1,sound",
        "mini/dump/raw/valid/wav.scp,speech_mix,sound",
        "mini/dump/raw/valid/spk1.scp,speech_ref1,sound",
    ]
    assert option(arguments, "--ngpu") == "0" and malloc == "0"
    assert "--overwrite" not in arguments and "--multiprocessing_distributed" not in arguments


def test_every_system_is_scored(_finished_once):
    _, _, calls = _finished_once
    scored = [a[:3] for n, a, _ in calls if n == "score" and "--shard" not in a]
    assert scored == [
        ["mini/dump/raw/test", scp, f"mini/exp/{name}/scored_test"]
        for name, scp in [
            ("noisy", "mini/dump/raw/test/wav.scp"),
            ("teacher", "mini/exp/teacher/enhanced_test/wav.scp"),
            ("student", "mini/exp/student/enhanced_test/wav.scp"),
            ("student_kd", "mini/exp/student_kd/enhanced_test/wav.scp"),
        ]
    ]
    results = next(a for n, a, _ in calls if n == "results")
    rows = [results[i + 1] for i, word in enumerate(results) if word == "--system"]
    assert rows[0] == "noisy=mini/exp/noisy/scored_test"
    assert rows[1:] == [
        f"{name}=mini/exp/{name}/scored_test:mini/exp/{name}" for name in ("teacher", "student", "student_kd")
    ]
    assert option(results, "--baseline") == "student"
    assert option(results, "--command").startswith("./run.sh ") and "--mini true" in option(results, "--command")


def test_second_run_skips_everything(finished):
    start = time.monotonic()
    output = finished.run("--mini", "true").stdout
    assert finished.calls() == []
    assert time.monotonic() - start < 30  # also on a busy machine
    assert output.count("already finished, skipped") == 14 and "| the table |" in output


def test_experiments_that_were_moved_are_still_finished(finished):
    (finished.folder / "mini/exp").rename(finished.root / "moved")
    finished.run("--mini", "true", "--expdir", str(finished.root / "moved"))
    assert not {"train", "enhance_set", "score"} & {name for name, _, _ in finished.calls()}


def test_changed_option_is_named_with_a_way_out(finished):
    error = finished.run("--mini", "true", "--seed", "7", "--stage", "5", code=2).stderr
    assert "seed: 0 -> 7" in error and "--force true" in error and "another tag" in error
    finished.run("--mini", "true", "--fs", "8000", "--stage", "2", code=2)
    assert finished.calls() == []


def test_changed_config_contents_are_noticed(finished):
    (finished.folder / "conf/mini/distill.yaml").write_text("other: 1\n")
    assert "distill_config_contents" in finished.run("--mini", "true", code=2).stderr


@pytest.mark.parametrize("entry", ["import: own.py", "import: ['own.py', json]", "import:\n- json\n- own.py  # mine"])
def test_an_edited_imported_file_is_noticed(finished, entry):
    (finished.folder / "conf/mini/own.py").write_text("# first\n")
    (finished.folder / "conf/mini/own.yaml").write_text(f"method: own\n{entry}\n")
    words = ["--mini", "true", "--stage", "5", "--stop_stage", "5", "--distill_config", "conf/mini/own.yaml"]
    words += ["--student_tag", "own"]
    finished.run(*words)
    assert "train" in [name for name, _, _ in finished.calls()]
    finished.run(*words)
    (finished.folder / "conf/mini/own.py").write_text("# second\n")
    assert "distill_import_contents" in finished.run(*words, code=2).stderr
    assert finished.calls() == []


def test_another_tag_trains_beside_the_finished_one(finished):
    finished.run("--mini", "true", "--seed", "7", "--student_tag", "kd7", "--baseline_tag", "s7", "--teacher_exp",
                 "mini/exp/teacher")  # fmt: skip
    trained = [option(a, "--output_dir") for n, a, _ in finished.calls() if n == "train"]
    assert trained == ["mini/exp/s7", "mini/exp/kd7"]


def test_force_repeats_one_stage_and_moves_models_aside(finished):
    finished.run("--mini", "true", "--stage", "5", "--stop_stage", "5", "--force", "true")
    calls = finished.calls()
    assert [n for n, _, _ in calls] == ["train", "train"]
    assert all(option(a, "--overwrite") == "true" for _, a, _ in calls)
    # what was made from the old students is out of date, the rest is not
    finished.run("--mini", "true", "--stage", "6")
    again = finished.calls()
    assert {a[0] for n, a, _ in again if n == "enhance_set"} == {"mini/exp/student", "mini/exp/student_kd"}
    assert [n for n, _, _ in again][-3:] == ["examples", "results", "export"]


def test_force_does_nothing_twice_when_slurm_queues_the_job_again(finished):
    words = ("--mini", "true", "--stage", "5", "--stop_stage", "5", "--force", "true")
    job = {"SLURM_JOB_ID": "42", "I2SRF_STAGE_JOB": "1"}
    said = finished.run(*words, code=75, STUB_FAIL="train:student_kd=75", **job).stdout
    assert "saved; run the same command again to continue (without --force, or what was finished" in said
    assert [option(a, "--output_dir") for _, a, _ in finished.calls()] == ["mini/exp/student", "mini/exp/student_kd"]
    finished.run(*words, SLURM_RESTART_COUNT="1", **job)  # the student's old record does not stop it
    calls = finished.calls()
    assert [option(a, "--output_dir") for _, a, _ in calls] == ["mini/exp/student_kd"]
    assert option(calls[0][1], "--overwrite") == "true"
    finished.run(*words, SLURM_RESTART_COUNT="2", **job)
    assert finished.calls() == []
    finished.run(*words, SLURM_RESTART_COUNT="1", **{**job, "SLURM_JOB_ID": "43"})
    assert len(finished.calls()) == 2


def test_students_of_a_replaced_teacher_are_not_trusted(finished):
    finished.run("--mini", "true", "--stage", "4", "--stop_stage", "4", "--force", "true")
    assert "input_teacher" in finished.run("--mini", "true", "--stage", "5", code=2).stderr


@pytest.mark.parametrize("stage, needed", [(2, 1), (3, 2), (4, 3), (5, 4), (6, 2), (7, 5)])
def test_missing_prerequisite_names_the_earlier_stage(recipe, stage, needed):
    error = recipe.run("--stage", str(stage), code=2).stderr
    assert f"run stage {needed} first (--stage {needed})" in error
    assert recipe.calls() == []


def test_jobs_know_the_names_of_all_models(recipe):
    (recipe.folder / "local/data.sh").write_text('printf "%s" "${I2SRF_MODELS}" >models\n')
    recipe.run("--stage", "1", "--stop_stage", "1", "--student_tag", "a/kd 7")
    assert (recipe.folder / "models").read_text().splitlines() == ["teacher", "kd 7", "student"]


def test_trained_teacher_skips_stage_4(recipe):
    (recipe.folder / "elsewhere").mkdir()
    (recipe.folder / "elsewhere" / "config.yaml").write_text("x")
    recipe.run("--teacher_exp", "elsewhere", "--nj", "1", "--inference_nj", "1")
    calls = recipe.calls()
    trained = [a for n, a, _ in calls if n == "train"]
    assert [option(a, "--output_dir") for a in trained] == ["exp/student_kd"]
    assert option(trained[0], "--teacher_exp") == "elsewhere"
    assert ["elsewhere", "dump/raw/test", "exp/teacher/enhanced_test"] in [a[:3] for n, a, _ in calls]
    assert [path.name for path in (recipe.folder / "elsewhere").iterdir()] == ["config.yaml"]


def test_a_model_of_the_package_as_teacher(recipe):
    recipe.run("--teacher_exp", "dpdcrn_tiny", "--nj", "1", "--stop_stage", "5")
    trained = [a for n, a, _ in recipe.calls() if n == "train"]
    assert [option(a, "--output_dir") for a in trained] == ["exp/student_kd"]
    assert Path(option(trained[0], "--teacher_exp")).samefile(folder_of("dpdcrn_tiny"))


def test_teacher_that_does_not_exist(finished):
    for stage in ("4", "5", "6"):
        error = finished.run("--mini", "true", "--stage", stage, "--teacher_exp", "nowhere", code=2).stderr
        assert "--teacher_exp nowhere: no trained model" in error


def test_saved_training_exits_75_and_continues(finished):
    words = ("--mini", "true", "--stop_stage", "5", "--student_tag", "new")
    done = finished.run(*words, code=75, STUB_FAIL="train:new=75")
    assert "saved; run the same command again" in done.stdout and "error" not in done.stderr
    assert len(finished.calls()) == 1
    finished.run(*words)
    assert [option(a, "--output_dir") for _, a, _ in finished.calls()] == ["mini/exp/new"]


def test_failing_command_stops_the_pipeline_and_is_not_done(recipe):
    error = recipe.run("--mini", "true", code=3, STUB_FAIL="format_data=3").stderr
    assert "format train JOB=1 failed with exit code 3" in error
    assert "stage 2 (format) ended with exit code 3" in error
    assert "corpus_stats" not in recipe.names()
    recipe.run("--mini", "true", "--stage", "2", "--stop_stage", "2")
    assert "format_data" in recipe.names()


def test_signal_reaches_the_training_and_is_waited_for(finished):
    recipe = finished
    pipeline = subprocess.Popen(
        recipe.command("--mini", "true", "--teacher_tag", "new"),
        env=recipe.environment(STUB_SLEEP="train:new"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 30
    while not Path(f"{recipe.record}.ready").exists():
        assert time.monotonic() < end and pipeline.poll() is None
        time.sleep(0.05)
    pipeline.send_signal(signal.SIGUSR1)
    output, _ = pipeline.communicate(timeout=20)
    assert pipeline.returncode == 75, output
    assert Path(f"{recipe.record}.saved").exists() and "saving" in output


def test_extra_options_reach_their_commands(recipe):
    recipe.run(
        *("--train_args", "--max_epoch 3", "--teacher_args", "--patience 1", "--student_args=--keep 2"),
        *("--inference_args", "--segment 4", "--inference_model", "5epoch.pth", "--local_data_opts", "--speakers 2"),
        *("--nj", "1", "--inference_nj", "1", "--stop_stage", "6"),
        *("--corpus_dir", "/a corpus", "--with_baseline", "true", "--results_title", "A title"),
    )
    calls = recipe.calls()
    data = next(a for n, a, _ in calls if n == "data.py")
    assert data[-4:] == ["--corpus_dir", "/a corpus", "--speakers", "2"]
    teacher, baseline, student = [a for n, a, _ in calls if n == "train"]
    assert teacher[-4:] == ["--max_epoch", "3", "--patience", "1"]
    assert baseline[-4:] == student[-4:] == ["--max_epoch", "3", "--keep", "2"]
    assert "--distill_config" not in baseline
    checked, enhanced, *_ = [a for n, a, _ in calls if n == "enhance_set"]
    assert checked == ["-", "-", "-", "--segment", "4", "--check_only"]
    assert enhanced[3:7] == ["--segment", "4", "--model_file", "exp/teacher/5epoch.pth"]
    assert option(next(a for n, a, _ in calls if n == "results"), "--title") == "A title"


def test_names_of_sets_reach_the_preparation(recipe):
    recipe.run("--train_set", "tr", "--valid_set", "cv", "--corpus_dir", "/corpus", "--stop_stage", "1")
    ((_, arguments, _),) = recipe.calls()
    assert (option(arguments, "--train_set"), option(arguments, "--valid_set")) == ("tr", "cv")
    again = recipe.run("--train_set", "train2", "--corpus_dir", "/corpus", "--stop_stage", "1", code=2)
    assert "finished with other settings" in again.stdout + again.stderr


def test_scratch_is_given_to_trainings_alone_and_changes_no_record(finished):
    """The folder is named as it was given: what $TMPDIR is, the machine that trains knows."""
    finished.run("--mini", "true", "--scratch", "$TMPDIR/x y", "--stage", "4", "--stop_stage", "5")
    assert finished.calls() == []
    finished.run(
        "--mini", "true", "--scratch", "$TMPDIR/x y", "--student_tag", "other", "--stage", "5", "--stop_stage", "5"
    )
    calls = finished.calls()
    assert [name for name, _, _ in calls].count("with_scratch") == 1
    arguments, (_, trained, malloc) = calls[0][1], calls[1]
    sets = ["mini/dump/raw/train", "mini/dump/raw/valid"]
    assert arguments[:6] == ["--scratch", "$TMPDIR/x y", "--sets", *sets, "--"]
    assert arguments[-len(trained) :] == trained and malloc == "0"
    assert "scratch" not in (finished.folder / "mini/exp/other/.done_train").read_text()


def test_explicit_options_win_over_mini(recipe):
    recipe.run("--mini", "true", "--datadir", "my data", "--with_baseline", "false", "--stop_stage", "5")
    calls = recipe.calls()
    assert calls[0][1] == ["my data/corpus"]
    assert len([1 for n, _, _ in calls if n == "train"]) == 2


@pytest.mark.slow
def test_test_set_that_is_added_later_needs_no_training(finished):
    shutil.copytree(finished.folder / "mini/data/test", finished.folder / "mini/data/other")
    finished.run("--mini", "true", "--test_sets", "test other", "--nj", "1", "--inference_nj", "1")
    calls = finished.calls()
    assert not {"data.py", "train"} & {n for n, _, _ in calls}
    assert {a[0] for n, a, _ in calls if n == "format_data"} == {"mini/data/other"}
    assert {a[0] for n, a, _ in calls if n == "score"} == {"mini/dump/raw/other"}
    tables = [option(a, "--out") for n, a, _ in calls if n == "results"]
    assert tables == ["mini/exp/RESULTS_test.md", "mini/exp/RESULTS_other.md"]


def test_packing_is_a_stage_on_demand(finished):
    assert "pack" not in finished.run("--mini", "true").stdout
    done = finished.run("--mini", "true", "--pack", "true")
    (arguments,) = [a for n, a, _ in finished.calls() if n == "pack"]
    assert arguments[0] == "mini/exp/student_kd" and option(arguments, "-o") == "mini/exp/student_kd/student_kd.zip"
    assert option(arguments, "--extra") == "mini/exp/RESULTS.md" and "stage 8 (pack)" in done.stdout


def test_data_formatted_again_makes_models_out_of_date(finished):
    (finished.folder / "mini/data/train/wav.scp").write_text("a /a.wav\n")
    error = finished.run("--mini", "true", code=2).stderr
    assert "input_data" in error and "mini/exp/teacher was finished with other settings" in error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stop-stage", "3"], "unknown option --stop-stage; did you mean --stop_stage?"),
        (["--student_confg=x"], "did you mean --student_config?"),
        (["--entirely_different", "3"], "unknown option --entirely_different (see --help)"),
        (["--seed"], "option --seed needs a value"),
        (["--seed", "one"], "--seed one: must be a whole number"),
        (["--ngpu", "one"], "--ngpu one: must be a whole number"),
        (["--mini", "yes"], "--mini yes: must be true or false"),
        (["stage", "3"], "unexpected argument 'stage'"),
        (["--stage", "3", "--stop_stage", "2"], "stages are 1 to 8"),
        (["--stage", "0"], "stages are 1 to 8"),
        (["--ngpu", "2"], "--ngpu 2: this machine has 0 usable GPU(s)"),
        (["--num_nodes", "2"], "--num_nodes 2"),
        (["--nj", "0"], "--nj"),
        (["--student_tag", "teacher"], "must differ"),
        (["--dumpdir", "a,b"], "commas"),
        (["--student_config", "nowhere.yaml"], "--student_config nowhere.yaml: no such file"),
        (["--distill_config", "nowhere.yaml"], "--distill_config nowhere.yaml: no such file"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(recipe, options, message):
    done = recipe.run(*options, code=2)
    assert message in done.stderr
    assert recipe.calls() == []


@pytest.mark.parametrize(
    "options, failing", [(["--inference_args", "--wrong 1"], "enhance_set"), (["--score_args", "--wrong 1"], "score")]
)
def test_options_of_stage_6_are_refused_before_anything_runs(recipe, options, failing):
    done = recipe.run(*options, code=2, STUB_FAIL=f"{failing}=2")
    assert f"{' '.join(options)}: stage 6 would end with this" in done.stderr
    assert recipe.names() == [failing]


def test_a_test_set_that_is_not_there_is_missed_before_the_trainings(finished):
    done = finished.run("--mini", "true", "--stage", "4", "--test_sets", "test other", code=2)
    assert "dump/raw/other is missing or unfinished; run stage 2 first" in done.stderr
    assert finished.calls() == []


def test_missing_python(recipe):
    assert "--python /nowhere" in recipe.run("--python", "/nowhere", code=2).stderr


def test_gpus_are_used_and_memory_settings_left_to_cpu_training(finished, tmp_path):
    recipe = finished
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: A (UUID: y)'\n")
    smi.chmod(0o755)
    environment = {"PATH": f"{smi.parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1"}
    recipe.run("--mini", "true", "--stop_stage", "4", "--teacher_tag", "new", **environment)
    _, arguments, malloc = recipe.calls()[-1]
    assert option(arguments, "--ngpu") == "1" and malloc is None
    recipe.run(
        "--mini", "true", "--stage", "5", "--stop_stage", "5", "--ngpu", "2", "--student_tag", "kd2", **environment
    )
    _, arguments, _ = recipe.calls()[-1]
    assert option(arguments, "--ngpu") == "2" and option(arguments, "--multiprocessing_distributed") == "true"


def test_help_lists_every_option_with_its_default(recipe):
    done = recipe.run("--help")
    text = (recipe.folder.parent / "TEMPLATE" / "enh_kd.sh").read_text()
    declared = text.partition("# begin options\n")[2].partition("# end options")[0].splitlines()
    names = [line.partition("=")[0] for line in declared if line and not line.startswith("#")]
    assert len(names) > 30
    for name in names:
        assert f"\n  --{name} " in done.stdout
    assert "--student_tag        folder of the distilled student in expdir (default: student_kd)" in done.stdout
    assert recipe.calls() == []


def test_export_takes_the_model_that_was_enhanced_with(finished):
    finished.run("--mini", "true", "--stage", "7", "--inference_model", "5epoch.pth", "--force", "true")
    (_, arguments, _) = finished.calls()[-1]
    assert arguments[-2:] == ["--model_file", "5epoch.pth"]


def test_dropped_utterances_are_counted_on_the_terminal(finished):
    (finished.folder / "mini/dump/raw/test/dropped.tsv").write_text("a\tsilent mixture\nb\tno samples\n")
    error = finished.run("--mini", "true", "--stage", "2", "--stop_stage", "2", "--force", "true").stderr
    assert "warning: 2 utterances of test" in error and "mini/dump/raw/test/dropped.tsv" in error


def test_leading_zeros_are_decimal(recipe):
    error = recipe.run("--stage", "08", code=2).stderr
    assert "--stage 8 --stop_stage 7" in error and "base" not in error
