"""Simulated rooms against geometry: direction of arrival, channels, delays, reverberation, levels."""

import importlib.util

import numpy as np
import pytest

from i2srf_kd.audio.level import active_power
from i2srf_kd.corpora.ambisonics_rooms import Scene, draw_room, draw_scene, impulse_responses, record
from i2srf_kd.system.errors import UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyroomacoustics") is None, reason="no pyroomacoustics")
FS = 16000
SIZE = np.array([8.0, 7.0, 6.0])
MIC = np.array([4.0, 3.5, 3.0])
SPEED = 343.0  # m/s


def scene_from(direction, distance=2.0, rt60=0.0, noises=()):
    return Scene(SIZE, rt60, MIC, MIC + distance * np.asarray(direction), np.reshape(noises, (-1, 3)))


def directions(count):
    vectors = np.random.default_rng(1).standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def arrival(channels):
    """Unit vector (x, y, z) to the source, from the active intensity of W, Y, Z, X signals (4, samples)."""
    w, y, z, x = channels
    intensity = np.array([np.mean(w * v) for v in (x, y, z)])
    return intensity / np.linalg.norm(intensity)


def test_direction_of_arrival_in_an_almost_anechoic_room():
    noise = np.random.default_rng(0).standard_normal(8000)
    for direction in directions(12):
        response = impulse_responses(scene_from(direction, rt60=0.19), FS).speech
        assert np.any(response[0][300:])  # reflections, after the direct sound at sample 93
        heard = np.stack([np.convolve(noise, channel) for channel in response[:4]])
        angle = np.degrees(np.arccos(np.clip(arrival(heard) @ direction, -1, 1)))
        assert angle < 5.0, f"{angle:.1f} degrees off {direction}"


def test_channels_are_pressure_and_direction_cosines():
    for direction in directions(5):
        response = impulse_responses(scene_from(direction), FS).speech[:4]
        x, y, z = direction
        gains = response @ response[0] / (response[0] @ response[0])
        np.testing.assert_allclose(gains, [1.0, y, z, x], atol=1e-4)
        np.testing.assert_allclose(response, np.outer([1.0, y, z, x], response[0]), atol=1e-4)


