"""L3DAS23-like recordings in simulated rooms: two first-order Ambisonics microphones, a speaker and noise sources.

    scene = draw_scene(*draw_room(random), random, n_noises=1)
    recording = record(scene, speech, [noise], snr=5.0, fs=16000)  # .a and .b: (samples, 4), .label: (samples,)

Channels are AmbiX: ACN order W, Y, Z, X with SN3D weights, that is the pressure and the direction cosines of what
arrives along y, z and x. Microphone B stands 20 cm from A along x, as in L3DAS23.

The reference is the direct sound of the speech at A's W: delayed and attenuated by the distance, without any
reflection, hence aligned in time with the mixture. Needs the package pyroomacoustics (image sources).
"""

from typing import Any, List, NamedTuple, Sequence, Tuple

import numpy as np
from scipy.signal import fftconvolve

from i2srf_kd.audio.level import active_power
from i2srf_kd.corpora.synthesis import PEAK, audible_gain
from i2srf_kd.system.errors import UserError

CHANNELS = ("W", "Y", "Z", "X")
MIC_SPACING = np.array([0.2, 0.0, 0.0])  # m, from microphone A to B
# Direction of each figure of eight in degrees: azimuth from x towards y, and the angle from the vertical.
_FIGURES_OF_EIGHT = {"Y": (90.0, 90.0), "Z": (0.0, 0.0), "X": (0.0, 90.0)}
_SMALLEST_ROOM, _LARGEST_ROOM = np.array([3.5, 3.0, 2.4]), np.array([8.0, 6.0, 3.5])  # m
_FROM_WALLS = 0.4  # m, for microphones and sources
_FROM_MICS = 0.6  # m, for sources
_HEIGHTS = (0.8, 1.9)  # m, of microphones and sources
_SABINE = 0.161  # s/m: RT60 is this times volume over absorbing area
_MOST_ABSORPTION = 0.99


class Scene(NamedTuple):
    """Where everything is: metres from a corner of the room."""

    size: np.ndarray  # (3,), of the room
    rt60: float  # seconds, by Sabine's formula; 0: no reflections at all
    mic: np.ndarray  # (3,), microphone A
    speech: np.ndarray  # (3,)
    noises: np.ndarray  # (sources, 3)


class Responses(NamedTuple):
    """Room impulse responses to A's four channels and then B's."""

    speech: np.ndarray  # (8, samples)
    noises: List[np.ndarray]  # (8, samples) per source
    direct: np.ndarray  # (samples,), of the speech at A's W without reflections


class Recording(NamedTuple):
    """One utterance as in the corpus; everything has the same length and one common scale."""

    a: np.ndarray  # (samples, 4)
    b: np.ndarray  # (samples, 4)
    label: np.ndarray  # (samples,)


def draw_room(random: np.random.Generator, rt60: Tuple[float, float] = (0.2, 0.5)) -> Tuple[np.ndarray, float]:
    """Size ``(3,)`` in metres and RT60 in seconds of a room, uniform in their ranges.

    A reverberation time that the room could not have, however absorbing its walls, is raised to the shortest it can.
    """
    size = random.uniform(_SMALLEST_ROOM, _LARGEST_ROOM)
    return size, max(float(random.uniform(*rt60)), _shortest_rt60(size))


def _shortest_rt60(size: np.ndarray) -> float:
    volume = np.prod(size)
    area = 2 * volume * np.sum(1 / size)
    return float(_SABINE * volume / area / _MOST_ABSORPTION)


def draw_scene(size: np.ndarray, rt60: float, random: np.random.Generator, n_noises: int) -> Scene:
    """Place the microphones, the speaker and ``n_noises`` sources of noise in a room."""
    low = np.array([_FROM_WALLS, _FROM_WALLS, _HEIGHTS[0]])
    high = np.array([size[0] - _FROM_WALLS, size[1] - _FROM_WALLS, _HEIGHTS[1]])
    mic = random.uniform(low, high - MIC_SPACING)
    places: List[np.ndarray] = []
    while len(places) < 1 + n_noises:
        place = random.uniform(low, high)
        if min(np.linalg.norm(place - mic), np.linalg.norm(place - mic - MIC_SPACING)) >= _FROM_MICS:
            places.append(place)
    return Scene(size, rt60, mic, places[0], np.reshape(places[1:], (-1, 3)))


