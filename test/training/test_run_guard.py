"""A folder belongs to one process and to one set of options."""

import argparse
import errno
import fcntl
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from places import REPOSITORY

from i2srf_kd.system.errors import UserError
from i2srf_kd.training import run_guard
from i2srf_kd.training.checkpoint import save_training_state


def options(**changes):
    base = {
        "ngpu": 0, "max_epoch": 10, "num_workers": 1, "batch_size": 8, "overwrite": False, "criterions": [
            {"name": "mse", "wrapper_conf": {"weight": 1.0}}, {"name": "si_snr", "wrapper_conf": {"weight": 0.5}}
        ],
        "optim_conf": {"lr": 0.001, "betas": (0.9, 0.999)},
        "train_data_path_and_name_and_type": [("a.scp", "x", "sound")],
    }  # fmt: skip
    return argparse.Namespace(**{**base, **changes})


@pytest.fixture
def experiment(tmp_path):
    output_dir = tmp_path / "exp"
    save_training_state(output_dir, {"model": {}})
    config = {k: v for k, v in vars(options()).items()}
    config["optim_conf"] = {"lr": 0.001, "betas": [0.9, 0.999]}
    config["train_data_path_and_name_and_type"] = [["a.scp", "x", "sound"]]
    (output_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return output_dir


def test_the_same_options_pass(experiment):
    run_guard.guard_experiment(options(), experiment)


def test_changed_options_are_listed_with_old_and_new(experiment):
    criterions = [{"name": "mse", "wrapper_conf": {"weight": 1.0}}, {"name": "si_snr", "wrapper_conf": {"weight": 0.7}}]
    with pytest.raises(UserError) as error:
        run_guard.guard_experiment(
            options(batch_size=4, criterions=criterions, optim_conf={"lr": 0.01, "betas": (0.9, 0.999)}), experiment
        )
    message = str(error.value)
    assert "--batch_size: 8 -> 4" in message
    assert "--criterions[1].wrapper_conf.weight: 0.5 -> 0.7" in message
    assert "--optim_conf.lr: 0.001 -> 0.01" in message
    assert "betas" not in message and "--overwrite true" in message and "--output_dir" in message
    pipeline = (REPOSITORY / "egs/TEMPLATE/enh_kd.sh").read_text()
    named = re.findall(r"run\.sh: ([^)]*)\)", message)
    assert len(named) == 2 and all(f"\n{name}=" in pipeline for name in re.findall(r"--(\w+)", " ".join(named)))


def test_harmless_changes_are_reported_only(experiment, caplog):
    caplog.set_level("INFO")
    run_guard.guard_experiment(options(max_epoch=20, num_workers=4, brand_new=1), experiment)
    assert "--max_epoch: 10 -> 20" in caplog.text and "--brand_new: new" in caplog.text


def test_paths_to_the_same_file_are_the_same(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.scp").write_text("")
    run_guard.guard_experiment(
        options(train_data_path_and_name_and_type=[(str(tmp_path / "a.scp"), "x", "sound")]), experiment
    )
    (tmp_path / "b.scp").write_text("")
    with pytest.raises(UserError, match=re.escape("a.scp -> b.scp")):
        run_guard.guard_experiment(options(train_data_path_and_name_and_type=[("b.scp", "x", "sound")]), experiment)


def test_options_are_kept_apart_from_the_configuration(experiment):
    run_guard.guard_experiment(options(), experiment)
    for broken in ("batch_size: [8, ", "", "batch_size: 8\n"):
        (experiment / "config.yaml").write_text(broken)
        run_guard.guard_experiment(options(), experiment)
        with pytest.raises(UserError, match=re.escape("--optim_conf.lr: 0.001 -> 0.01")):
            run_guard.guard_experiment(options(optim_conf={"lr": 0.01, "betas": (0.9, 0.999)}), experiment)
    (experiment / "config.yaml").unlink()
    with pytest.raises(UserError, match="--batch_size"):  # what was refused has not become the run's
        run_guard.guard_experiment(options(batch_size=4), experiment)


DATA, TEACHER = {"train_data_path_and_name_and_type": [("b.scp", "x", "sound")]}, {"teacher_config": "b.yaml"}


@pytest.mark.parametrize(
    ("digest", "moved", "words"),
    [("data_digest", DATA, "training data changed"), ("teacher_digest", TEACHER, "teacher's weights changed")],
)
def test_moved_files_are_told_from_changed_ones(experiment, digest, moved, words):
    before = {"teacher_config": "a.yaml", digest: "1234"}
    run_guard.guard_experiment(options(**before), experiment)
    run_guard.guard_experiment(options(**{**before, **moved}), experiment)
    with pytest.raises(UserError, match=words):
        run_guard.guard_experiment(options(**{**before, **moved, digest: "5678"}), experiment)
    with pytest.raises(UserError, match="[ab]"):  # without a fingerprint the path counts
        run_guard.guard_experiment(options(**{**before, digest: None}), experiment)


def test_ignored_options_may_differ(experiment):
    run_guard.guard_experiment(options(batch_size=4), experiment, ignore=["batch_size"])


def test_a_folder_without_results_may_change(tmp_path):
    (tmp_path / "config.yaml").write_text("batch_size: 8\n")
    run_guard.guard_experiment(options(batch_size=4), tmp_path)


def test_overwrite_moves_the_old_run_aside(experiment):
    run_guard.guard_experiment(options(batch_size=4, overwrite=True), experiment)
    assert sorted(p.name for p in experiment.iterdir()) == [".lock", run_guard.OPTIONS]
    (backup,) = experiment.parent.glob("exp.bak-*")
    assert (backup / "checkpoint.pth").exists() and (backup / "config.yaml").exists()
    save_training_state(experiment, {"model": {}})
    run_guard.guard_experiment(options(overwrite=True), experiment)  # within the same second
    assert len(list(experiment.parent.glob("exp.bak-*"))) == 2


def test_the_lock_of_a_pipeline_stays_with_the_name_of_the_folder(experiment):
    with (experiment / ".done_train.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_guard.guard_experiment(options(overwrite=True), experiment)
        (backup,) = experiment.parent.glob("exp.bak-*")
        assert not list(backup.glob(".done_*"))
        assert os.path.sameopenfile(lock.fileno(), os.open(experiment / ".done_train.lock", os.O_RDONLY))


def test_overwrite_where_the_folder_is_a_link_to_another_file_system(experiment, monkeypatch):
    elsewhere = experiment.rename(experiment.with_name("elsewhere"))
    experiment.symlink_to(elsewhere)
    rename = Path.rename

    def rename_within_a_file_system(path, target):
        if path.suffix == ".lock":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_within_a_file_system)
    (experiment / ".done_train.lock").write_text("process 1\n")
    run_guard.guard_experiment(options(overwrite=True), experiment)
    assert not experiment.is_symlink() and (elsewhere / "checkpoint.pth").exists()
    with (experiment / ".done_train.lock").open("r+") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (experiment / ".done_train.lock").read_text() == "process 1\n"
    assert not list(elsewhere.glob(".done_*"))


def test_overwrite_goes_on_with_an_interrupted_run(experiment, caplog):
    run_guard.mark_interrupted(experiment)
    run_guard.guard_experiment(options(overwrite=True), experiment)
    assert "remove the folder to start anew" in caplog.text
    assert (experiment / "checkpoint.pth").exists()
    assert not (experiment / run_guard.INTERRUPTED).exists()
    run_guard.mark_interrupted(experiment)
    run_guard.guard_experiment(options(overwrite=True, batch_size=4), experiment)
    assert not (experiment / "checkpoint.pth").exists()


def test_overwrite_goes_on_with_what_the_same_slurm_job_began(experiment, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # its machine was lost before it had moved the old run aside
    run_guard.guard_experiment(options(overwrite=True), experiment)
    assert not (experiment / "checkpoint.pth").exists()
    save_training_state(experiment, {"model": {}})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    run_guard.guard_experiment(options(overwrite=True), experiment)
    assert (experiment / "checkpoint.pth").exists() and len(list(experiment.parent.glob("exp.bak-*"))) == 1
    with pytest.raises(UserError, match="--batch_size: 8 -> 4"):
        run_guard.guard_experiment(options(overwrite=True, batch_size=4), experiment)
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    run_guard.guard_experiment(options(overwrite=True), experiment)
    assert len(list(experiment.parent.glob("exp.bak-*"))) == 2


def test_other_ranks_touch_nothing(tmp_path):
    run_guard.guard_experiment(options(), tmp_path / "exp", rank0=False)
    assert not (tmp_path / "exp").exists()


def hold(folder, connection):
    run_guard.lock_experiment(folder)
    child = os.fork()  # as a data loader's worker, which may outlive the trainer
    if child == 0:
        time.sleep(60)
        os._exit(0)
    connection.send(child)
    time.sleep(60)


def test_two_processes_cannot_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.poll(30)
    worker = ours.recv()
    try:
        with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
            run_guard.guard_experiment(options(), tmp_path)
        process.kill()
        process.join()
        run_guard.guard_experiment(options(), tmp_path)  # a lock does not outlive its process
    finally:
        process.kill()
        process.join()
        os.kill(worker, signal.SIGKILL)


def test_other_iterators_and_mixed_precision_without_a_gpu_are_refused(tmp_path):
    with pytest.raises(UserError, match="--iterator_type chunk is not supported"):
        run_guard.guard_experiment(options(iterator_type="chunk"), tmp_path)
    with pytest.raises(UserError, match="--use_amp true needs a GPU"):
        run_guard.guard_experiment(options(use_amp=True), tmp_path)


@pytest.mark.parametrize("option", ["use_wandb", "sharded_ddp", "use_deepspeed", "use_adapter", "multiple_iterator"])
def test_unsupported_options_are_refused(tmp_path, option):
    with pytest.raises(UserError, match=f"--{option} true is not supported"):
        run_guard.guard_experiment(options(**{option: True}), tmp_path)


def test_several_gpus_need_several_processes(tmp_path):
    with pytest.raises(UserError, match="--multiprocessing_distributed true"):
        run_guard.guard_experiment(options(ngpu=2), tmp_path)