def delay_between(first, second):
    """Samples by which ``second`` comes after ``first``, from the slope of the phase between them below 4 kHz."""
    n_fft = 4096
    cross = np.fft.rfft(second, n_fft) * np.conj(np.fft.rfft(first, n_fft))
    bins = np.arange(1, n_fft // 4)
    phase = np.unwrap(np.angle(cross[bins]))
    return -np.polyfit(2 * np.pi * bins / n_fft, phase, 1)[0]


@pytest.mark.parametrize("along_x, expected", [(1.0, -0.2), (-1.0, 0.2)])
def test_b_stands_20_cm_from_a_along_x(along_x, expected):
    response = impulse_responses(scene_from([along_x, 0.0, 0.0]), FS).speech
    assert delay_between(response[0], response[4]) == pytest.approx(expected / SPEED * FS, abs=0.02)
    response = impulse_responses(scene_from([0.0, 0.0, 1.0]), FS).speech
    beside = (np.hypot(2.0, 0.2) - 2.0) / SPEED * FS
    assert delay_between(response[0], response[4]) == pytest.approx(beside, abs=0.02)


def test_responses_begin_when_the_source_sounds():
    response = impulse_responses(scene_from([0.0, 1.0, 0.0], distance=1.715), FS)
    assert np.argmax(np.abs(response.direct)) == 80  # 1.715 m / 343 m/s * 16 kHz
    np.testing.assert_allclose(response.direct, response.speech[0], atol=1e-9)


def decay_time(response):
    """RT60 from the slope of Schroeder's backward integral between -5 and -25 dB."""
    decay = np.cumsum(response[::-1] ** 2)[::-1]
    level = 10 * np.log10(np.maximum(decay / decay[0], 1e-12))
    part = np.flatnonzero((level < -5) & (level > -25))
    return -60 / np.polyfit(part / FS, level[part], 1)[0]


@pytest.mark.parametrize("rt60", [0.25, 0.4])
def test_reverberation_time_is_near_the_one_asked_for(rt60):
    scene = draw_scene(np.array([5.0, 4.0, 3.0]), rt60, np.random.default_rng(2), n_noises=0)
    assert decay_time(impulse_responses(scene, FS).speech[0]) == pytest.approx(rt60, rel=0.35)


def speech_like(seconds=1.0):
    random = np.random.default_rng(3)
    envelope = np.repeat(random.uniform(0.1, 1.0, int(10 * seconds)), FS // 10)
    return 0.02 * envelope * random.standard_normal(len(envelope))


def test_label_is_the_direct_sound_at_w_of_a_and_shares_the_mixtures_scale():
    speech = speech_like()
    dry = record(scene_from([0.6, 0.0, 0.8]), speech, [], 0.0, FS)
    np.testing.assert_allclose(dry.label, dry.a[:, 0], atol=1e-9)
    reverberant = record(scene_from([0.6, 0.0, 0.8], rt60=0.3), speech, [], 0.0, FS)
    lags = np.correlate(reverberant.a[:, 0], reverberant.label, "full")
    assert np.argmax(lags) - (len(speech) - 1) == 0
    assert reverberant.a.shape == reverberant.b.shape == (len(speech), 4) and reverberant.label.shape == speech.shape


def test_noise_has_the_ratio_asked_for_at_w_of_a():
    speech, noise = speech_like(), 7.0 * np.random.default_rng(4).standard_normal(FS)
    scene = scene_from([1.0, 0.0, 0.0], rt60=0.25, noises=MIC + [0.0, 1.0, 0.5])
    clean = record(scene._replace(noises=np.zeros((0, 3))), speech, [], 0.0, FS)
    noisy = record(scene, speech, [noise], 6.0, FS)
    added = (noisy.a - clean.a)[:, 0]
    assert 10 * np.log10(active_power(clean.a[:, 0], FS) / np.mean(added**2)) == pytest.approx(6.0, abs=1e-6)
    np.testing.assert_allclose(noisy.label, clean.label)
    loud = record(scene, 40 * speech, [noise], 6.0, FS)
    assert max(np.abs(loud.a).max(), np.abs(loud.b).max()) <= 0.98 + 1e-12
    gain = loud.label.max() / noisy.label.max()
    np.testing.assert_allclose(loud.b, gain * noisy.b, atol=1e-9)


def test_scenes_keep_away_from_walls_and_microphones():
    random = np.random.default_rng(5)
    for _ in range(50):
        size, rt60 = draw_room(random, (0.05, 0.3))
        scene = draw_scene(size, rt60, random, n_noises=2)
        assert len(scene.noises) == 2
        b = scene.mic + [0.2, 0.0, 0.0]
        for place in (scene.speech, *scene.noises):
            assert min(np.linalg.norm(place - scene.mic), np.linalg.norm(place - b)) >= 0.6
        for place in (scene.mic, b, scene.speech, *scene.noises):
            assert np.all(place[:2] >= 0.39) and np.all(size[:2] - place[:2] >= 0.39) and 0.8 <= place[2] <= 1.9
        assert rt60 < 0.31


def test_impossible_scenes():
    with pytest.raises(UserError, match="8.0 x 7.0 x 6.0 m cannot have an RT60 of 0.05 s, at least 0.19 s"):
        impulse_responses(scene_from([1, 0, 0], rt60=0.05), FS)
    with pytest.raises(UserError, match="1 noises for a scene with 0 sources"):
        record(scene_from([1, 0, 0]), speech_like(), [np.ones(5)], 0.0, FS)
    with pytest.raises(UserError, match="clean speech is silent"):
        record(scene_from([1, 0, 0], noises=MIC + 1), np.zeros(FS), [np.ones(FS)], 0.0, FS)
