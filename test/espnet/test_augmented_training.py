"""Two first-order microphones through batches and training: augmentation that repeats, and the front stage."""

import json

import numpy as np
import pytest
import soundfile
import torch
import toy

from i2srf_kd.audio import ambisonics
from i2srf_kd.espnet.trainer import TrainingRun
from i2srf_kd.inference.loading import load_enhancer
from i2srf_kd.system.errors import UserError

OPTIONS = {"rotation": True, "mirror": True, "level_db": [-6, 6]}
SEPARATOR = """--separator dpdcrn --separator_conf channels=8 --separator_conf heads=2 --separator_conf num_mics=8
    --separator_conf front=channel_attention"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy.write_data(tmp_path_factory.mktemp("data"), channels=8)


def build(data, mode="train", augmentation=OPTIONS, **changes):
    return toy.loaders(data, mode, augmentation=augmentation, **changes)


def test_mixture_and_reference_are_changed_as_a_pair(data):
    plain, changed = list(build(data, augmentation={}).build_iter(1)), list(build(data).build_iter(1))
    gains, flipped = [], 0
    for (_, before), (_, after) in zip(plain, changed, strict=True):
        for mix, ref, new_mix, new_ref in zip(
            *(batch[name].numpy() for batch in (before, after) for name in ("speech_mix", "speech_ref1")), strict=True
        ):
            gain = np.linalg.norm(new_ref) / np.linalg.norm(ref)
            np.testing.assert_allclose(new_ref, gain * ref, atol=1e-5)
            either = [np.allclose(new_mix, gain * m, atol=1e-5) for m in (mix, ambisonics.mirror_left_right(mix))]
            assert sum(either) == 1
            flipped += either[1]
            gains.append(20 * np.log10(gain))
    assert -6.01 <= min(gains) < -2 and 2 < max(gains) <= 6.01
    assert 0.2 * len(gains) < flipped < 0.8 * len(gains)


def test_workers_restarts_and_ranks_see_the_same(data):
    whole = list(build(data).build_iter(2))
    toy.assert_same_batches(whole, list(build(data, num_workers=2).build_iter(2)))
    toy.assert_same_batches(whole[5:], list(build(data).build_iter(2, start_batch=5)))
    assert not torch.equal(whole[0][1]["speech_mix"], next(iter(build(data, seed=2).build_iter(2)))[1]["speech_mix"])
    for rank in range(2):
        factory = build(data)
        batches = factory.make_batches(2)
        factory.rank, factory.world_size = rank, 2
        factory.make_batches = lambda epoch, r=rank, b=batches: [batch[2 * r : 2 * r + 2] for batch in b]
        for (ids, part), (all_ids, batch) in zip(factory.build_iter(2), whole, strict=True):
            assert ids == all_ids[2 * rank : 2 * rank + 2]
            assert torch.equal(part["speech_mix"], batch["speech_mix"][2 * rank : 2 * rank + 2])


def test_validation_is_left_alone(data):
    toy.assert_same_batches(
        list(build(data, "valid").build_iter(1)), list(build(data, "valid", augmentation={}).build_iter(1))
    )


@pytest.mark.parametrize(
    "augmentation, word",
    [
        ({"swap_mics": True}, "swap_mics alone"),
        ({"rotate": True}, "no option rotate"),
        ({"level_db": "loud"}, "level_db"),
    ],
)
def test_bad_options_end_before_any_work(data, augmentation, word):
    with pytest.raises(UserError, match=word):
        build(data, augmentation=augmentation)


def test_a_mixture_with_other_channels_is_refused(tmp_path):
    data = toy.write_data(tmp_path)
    with pytest.raises(UserError, match=r"rotation does not fit these mixtures: 1 channel\(s\)"):
        build(data)
    batches = list(build(data, augmentation={"level_db": [3, 3]}).build_iter(1))
    before = list(build(data, augmentation={}).build_iter(1))
    torch.testing.assert_close(batches[0][1]["speech_mix"], before[0][1]["speech_mix"] * 10 ** (3 / 20))


@pytest.mark.slow
def test_killed_and_resumed_training_ends_alike(data, tmp_path):
    options = [f"--augmentation={name}={json.dumps(value)}" for name, value in OPTIONS.items()]
    more = [word for option in options for word in option.split("=", 1)] + ["--max_epoch", "2"]

    def command(name, *extra):
        return toy.command(data, tmp_path / name, *more, *extra, separator=SEPARATOR)

    die_at_step_12 = toy.call_at(TrainingRun, "between_steps", 12, toy.kill_self, before=True)
    assert toy.in_child(command("whole")) == 0
    save = ("--save_interval_steps", "5")
    assert toy.in_child(command("killed", *save), prepare=die_at_step_12) == -9
    assert toy.in_child(command("killed", *save, "--resume", "true")) == 0
    whole = toy.weights(tmp_path / "whole")
    assert toy.same(whole, toy.weights(tmp_path / "killed"))
    assert whole["separator.net.front.gain"].abs() > 0  # it has learned
    assert not toy.same(whole, toy.weights(tmp_path / "whole", "1epoch.pth"))
    mixture, rate = soundfile.read(data / "valid" / "valid03.wav.flac", dtype="float32")
    enhanced = load_enhancer(tmp_path / "whole")(mixture, rate)
    assert enhanced.shape == (len(mixture),) and np.isfinite(enhanced).all() and enhanced.any()
