"""Moving the recorded field against recording a moved scene: plane waves, and near sources at two microphones."""

import numpy as np
import pytest

from i2srf_kd.audio import ambisonics

RATE, SPEED = 16000, 343.0
SPACING = 0.2  # metres from the first microphone to the second along x
ANGLES = [(0.3, 0.0), (-2.0, 0.4), (3.0, -1.1)]
MOVES = {
    "left and right": ([1, -1, 1], ambisonics.mirror_left_right),
    "up and down": ([1, 1, -1], ambisonics.mirror_up_down),
    "front and back": ([-1, 1, 1], ambisonics.mirror_front_back),
    "half a turn": ([-1, -1, 1], lambda wave: ambisonics.rotate(wave, np.pi)),
}


def noise(samples=400, seed=0):
    return np.random.default_rng(seed).normal(0, 1, samples)


def record(position, microphone):
    """W, Y, Z, X of a point source in the free field, with delay, decay and the near field of the particle velocity."""
    spectrum = np.fft.rfft(noise(), 2048)
    omega = 2 * np.pi * np.fft.rfftfreq(2048, 1 / RATE)
    offset = np.asarray(position, float) - microphone
    distance = np.linalg.norm(offset)
    pressure = spectrum * np.exp(-1j * omega * distance / SPEED) / distance
    near = np.zeros(len(omega), complex)
    near[1:] = SPEED / (1j * omega[1:] * distance)
    x, y, z = (pressure * (1 + near) * cosine for cosine in offset / distance)
    return np.fft.irfft(np.stack([pressure, y, z, x], 1), axis=0)


def record_pair(positions):
    """Both microphones, (samples, 8), of several sources, as a room has them with their images."""
    microphones = np.zeros(3), np.array([SPACING, 0, 0])
    return sum(np.concatenate([record(position, m) for m in microphones], axis=1) for position in positions)


SCENE = np.array([[0.7, 0.4, 0.1], [-1.5, 2.0, -0.6], [0.15, -0.3, 0.2]])


@pytest.mark.parametrize("azimuth, elevation", ANGLES)
def test_rotating_the_signal_is_rotating_the_source(azimuth, elevation):
    wave = ambisonics.encode(noise(), azimuth, elevation)
    for angle in (0.1, np.pi / 2, -2.5):
        expected = ambisonics.encode(noise(), azimuth + angle, elevation)
        np.testing.assert_allclose(ambisonics.rotate(wave, angle), expected, atol=1e-12)


@pytest.mark.parametrize("azimuth, elevation", ANGLES)
def test_mirrors_of_plane_waves(azimuth, elevation):
    wave = ambisonics.encode(noise(), azimuth, elevation)
    for move, direction in (
        (ambisonics.mirror_left_right, (-azimuth, elevation)),
        (ambisonics.mirror_up_down, (azimuth, -elevation)),
        (ambisonics.mirror_front_back, (np.pi - azimuth, elevation)),
    ):
        np.testing.assert_allclose(move(wave), ambisonics.encode(noise(), *direction), atol=1e-12)


def test_channels_are_in_ambix_order():
    front, left, up = (ambisonics.encode(np.ones(1), *a)[0] for a in ((0, 0), (np.pi / 2, 0), (0, np.pi / 2)))
    np.testing.assert_allclose([front, left, up], [[1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0]], atol=1e-15)


def test_any_rotation_is_exact_for_one_microphone_near_sources_included():
    angle = 0.8
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    one = sum(record(position, np.zeros(3)) for position in SCENE)
    moved = sum(record(turn @ position, np.zeros(3)) for position in SCENE)
    np.testing.assert_allclose(ambisonics.rotate(one, angle), moved, atol=1e-9)
    pair, turned = record_pair(SCENE), record_pair(SCENE @ turn.T)
    assert np.abs(ambisonics.rotate(pair, angle) - turned)[:, 4:].max() > 0.1 * np.abs(turned).max()


@pytest.mark.parametrize("name", MOVES)
def test_moves_that_are_exact_for_two_microphones(name):
    signs, move = MOVES[name]
    exchanged = signs[0] < 0
    centre = np.array([SPACING / 2 if exchanged else 0, 0, 0])  # the half turn is about the middle of the array
    moved = record_pair((SCENE - centre) * signs + centre)
    wave = move(record_pair(SCENE))
    without = np.abs(wave - moved).max()
    if exchanged:
        wave = ambisonics.exchange_microphones(wave)
        assert without > 0.1 * np.abs(moved).max()
    np.testing.assert_allclose(wave, moved, atol=1e-9 * np.abs(moved).max())


def test_the_input_is_left_alone_and_its_type_kept():
    wave = np.ones((3, 8), np.float32)
    for move in (lambda w: ambisonics.rotate(w, 1.0), *(move for _, move in MOVES.values())):
        assert move(wave).dtype == np.float32
        assert (wave == 1).all()


@pytest.mark.parametrize("shape, word", [((5, 3), "3 channel"), ((5, 6), "6 channel"), ((5,), r"expected \(samples")])
def test_other_channel_counts_are_refused(shape, word):
    with pytest.raises(ValueError, match=word):
        ambisonics.mirror_left_right(np.zeros(shape))


ROOM = np.array([4.1, 3.3, 2.5])
MICROPHONE, SOURCE = np.array([1.3, 1.2, 1.1]), np.array([2.9, 2.2, 1.6])


def in_room(size, microphones, source):
    """Impulse response of a reverberant room, (samples, 4 * microphones), by an independent simulation."""
    pytest.importorskip("pyroomacoustics")
    from i2srf_kd.corpora.ambisonics_rooms import _image_sources

    return _image_sources(size, 0.15, [source], microphones, RATE)[0].T


def assert_same_field(found, expected):
    samples = min(len(found), len(expected))
    np.testing.assert_allclose(
        found[:samples], expected[:samples], atol=1e-4 * np.abs(expected).max()
    )  # it is of float32


def test_turning_the_signal_is_turning_a_reverberant_room():
    turned = (ROOM[[1, 0, 2]], *([ROOM[1] - p[1], p[0], p[2]] for p in (MICROPHONE, SOURCE)))  # by 90 degrees
    expected = in_room(turned[0], [np.array(turned[1])], np.array(turned[2]))
    assert_same_field(ambisonics.rotate(in_room(ROOM, [MICROPHONE], SOURCE), np.pi / 2), expected)


@pytest.mark.parametrize("name", MOVES)
def test_moves_of_a_reverberant_room_around_two_microphones(name):
    signs, move = MOVES[name]
    pair = [MICROPHONE, MICROPHONE + [SPACING, 0, 0]]
    moved = [np.where(np.array(signs) < 0, ROOM - p, p) for p in (*pair, SOURCE)]
    moved_pair = sorted(moved[:2], key=lambda p: p[0])  # the first one is the one with the smaller x
    wave = move(in_room(ROOM, pair, SOURCE))
    if signs[0] < 0:
        wave = ambisonics.exchange_microphones(wave)
    assert_same_field(wave, in_room(ROOM, moved_pair, moved[2]))
