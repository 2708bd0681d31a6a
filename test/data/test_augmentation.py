"""Which changes are drawn, for which channels, and that mixture and reference stay a pair."""

import numpy as np
import pytest

from i2srf_kd.audio import ambisonics
from i2srf_kd.data.augmentation import Augmentation
from i2srf_kd.system.errors import UserError


def signals(mics, samples=50):
    random = np.random.default_rng(0)
    mixture = random.normal(0, 1, (samples, 4 * mics)).astype(np.float32)
    return {"speech_mix": mixture, "speech_ref1": mixture[:, 0].copy()}


def augmented(mics, seed, **options):
    options = {"level_db": [0, 0], **options}
    return Augmentation.from_options(options)(signals(mics), (1, 2, seed))


def seen(mics, moves, **options):
    """How often each of the moves was drawn; every result must be one of them."""
    wave, counts = signals(mics)["speech_mix"], dict.fromkeys(moves, 0)
    for seed in range(80):
        result = augmented(mics, seed, **options)
        np.testing.assert_array_equal(result["speech_ref1"], wave[:, 0])
        equal = [name for name, move in moves.items() if np.allclose(move(wave), result["speech_mix"], atol=1e-6)]
        assert len(equal) == 1, equal
        counts[equal[0]] += 1
    return counts


def exchanged(move):
    return lambda wave: ambisonics.exchange_microphones(move(wave))


NOTHING = {"nothing": lambda wave: wave}
LEFT_RIGHT = {"left and right": ambisonics.mirror_left_right}
UP_DOWN = {"up and down": ambisonics.mirror_up_down}
FRONT_BACK = {"front and back": exchanged(ambisonics.mirror_front_back)}
HALF_TURN = {"half a turn": exchanged(lambda wave: ambisonics.rotate(wave, np.pi))}


@pytest.mark.parametrize(
    "mics, options, moves",
    [
        (1, {"mirror": True}, {**NOTHING, **LEFT_RIGHT}),
        (1, {"mirror_vertical": True}, {**NOTHING, **UP_DOWN}),
        (2, {"rotation": True}, NOTHING),
        (2, {"rotation": True, "mirror": True}, {**NOTHING, **LEFT_RIGHT}),
        (2, {"rotation": True, "swap_mics": True}, {**NOTHING, **HALF_TURN}),
        (2, {"mirror": True, "swap_mics": True}, {**NOTHING, **LEFT_RIGHT, **FRONT_BACK, **HALF_TURN}),
        (
            2,
            {"rotation": True, "mirror": True, "swap_mics": True},
            {**NOTHING, **LEFT_RIGHT, **FRONT_BACK, **HALF_TURN},
        ),
    ],
)
def test_exactly_the_exact_moves_are_drawn_equally_often(mics, options, moves):
    counts = seen(mics, moves, **options)
    assert min(counts.values()) > 80 / len(moves) / 2


def test_one_microphone_turns_by_any_angle():
    wave, angles = signals(1)["speech_mix"], []
    for seed in range(80):
        result = augmented(1, seed, rotation=True)["speech_mix"]
        cosine, sine = np.linalg.lstsq(
            np.concatenate([wave[:, [3, 1]] * [1, -1], wave[:, [1, 3]]]),
            np.concatenate([result[:, 3], result[:, 1]]),
            rcond=None,
        )[0]
        np.testing.assert_allclose(result, ambisonics.rotate(wave, np.arctan2(sine, cosine)), atol=1e-5)
        angles.append(np.arctan2(sine, cosine))
    assert np.histogram(angles, 4, (-np.pi, np.pi))[0].min() > 8


def test_any_angle_turns_both_microphones_alike():
    wave = signals(2)["speech_mix"]
    result = augmented(2, 0, rotation="any_angle")["speech_mix"]
    alone = augmented(1, 0, rotation=True)  # the same draw
    angle = 2 * np.pi * np.random.default_rng([0x617567, 1, 2, 0]).random()
    np.testing.assert_allclose(result, ambisonics.rotate(wave, angle), atol=1e-6)
    np.testing.assert_allclose(alone["speech_mix"], ambisonics.rotate(signals(1)["speech_mix"], angle), atol=1e-6)


def test_level_is_common_and_within_its_range():
    mono = {"speech_mix": np.ones(9, np.float32), "speech_ref1": np.full(9, 0.5, np.float32)}
    augment = Augmentation.from_options({"level_db": [-6, 3]})
    levels = []
    for seed in range(100):
        result = augment(mono, (seed,))
        assert result["speech_mix"].dtype == np.float32
        np.testing.assert_allclose(result["speech_ref1"], result["speech_mix"] / 2)
        levels.append(20 * np.log10(result["speech_mix"][0]))
    assert -6 <= min(levels) < -5 and 2 < max(levels) <= 3


def test_references_with_as_many_channels_move_along():
    batch = signals(1)
    batch["speech_ref1"] = batch["speech_mix"] / 2
    result = Augmentation.from_options({"rotation": True})(batch, (3,))
    np.testing.assert_allclose(result["speech_ref1"], result["speech_mix"] / 2)


def test_draws_depend_on_the_seed_alone_and_not_on_other_options():
    np.random.seed(1)
    first = augmented(1, 5, rotation=True)["speech_mix"]
    np.random.seed(2)
    np.testing.assert_array_equal(first, augmented(1, 5, rotation=True)["speech_mix"])
    assert not np.array_equal(first, augmented(1, 6, rotation=True)["speech_mix"])
    louder = augmented(1, 5, rotation=True, level_db=[6, 6])["speech_mix"]
    np.testing.assert_allclose(louder, first * 10 ** (6 / 20), rtol=1e-5)


@pytest.mark.parametrize(
    "options, channels, word",
    [
        ({"rotate": True}, 4, "augmentation has no option rotate: it has rotation, mirror"),
        ({"mirror": "yes"}, 4, "mirror must be true or false, not 'yes'"),
        ({"rotation": 90}, 4, "rotation must be true or false or any_angle, not 90"),
        ({"level_db": 6}, 4, r"level_db must be \[lowest, highest\]"),
        ({"level_db": [6, -6]}, 4, "must rise"),
        ({"mirror": True}, 1, r"mirror does not fit these mixtures: 1 channel\(s\)"),
        ({"rotation": True}, 6, r"rotation does not fit .*6 channel\(s\)"),
        ({"rotation": True}, 12, "one or two microphones, 12 channels are 3"),
        ({"mirror": True, "swap_mics": True}, 4, "swap_mics needs two microphones"),
        ({"swap_mics": True}, 8, "swap_mics alone is no move"),
    ],
)
def test_bad_options_are_named(options, channels, word):
    with pytest.raises(UserError, match=word):
        Augmentation.from_options(options).check(channels)


def test_description_says_what_is_drawn():
    augment = Augmentation.from_options({"rotation": True, "mirror": True, "level_db": [-6, 6]})
    assert augment.describe(4) == "rotation by any angle; left and right mirrored; level -6 to 6 dB"
    assert augment.describe(8).startswith(
        "no rotation (two microphones: only half a turn is exact, and needs swap_mics"
    )
    assert "no field" in Augmentation(rotation="any_angle").describe(8)
    assert "no field" not in Augmentation(rotation="any_angle").describe(4)
    Augmentation.from_options({"level_db": [-6, 6]}).check(1)
