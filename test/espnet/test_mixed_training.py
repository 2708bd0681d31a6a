"""Mixtures made while training, through batches, ranks, kills and the run guard."""

import json

import numpy as np
import pytest
import soundfile
import torch
import toy

from i2srf_kd.espnet.task import DistillEnhancementTask
from i2srf_kd.espnet.trainer import TrainingRun
from i2srf_kd.system.errors import UserError

SEPARATOR = "--separator dpdcrn --separator_conf channels=8 --separator_conf heads=2"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = toy.write_data(tmp_path_factory.mktemp("data"))
    random = np.random.default_rng(0)
    (folder / "noise").mkdir()
    for number in range(3):
        soundfile.write(folder / "noise" / f"n{number}.wav", random.normal(0, 0.1, 4000), toy.RATE)
    return folder


def mixing(data, **more):
    return {"noise": [str(data / "noise")], "snr_db": [0, 10], "speech_shaped": 0.3, "speakers": None, **more}


def build(data, mode="train", section=None, **changes):
    return toy.loaders(data, mode, mixing=mixing(data) if section is None else section, **changes)


def test_every_epoch_has_mixtures_of_its_own_and_the_sets_speech(data):
    fixed, first, second = (
        [batch for _, batch in build(data, section=s).build_iter(e)] for s, e in (({}, 1), (None, 1), (None, 2))
    )
    assert all(batch["speech_mix"].shape == (4, toy.CHUNK) == batch["speech_ref1"].shape for batch in first)
    assert all((batch["num_samples"] == toy.CHUNK).all() for batch in first)
    seen = {item.numpy().tobytes() for batches in (fixed, first, second) for b in batches for item in b["speech_mix"]}
    assert len(seen) >= 4 * (len(first) + len(second))
    assert all(batch["speech_ref1"].abs().amax(1).gt(0.1).all() for batch in first)


def test_workers_restarts_and_ranks_see_the_same(data):
    whole = list(build(data).build_iter(2))
    toy.assert_same_batches(whole, list(build(data, num_workers=2).build_iter(2)))
    toy.assert_same_batches(whole[5:], list(build(data).build_iter(2, start_batch=5)))
    mixtures = []
    for rank in range(2):
        factory = build(data)
        batches = factory.make_batches(2)
        factory.rank, factory.world_size = rank, 2
        factory.make_batches = lambda epoch, r=rank, b=batches: [batch[2 * r : 2 * r + 2] for batch in b]
        parts = list(factory.build_iter(2))
        for (ids, part), (all_ids, batch) in zip(parts, whole, strict=True):
            assert ids == all_ids[2 * rank : 2 * rank + 2]
            assert torch.equal(part["speech_mix"], batch["speech_mix"][2 * rank : 2 * rank + 2])
        mixtures.append({item.numpy().tobytes() for _, part in parts for item in part["speech_mix"]})
    assert not mixtures[0] & mixtures[1]


def test_validation_is_left_alone(data):
    toy.assert_same_batches(
        list(build(data, "valid").build_iter(1)), list(build(data, "valid", section={}).build_iter(1))
    )


def test_bad_sections_end_before_any_work(data, tmp_path):
    for section, words in (({"snr": 3}, "no option snr"), (mixing(data, noise=[str(tmp_path)]), "no audio files")):
        with pytest.raises(UserError, match=words):
            build(data, section=section)
    two = toy.write_data(tmp_path / "two", channels=2)
    with pytest.raises(UserError, match="wants speech_mix of one channel"):
        build(two, section=mixing(data))


def command(data, output_dir, *more):
    section = [w for k, v in mixing(data).items() for w in ("--mixing", f"{k}={v}".replace("None", "null"))]
    return toy.command(data, output_dir, "--max_epoch", "2", *section, *more, separator=SEPARATOR)


def test_killed_and_resumed_training_ends_alike(data, tmp_path):
    die_at_step_12 = toy.call_at(TrainingRun, "between_steps", 12, toy.kill_self, before=True)
    assert toy.in_child(command(data, tmp_path / "whole")) == 0
    save = ("--save_interval_steps", "5")
    assert toy.in_child(command(data, tmp_path / "killed", *save), prepare=die_at_step_12) == -9
    assert toy.in_child(command(data, tmp_path / "killed", *save, "--resume", "true")) == 0
    assert toy.same(toy.weights(tmp_path / "whole"), toy.weights(tmp_path / "killed"))


def test_two_processes_learn_what_one_does(data, tmp_path):
    short = ("--max_epoch", "1")
    assert toy.in_child(command(data, tmp_path / "one", *short)) == 0
    assert toy.join(toy.start_ranks(command(data, tmp_path / "two", *short), 2)) == [0, 0]
    one, two = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert one == pytest.approx(two, rel=1e-3) and len(one) == 2  # training and validation


def test_another_noise_folder_is_other_data(data, tmp_path, capfd):
    noise = tmp_path / "noise"
    noise.mkdir()
    wave = np.random.default_rng(0).normal(0, 0.1, 4000)
    soundfile.write(noise / "a.wav", wave, toy.RATE)
    options = ("--mixing", f"noise=[{noise}]", "--max_epoch")

    def run(epochs):
        process = toy.start_child(
            toy.command(data, tmp_path / "run", *options, epochs, "--resume", "true", separator=SEPARATOR),
            task=DistillEnhancementTask,
        )
        return toy.join([process])[0]

    assert run("1") == 0
    soundfile.write(noise / "a.wav", wave / 2, toy.RATE)
    assert run("2") == 2
    assert "the training data changed since" in capfd.readouterr().err
    soundfile.write(noise / "a.wav", wave, toy.RATE)
    assert run("2") == 0