def impulse_responses(scene: Scene, fs: int) -> Responses:
    """Impulse responses of a scene, beginning when a source sounds.

    Raises:
        UserError: pyroomacoustics is not installed, or the room cannot have that reverberation time.
    """
    sources = [scene.speech, *scene.noises]
    both = [scene.mic, scene.mic + MIC_SPACING]
    speech, *noises = _image_sources(scene.size, scene.rt60, sources, both, fs)
    ((direct, *_),) = _image_sources(scene.size, 0.0, sources[:1], both[:1], fs)
    return Responses(speech, noises, direct)


def _image_sources(
    size: np.ndarray, rt60: float, sources: Sequence[np.ndarray], mics: Sequence[np.ndarray], fs: int
) -> List[np.ndarray]:
    """Responses ``(4 * mics, samples)`` of each source."""
    pra = _import_pyroomacoustics()
    # Its high-pass filter of the responses is of zero phase and would let them begin before the direct sound.
    pra.constants.set("rir_hpf_enable", False)
    room = pra.ShoeBox(size, fs=fs, **_walls(pra, size, rt60))
    for source in sources:
        room.add_source(source)
    directivities = [_directivity(pra, channel) for _ in mics for channel in CHANNELS]
    places = np.repeat(np.stack(mics, axis=1), len(CHANNELS), axis=1)
    room.add_microphone_array(pra.MicrophoneArray(places, fs, directivity=directivities))
    room.compute_rir()
    early = pra.constants.get("frac_delay_length") // 2  # samples that interpolation puts before each arrival
    responses = []
    for number in range(len(sources)):
        channels = [room.rir[channel][number][early:] for channel in range(len(directivities))]
        length = max(len(channel) for channel in channels)
        responses.append(np.stack([np.pad(channel, (0, length - len(channel))) for channel in channels]))
    return responses


def _walls(pra: Any, size: np.ndarray, rt60: float) -> dict:
    if rt60 == 0.0:
        return {"max_order": 0}
    try:
        absorption, max_order = pra.inverse_sabine(rt60, size)
    except ValueError:
        dimensions = " x ".join(f"{side:.1f}" for side in size)
        raise UserError(
            f"a room of {dimensions} m cannot have an RT60 of {rt60} s, at least {_shortest_rt60(size):.2f} s"
        ) from None
    return {"materials": pra.Material(absorption), "max_order": max_order}


def _directivity(pra: Any, channel: str) -> Any:
    if channel == "W":
        return pra.directivities.Omnidirectional()
    azimuth, colatitude = _FIGURES_OF_EIGHT[channel]
    return pra.directivities.FigureEight(pra.directivities.DirectionVector(azimuth, colatitude, degrees=True))


def _import_pyroomacoustics() -> Any:
    try:
        import pyroomacoustics
    except ImportError:
        raise UserError("simulated rooms need the package pyroomacoustics: run pip install pyroomacoustics") from None
    return pyroomacoustics


def record(scene: Scene, speech: np.ndarray, noises: Sequence[np.ndarray], snr: float, fs: int) -> Recording:
    """Let the sources of a scene sound.

    Args:
        scene: with as many noise sources as ``noises``.
        speech: dry speech ``(samples,)``; its active level becomes that of the reverberant speech at A's W.
        noises: ``(samples,)`` each; at A's W all have the same power.
        snr: active level of the speech over the level of all noise, both with reverberation at A's W, in dB.
        fs: sampling rate in Hz.

    Raises:
        UserError: the speech is silent, or there are not as many noises as the scene has sources.
    """
    if len(noises) != len(scene.noises):
        raise UserError(f"{len(noises)} noises for a scene with {len(scene.noises)} sources of noise")
    responses = impulse_responses(scene, fs)
    reverberant = _play(speech, responses.speech)
    label = _play(speech, responses.direct)
    gain = np.sqrt(active_power(speech, fs) / max(active_power(reverberant[0], fs), 1e-20))
    reverberant, label = gain * reverberant, gain * label
    mixture = reverberant
    if noises:
        arrived = [_play(noise, response) for noise, response in zip(noises, responses.noises, strict=True)]
        noise = sum(wave / np.sqrt(max(np.mean(wave[0] ** 2), 1e-20)) for wave in arrived)
        mixture = reverberant + audible_gain(reverberant[0], noise[0], snr, fs) * noise
    scale = min(1.0, PEAK / max(np.abs(mixture).max(), np.abs(label).max()))
    channels = scale * mixture.T
    return Recording(channels[:, :4], channels[:, 4:], scale * label)


def _play(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """``(samples,)`` through a response ``(..., taps)``, cut to the length of the signal."""
    wave = np.broadcast_to(wave, (*response.shape[:-1], len(wave)))
    return fftconvolve(wave, response, axes=-1)[..., : wave.shape[-1]]
