"""Runs of the training engine: resume after any kill, signals, several processes, validation, best epochs."""

import json
import logging
import math
import os
import random
import re
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from i2srf_kd.data.chunk_dataset import ChunkDataset, ParallelFiles, SeededChunk, collate, read_lengths
from i2srf_kd.data.chunks import validation_batches
from i2srf_kd.espnet import trainer
from i2srf_kd.espnet.trainer import TrainingRun
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.signals import EXIT_INTERRUPTED
from i2srf_kd.training import checkpoint
from i2srf_kd.training.best_epochs import BestEpochs

STEPS = 9  # batches in an epoch of the toy data


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run that nobody disturbed."""
    output_dir = tmp_path_factory.mktemp("reference") / "exp"
    assert toy.in_child(toy.command(data, output_dir)) == 0
    return output_dir


def metrics(output_dir):
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def losses(output_dir):
    return [(m["epoch"], m["phase"], m["loss"]) for m in metrics(output_dir)]


def assert_same_run(output_dir, reference):
    for name in ("latest.pth", "2epoch.pth", "valid.loss.best.pth", "valid.loss.ave.pth"):
        assert toy.same(toy.weights(output_dir, name), toy.weights(reference, name)), name
    assert losses(output_dir) == losses(reference)


def test_what_a_run_leaves(reference):
    phases = [(m["epoch"], m["phase"]) for m in metrics(reference)]
    assert phases == [(epoch, phase) for epoch in (1, 2, 3) for phase in ("train", "valid")]
    train = metrics(reference)[0]
    for key in ("lr", "seconds", "audio_seconds_per_second", "peak_memory_GB", "skipped_updates", "grad_norm"):
        assert train[key] >= 0, key
    values = {m["epoch"]: m["loss"] for m in metrics(reference) if m["phase"] == "valid"}
    best = sorted(values, key=values.get)
    assert os.readlink(reference / "valid.loss.best.pth") == f"{best[0]}epoch.pth"
    assert os.readlink(reference / "latest.pth") == "3epoch.pth"
    first, second = (toy.weights(reference, f"{e}epoch.pth") for e in best[:2])
    for key, value in toy.weights(reference, "valid.loss.ave_2best.pth").items():
        torch.testing.assert_close(value, (first[key].double() + second[key].double()).div(2).float())


STEP, VALID = (TrainingRun, "between_steps"), (TrainingRun, "after_valid_batch")
KILLS = {
    "before the first step": (*STEP, 1, True),
    "after step 4": (*STEP, 4, False),
    "just before a save": (trainer, "save_training_state", 3, True),
    "after the last step of an epoch": (*STEP, 2 * STEPS, False),
    "in a validation": (*VALID, 4, False),
    "between weights and state of epoch 2": (trainer, "save_file", 2, False),
    "before the links": (BestEpochs, "publish", 2, True),
    "before the averages": (BestEpochs, "write_averages", 1, True),
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_and_resumed_is_bit_identical(data, reference, tmp_path, when):
    owner, name, number, before = KILLS[when]
    arguments = toy.command(data, tmp_path / "exp", "--save_interval_steps", "2")
    assert toy.in_child(arguments, toy.call_at(owner, name, number, toy.kill_self, before)) == -signal.SIGKILL
    assert toy.in_child(arguments) == 0
    assert_same_run(tmp_path / "exp", reference)


def test_killed_while_the_checkpoint_is_replaced(data, reference, tmp_path):
    def prepare():
        original, count = os.replace, [0]

        def replace_and_die(source, target):
            original(source, target)
            count[0] += Path(target).name == checkpoint.PREVIOUS
            if count[0] == 3:
                toy.kill_self()

        os.replace = replace_and_die

    arguments = toy.command(data, tmp_path / "exp", "--save_interval_steps", "1")
    assert toy.in_child(arguments, prepare) == -signal.SIGKILL
    assert toy.in_child(arguments) == 0
    assert_same_run(tmp_path / "exp", reference)


@pytest.mark.slow
def test_killed_again_and_again_at_random_with_workers(data, reference, tmp_path):
    """Each attempt has another number of workers than the one before."""
    randomness = random.Random(os.environ.get("PYTEST_SEED", "5"))
    exits = []
    for attempt in range(12):
        arguments = toy.command(data, tmp_path / "exp", "--save_interval_steps", "1", "--num_workers", str(attempt % 3))
        process = toy.start_child(arguments)
        process.join(randomness.uniform(0.2, 0.45) if attempt < 8 else 60)
        process.kill()
        process.join()
        exits.append(process.exitcode)
        if process.exitcode == 0:
            break
    assert exits[-1] == 0
    assert -signal.SIGKILL in exits
    assert_same_run(tmp_path / "exp", reference)


def test_accumulated_gradients_and_averaged_weights_resume(data, tmp_path):
    options = ("--accum_grad", "2", "--ema_decay", "0.9", "--save_interval_steps", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert toy.in_child(toy.command(data, whole, *options)) == 0
    arguments = toy.command(data, killed, *options)
    die = toy.call_at(*STEP, 13, toy.kill_self)  # in the middle of an accumulation
    assert toy.in_child(arguments, die) == -signal.SIGKILL
    assert toy.in_child(arguments) == 0
    assert_same_run(killed, whole)
    training = torch.load(whole / checkpoint.CHECKPOINT, weights_only=True)["model"]
    assert not toy.same(training, toy.weights(whole))  # the epoch holds the averaged weights


def test_truncated_checkpoint_falls_back(data, reference, tmp_path):
    output_dir = tmp_path / "exp"
    arguments = toy.command(data, output_dir, "--save_interval_steps", "2")
    die = toy.call_at(*STEP, 14, toy.kill_self)
    assert toy.in_child(arguments, die) == -signal.SIGKILL
    path = output_dir / checkpoint.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1000])
    assert toy.in_child(arguments) == 0
    assert (output_dir / checkpoint.DAMAGED).exists()
    assert_same_run(output_dir, reference)


@pytest.mark.parametrize("number, where", [(signal.SIGTERM, STEP), (signal.SIGUSR1, VALID)], ids=["step", "validation"])
def test_signal_saves_and_exits_75(data, reference, tmp_path, number, where):
    output_dir = tmp_path / "exp"
    arguments = toy.command(data, output_dir, "--ema_decay", "0")

    def send():
        os.kill(os.getpid(), number)

    assert toy.in_child(arguments, toy.call_at(*where, 4, send, before=True)) == EXIT_INTERRUPTED
    state = checkpoint.load_training_state(output_dir)
    expected = {"epoch": 1, "batches_done": 4} if where is STEP else {"epoch": 2, "batches_done": STEPS}
    assert {key: state["in_progress"][key] for key in expected} == expected
    # The same command goes on, even if it asked for a fresh start.
    assert toy.in_child([*arguments, "--overwrite", "true"]) == 0
    assert_same_run(output_dir, reference)


def test_second_signal_ends_at_once(data, tmp_path):
    def send_twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    code = toy.in_child(toy.command(data, tmp_path / "exp"), toy.call_at(*STEP, 2, send_twice, before=True))
    assert code == -signal.SIGTERM
    assert checkpoint.load_training_state(tmp_path / "exp") is None


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_signal_after_the_end_of_the_run_does_not_change_its_exit_code(data, tmp_path, interrupted):
    def send():
        os.kill(os.getpid(), signal.SIGTERM)

    def prepare():
        if interrupted:
            toy.call_at(*STEP, 2, send, before=True)()
        original = trainer.DistillTrainer.run.__func__

        def run_and_send(cls, **kwargs):
            try:
                original(cls, **kwargs)
            finally:
                send()

        trainer.DistillTrainer.run = classmethod(run_and_send)

    code = toy.in_child(toy.command(data, tmp_path / "exp", "--max_epoch", "1"), prepare)
    assert code == (EXIT_INTERRUPTED if interrupted else 0)


def test_finished_run_changes_nothing_and_more_epochs_go_on(data, reference, tmp_path):
    short, output_dir = toy.command(data, tmp_path / "exp", "--max_epoch", "2"), tmp_path / "exp"
    assert toy.in_child(short) == 0
    before = toy.weights(output_dir)
    assert toy.in_child(short) == 0
    assert toy.same(before, toy.weights(output_dir))
    assert toy.in_child(toy.command(data, output_dir)) == 0
    assert_same_run(output_dir, reference)


def test_other_options_are_refused(data, reference, tmp_path, capfd):
    arguments = toy.command(data, reference, "--optim_conf", "lr=0.02", "--num_workers", "1")
    before = (reference / "config.yaml").read_text()
    assert toy.in_child(arguments) == 2
    message = capfd.readouterr().err.split("error:")[-1]
    assert "--optim_conf.lr: 0.01 -> 0.02" in message
    assert "num_workers" not in message
    assert (reference / "config.yaml").read_text() == before


def test_validation_loss_is_the_mean_over_all_chunks(data, reference):
    """Nothing is lost and nothing counts twice: the mean of losses taken one by one is the reported one."""
    lengths = read_lengths([str(data / "valid" / "speech_shape")])
    dataset = ChunkDataset(ParallelFiles(toy.scp_files(data / "valid"), lengths), toy.CHUNK)
    model = toy.ToyTask.build_model_from_file(reference / "config.yaml", reference / "3epoch.pth")[0].eval()

    def loss(chunk):
        with torch.no_grad():
            return float(model(**collate([dataset[SeededChunk(chunk, (0,))]])[1])[0])

    alone = [loss(chunk) for (chunk,) in validation_batches(lengths, toy.CHUNK, 1)]
    assert len(alone) == sum(math.ceil(n / toy.CHUNK) for n in toy.LENGTHS["valid"])
    reported = next(value for epoch, phase, value in losses(reference) if (epoch, phase) == (3, "valid"))
    assert reported == pytest.approx(np.mean(alone), abs=1e-5)


NO_DROPOUT = ("--separator_conf", "dropout=0.0")


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("one") / "exp"
    assert toy.in_child(toy.command(data, output_dir, *NO_DROPOUT)) == 0
    return output_dir


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_batch(data, one_process, tmp_path):
    output_dir = tmp_path / "exp"
    assert toy.join(toy.start_ranks(toy.command(data, output_dir, *NO_DROPOUT), 2)) == [0, 0]
    for a, b in zip(losses(output_dir), losses(one_process), strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], abs=1e-4)  # sums in another order
    for key, value in toy.weights(one_process).items():
        torch.testing.assert_close(toy.weights(output_dir)[key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert toy.join(toy.start_ranks(toy.command(data, whole), 2)) == [0, 0]

    def prepare():
        if os.environ["RANK"] == "1":  # one process alone hears the signal
            toy.call_at(*STEP, 13, lambda: os.kill(os.getpid(), signal.SIGTERM), before=True)()

    arguments = toy.command(data, broken)
    assert toy.join(toy.start_ranks(arguments, 2, prepare)) == [75, 75]
    assert checkpoint.load_training_state(broken)["in_progress"]["batches_done"] == 4
    assert toy.join(toy.start_ranks(arguments, 2)) == [0, 0]
    assert_same_run(broken, whole)


def test_indivisible_batch_is_refused(data, tmp_path):
    codes = toy.join(toy.start_ranks(toy.command(data, tmp_path / "exp", "--batch_size", "3"), 2), timeout=60)
    assert codes == [2, 2]


def test_updates_with_infinite_gradients_are_counted(data, tmp_path):
    def prepare():
        original, count = trainer.DistillTrainer.train_one_epoch.__func__, [0]

        def poisoned(cls, model, iterator, **kwargs):
            class Poison:
                def __len__(self):
                    return len(iterator)

                def __iter__(self):
                    for utt_ids, batch in iterator:
                        count[0] += 1
                        if count[0] in (2, 5):
                            batch["speech_ref1"] = batch["speech_ref1"] * math.nan
                        yield utt_ids, batch

            return original(cls, model=model, iterator=Poison(), **kwargs)

        trainer.DistillTrainer.train_one_epoch = classmethod(poisoned)

    assert toy.in_child(toy.command(data, tmp_path / "exp", "--max_epoch", "1"), prepare) == 0
    train, valid = metrics(tmp_path / "exp")
    assert train["skipped_updates"] == 2
    assert math.isfinite(train["loss"]) and math.isfinite(valid["loss"])


def nan_gradients(first):
    """Let all gradients from the ``first`` update on be NaN."""

    def prepare():
        original, count = torch.nn.utils.clip_grad_norm_, [0]

        def poisoned(parameters, *args, **kwargs):
            parameters = list(parameters)
            count[0] += 1
            if count[0] >= first:
                parameters[0].grad.fill_(math.nan)
            return original(parameters, *args, **kwargs)

        torch.nn.utils.clip_grad_norm_ = poisoned

    return prepare


def message(capfd):
    err = capfd.readouterr().err
    assert "Traceback" not in err
    return err.split("error:")[-1]


def test_a_diverged_epoch_is_an_error_and_the_ones_before_are_kept(data, reference, tmp_path, capfd):
    output_dir = tmp_path / "exp"
    arguments = toy.command(data, output_dir)
    assert toy.in_child(arguments, nan_gradients(STEPS + 1)) == 2
    assert "no update of epoch 2 was finite" in message(capfd)
    assert sorted(checkpoint.load_training_state(output_dir)["reporter"]) == [1]
    assert toy.same(toy.weights(output_dir, "valid.loss.ave.pth"), toy.weights(output_dir, "1epoch.pth"))
    assert not (output_dir / "2epoch.pth").exists()
    assert toy.in_child(arguments) == 0
    assert_same_run(output_dir, reference)


@pytest.mark.parametrize("interval", ["0", "1"])
def test_infinite_weights_are_neither_saved_nor_published(data, tmp_path, capfd, interval):
    output_dir = tmp_path / "exp"
    options = ("--scheduler", "none", "--optim", "sgd", "--optim_conf", "lr=.inf", "--save_interval_steps", interval)
    arguments = [a for a in toy.command(data, output_dir) if a not in ("--scheduler_conf", "warmup_steps=5")]
    assert toy.in_child([*arguments, *options]) == 2
    assert "epoch 1" in message(capfd)
    assert not list(output_dir.glob("*.pth"))


def test_more_best_epochs_than_were_kept(data, tmp_path, capfd):
    few = ("--keep_nbest_models", "1", "--best_model_criterion", "train,loss,max")
    output_dir = tmp_path / "exp"
    assert toy.in_child(toy.command(data, output_dir, *few)) == 0
    more = ("--keep_nbest_models", "4", "--best_model_criterion", "train,loss,max", "--max_epoch", "4")

    def prepare():
        logging.getLogger("i2srf_kd").addHandler(logging.StreamHandler(sys.stderr))

    for _ in range(2):
        assert toy.in_child(toy.command(data, output_dir, *more), prepare) == 0
    assert "weights were not kept" in capfd.readouterr().err
    assert not (output_dir / "2epoch.pth").exists()
    names = {path.name for path in output_dir.glob("*.pth")}
    assert {"1epoch.pth", "3epoch.pth", "4epoch.pth", "train.loss.ave_1best.pth"} <= names


def test_another_criterion_leaves_no_dangling_links(data, tmp_path):
    output_dir = tmp_path / "exp"
    options = ("--keep_nbest_models", "1", "--best_model_criterion")
    assert toy.in_child(toy.command(data, output_dir, *options, "train,loss,max")) == 0
    assert toy.in_child(toy.command(data, output_dir, *options, "valid,loss,min", "--max_epoch", "4")) == 0
    assert (output_dir / "valid.loss.best.pth").exists()
    assert not [path.name for path in output_dir.glob("*.pth") if not path.exists()]


def test_a_one_cycle_schedule_that_is_too_short_is_refused_at_the_start(data, tmp_path, capfd):
    arguments = [a for a in toy.command(data, tmp_path / "exp") if a not in ("--scheduler_conf", "warmup_steps=5")]
    arguments += ["--scheduler", "onecyclelr", "--scheduler_conf", "max_lr=0.01", "--scheduler_conf"]
    assert toy.in_child([*arguments, f"total_steps={3 * STEPS - 1}"]) == 2
    assert f"total_steps={3 * STEPS}" in message(capfd)
    assert not list((tmp_path / "exp").glob("*.pth"))
    assert toy.in_child([*arguments, f"total_steps={3 * STEPS}"]) == 0


@pytest.mark.parametrize("limit", [3000, 40000])  # bytes: no state fits; weights of an epoch do
def test_full_disk_is_told_in_a_line(data, tmp_path, capfd, limit):
    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        original = trainer.DistillTrainer.run.__func__

        def limited(cls, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return original(cls, **kwargs)

        trainer.DistillTrainer.run = classmethod(limited)

    output_dir = tmp_path / "exp"
    assert toy.in_child(toy.command(data, output_dir, "--max_epoch", "1"), prepare) == 2
    assert "free space and run the same command again" in message(capfd)
    assert not list(output_dir.glob(".*.tmp*"))
    assert toy.in_child(toy.command(data, output_dir, "--max_epoch", "1")) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_file_is_told_in_a_line(tmp_path, capfd, workers):
    data = toy.write_data(tmp_path / "data")
    (data / "train" / "train03.wav.flac").write_bytes(b"xx")
    assert toy.in_child(toy.command(data, tmp_path / "exp", "--num_workers", workers)) == 2
    text = message(capfd)
    assert text.strip().startswith("utterance train03: cannot read") and len(text.strip().splitlines()) == 1


def test_a_half_written_configuration_does_not_block(data, reference, tmp_path):
    output_dir = tmp_path / "exp"
    arguments = toy.command(data, output_dir)
    assert toy.in_child(arguments, toy.call_at(BestEpochs, "publish", 1, toy.kill_self)) == -signal.SIGKILL
    config = output_dir / "config.yaml"
    config.write_text(config.read_text()[:700])
    assert toy.in_child([*arguments, "--optim_conf", "lr=0.02"]) == 2
    assert toy.in_child(arguments) == 0
    assert_same_run(output_dir, reference)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--best_model_criterion", "valid,los,min"), "--best_model_criterion valid,los is not .* valid,loss"),
        (("--best_model_criterion", "valid,loss,min", "train,los,min"), "--best_model_criterion train,los is not"),
        (("--patience", "1", "--early_stopping_criterion", "valid", "los", "min"), "--early_stopping_criterion valid"),
    ],
)
def test_unknown_criterion_is_refused_before_much_is_lost(data, reference, tmp_path, capfd, options, words):
    output_dir = tmp_path / "exp"
    assert toy.in_child(toy.command(data, output_dir, *options)) == 2
    assert re.search(words, message(capfd))
    if "train" in words:
        assert checkpoint.load_training_state(output_dir) is None
    else:
        assert sorted(checkpoint.load_training_state(output_dir)["reporter"]) == [1]
        assert toy.in_child(toy.command(data, output_dir)) == 0
        assert_same_run(output_dir, reference)


def test_espnets_default_criteria_are_accepted(data, tmp_path):
    given = ("--best_model_criterion", "valid,loss,min")
    arguments = [a for a in toy.command(data, tmp_path / "exp") if a not in given]
    options = trainer.DistillTrainer.build_options(toy.ToyTask.get_parser().parse_args(arguments))
    assert options.best_model_criterion == [("train", "loss", "min"), ("valid", "loss", "min")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--best_model_criterion", "valid,pesq,max"), "--quality_utts"),
        (("--ema_decay", "1.5"), "--ema_decay"),
        (("--best_model_criterion", "valid,loss,mn"), "--best_model_criterion valid,loss,mn"),
        (("--best_model_criterion", "test,loss,min"), "--best_model_criterion test,loss,min"),
        (("--patience", "1", "--early_stopping_criterion", "valid", "loss", "low"), "--early_stopping_criterion"),
        (("--use_amp", "true"), "--use_amp true needs a GPU"),
        (("--iterator_type", "chunk"), "--iterator_type chunk is not supported"),
        (("--save_interval_steps", "-1"), "--save_interval_steps"),
        (("--use_wandb", "true"), "--use_wandb true is not supported"),
    ],
)
def test_bad_options_are_named(data, tmp_path, options, words):
    args = toy.ToyTask.get_parser().parse_args(toy.command(data, tmp_path / "exp", *options))
    with pytest.raises(UserError, match=words):
        trainer.DistillTrainer.build_options(args)


def test_early_stop(data, tmp_path):
    options = ("--patience", "0", "--early_stopping_criterion", "valid", "loss", "max", "--max_epoch", "9")
    arguments = toy.command(data, tmp_path / "exp", *options)
    assert toy.in_child(arguments) == 0
    epochs = len(metrics(tmp_path / "exp")) // 2
    assert epochs < 9
    assert toy.in_child(arguments) == 0  # again: it stays stopped
    assert len(metrics(tmp_path / "exp")) // 2 == epochs


def test_time_of_an_interrupted_epoch_adds_up(data, tmp_path):
    """Throughput counts the audio and the seconds before an interruption, too."""
    arguments = toy.command(data, tmp_path / "exp", "--max_epoch", "1")

    def stop():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    assert toy.in_child(arguments, toy.call_at(*STEP, 5, stop, before=True)) == 75
    assert toy.in_child(arguments) == 0
    train = metrics(tmp_path / "exp")[0]
    assert train["total_count"] == STEPS
    assert train["seconds"] > 0.2
    audio = train["audio_seconds_per_second"] * train["seconds"] * toy.RATE
    assert 0.9 * STEPS * 4 * toy.CHUNK < audio <= STEPS * 4 * toy.CHUNK
