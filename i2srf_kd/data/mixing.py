"""Mixtures of speech and noise that are made while training, anew for every step.

mixing:
  noise: [/data/noise]           # folders (any depth), .scp tables, files; none: what other utterances' mixtures hold
  speech: [/data/more_speech]    # beside the references of the training set
  snr_db: [-2, 18]               # of the speech where somebody speaks to the noise
  second_noise: 0.3              # share of the mixtures with a second noise, up to 10 dB below the first
  babble: 0.15                   # share whose noise is 5 to 8 other speakers
  speech_shaped: 0.1             # share whose noise is steady with the spectrum of speech
  residual: 0                    # share whose noise is what another utterance's mixture holds beside its speech
  speakers: '^([^_-]+)[_-]'      # the first group is the speaker in a file's name
  reverberation: 0.3             # share of the mixtures in a room
  responses: [/data/rir]
  reverberation_target: early    # early: the first 50 ms of the response stay in the reference; dry: its direct sound
  gain_db: [-10, 5]              # of mixture and reference
  equalisation_db: 3             # random filters of speech and noise by at most so much
  band_limit: 0.05               # share of the mixtures and their references in a band of 50..300 Hz to 3.4..7 kHz
  low_pass: 0                    # share of the mixtures, without their references, that lose what is above 2..7 kHz
  clipping: 0                    # share of the mixtures, without their references, that are clipped
  noise_only: 0.02               # share without speech
  speech_only: 0.02              # share without noise
  as_recorded: 0                 # share of the training set's own mixtures

What is left out is off; ``snr_db`` is [-5, 20] by default. A mixture depends on the seed of its chunk alone: a resumed
run, and any number of processes, see the same ones. The speech of a chunk is that of the training set's utterance, or,
in proportion to the hours, of ``speech``.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import scipy.fft
import scipy.signal

from i2srf_kd.audio.io import read_audio
from i2srf_kd.audio.level import INAUDIBLE, noise_gain
from i2srf_kd.data.augmentation import MIXTURE
from i2srf_kd.data.chunk_dataset import ParallelFiles, SeededChunk, Signals
from i2srf_kd.data.mixture_sources import (
    Recording,
    draw_stretch,
    find_audio,
    fingerprint,
    load_recordings,
    read_stretch,
    speaker_of,
)
from i2srf_kd.system.config import parse_section
from i2srf_kd.system.errors import UserError

REFERENCE = "speech_ref1"
VOICES = (5, 8)  # in babble
EARLY_SECONDS = 0.05
_STREAM = 0x6D6978  # sets these draws apart from others that are seeded by the same numbers
_SHARES = (
    "second_noise", "babble", "speech_shaped", "residual", "reverberation", "band_limit", "low_pass", "clipping",
    "noise_only", "speech_only", "as_recorded",
)  # fmt: skip


@dataclass(frozen=True)
class MixingOptions:
    """The section ``mixing``; see the module's docstring."""

    noise: List[str] = field(default_factory=list)
    speech: List[str] = field(default_factory=list)
    responses: List[str] = field(default_factory=list)
    snr_db: Tuple[float, ...] = (-5.0, 20.0)
    second_noise: float = 0.0
    babble: float = 0.0
    speech_shaped: float = 0.0
    residual: float = 0.0
    speakers: Optional[str] = r"^([^_-]+)[_-]"
    reverberation: float = 0.0
    reverberation_target: Literal["early", "dry"] = "early"
    gain_db: Tuple[float, ...] = (0.0, 0.0)
    equalisation_db: float = 0.0
    band_limit: float = 0.0
    low_pass: float = 0.0
    clipping: float = 0.0
    noise_only: float = 0.0
    speech_only: float = 0.0
    as_recorded: float = 0.0

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "MixingOptions":
        """Read and check the section.

        Raises:
            UserError: names the option that is unknown or has a wrong value.
        """
        options = parse_section(cls, section, "mixing")
        for name in ("snr_db", "gain_db"):
            value = getattr(options, name)
            if len(value) != 2 or not np.isfinite(value).all() or value[0] > value[1]:
                raise UserError(f"mixing: {name} must be [lowest, highest] in dB, not {list(value)}")
        for name in _SHARES:
            if not 0 <= getattr(options, name) <= 1:
                raise UserError(f"mixing: {name} is a share from 0 to 1, not {getattr(options, name)}")
        for names in (("babble", "speech_shaped", "residual"), ("noise_only", "speech_only", "as_recorded")):
            if sum(getattr(options, name) for name in names) > 1:
                raise UserError(f"mixing: {', '.join(names)} are shares of the same mixtures: their sum is above 1")
        if not 0 <= options.equalisation_db <= 40:
            raise UserError(f"mixing: equalisation_db must be 0 to 40, not {options.equalisation_db}")
        if bool(options.responses) != (options.reverberation > 0):
            raise UserError("mixing: responses and reverberation go together: where the rooms are, and how often")
        try:
            groups = re.compile(options.speakers or "()").groups
        except re.error as error:
            raise UserError(f"mixing: speakers {options.speakers!r} is no regular expression: {error}") from None
        if groups < 1:
            raise UserError(f"mixing: speakers {options.speakers!r} needs a group, such as '^(p[0-9]+)_'")
        return options

    def fingerprint(self) -> bytes:
        """Changes with the content of the sources."""
        return b"".join(fingerprint(getattr(self, n), f"mixing: {n}") for n in ("noise", "speech", "responses"))


class Example(NamedTuple):
    """A mixture, its reference (``(samples,)``, float32), and in words what they are made of."""

    mixture: np.ndarray
    reference: np.ndarray
    made_of: Dict[str, Any]


class MixedSource:
    """Chunks of a training set with noise of their own, as a :class:`i2srf_kd.data.chunk_dataset.ChunkSource`.

    Args:
        pairs: mixtures and references of the training set, one channel each.
        options: of the mixtures.
        chunk_length: samples. All chunks have this length: shorter utterances lie somewhere in theirs.

    Raises:
        UserError: sources that are absent, silent or of another rate; responses longer than a chunk; too few speakers.
    """

    def __init__(self, pairs: ParallelFiles, options: MixingOptions, chunk_length: int):
        self.pairs = pairs
        self.options = options
        self.chunk_length = chunk_length
        self.sample_rate = pairs.sample_rate
        self.lengths: Mapping[str, int] = {
            utt_id: max(length, chunk_length) for utt_id, length in pairs.lengths.items()
        }
        for name in (MIXTURE, REFERENCE):
            if name not in pairs.names() or pairs.channels(name) != 1:
                raise UserError(f"mixing: wants {name} of one channel in the training data")
        self.noises = self._load("noise")
        self.more_speech = self._load("speech")
        self.responses = self._load("responses")
        for response in self.responses:
            if response.frames > chunk_length:
                raise UserError(
                    f"mixing: responses: {response.path} has {response.frames} samples, more than --chunk_length "
                    f"{chunk_length}: shorten it, or take longer chunks"
                )
        self.utterances = [self._utterance(utt_id) for utt_id in sorted(pairs.lengths)]
        hours = [sum(r.frames for r in recordings) for recordings in (self.more_speech, self.utterances)]
        self._more_share = hours[0] / sum(hours)
        self._by_speaker: Dict[str, List[Recording]] = {}
        for recording in [*self.utterances, *self.more_speech]:
            self._by_speaker.setdefault(recording.speaker, []).append(recording)
        if options.babble and len(self._by_speaker) <= VOICES[1]:
            raise UserError(
                f"mixing: babble needs {VOICES[1] + 1} speakers, and speakers: {options.speakers!r} tells "
                f"{len(self._by_speaker)} apart ({', '.join(sorted(self._by_speaker)[:5])})"
            )
        if options.residual or not self.noises:
            self._check_residual()

    def _check_residual(self) -> None:
        if len(self.utterances) < 2:
            raise UserError("mixing: noise of other utterances needs at least two of them: name folders as noise")
        random = np.random.default_rng(0)
        if not any(np.mean(self._residual("", random)[0] ** 2) > INAUDIBLE for _ in range(20)):
            raise UserError("mixing: the training set's mixtures hold nothing but speech: name folders as noise")

    def _load(self, option: str) -> List[Recording]:
        where = f"mixing: {option}"
        files = find_audio(getattr(self.options, option), where)
        return load_recordings(files, self.sample_rate, where, self.options.speakers)

    def _utterance(self, utt_id: str) -> Recording:
        path, length = self.pairs.files[REFERENCE][utt_id], self.pairs.lengths[utt_id]
        return Recording(utt_id, path, length, speaker_of(utt_id, self.options.speakers))

    def names(self) -> Tuple[str, ...]:
        """Names of the signals."""
        return (MIXTURE, REFERENCE)

    def channels(self, name: str) -> int:
        """One of each signal."""
        return 1

    def describe(self) -> str:
        """What is mixed, in one line."""
        noise = _hours(self.noises, self.sample_rate) if self.noises else "of other utterances"
        speech = _hours([*self.utterances, *self.more_speech], self.sample_rate)
        return f"speech {speech}, {len(self._by_speaker)} speakers; noise {noise}; {len(self.responses)} responses"

    def read(self, item: SeededChunk) -> Signals:
        """Mixture and reference of a chunk; nothing but the chunk and its seed decides."""
        example = self.make(item)
        return {MIXTURE: example.mixture, REFERENCE: example.reference}

    def make(self, item: SeededChunk) -> Example:
        """Mixture and reference of a chunk, and what they are made of."""
        # Each part has draws of its own: an option more leaves the draws of the other parts as they are.
        draws = [np.random.default_rng([_STREAM, part, *item.seed]) for part in range(5)]
        options, choice = self.options, draws[0].random()
        snr = draws[0].uniform(options.snr_db[0], options.snr_db[1])
        utterance = self._utterance(item.chunk.utt_id)
        if choice < options.as_recorded:
            return self._as_recorded(item, utterance)
        choice -= options.as_recorded
        speech, source = self._draw_speech(item, utterance, draws[1])
        dry = _equalised(speech, options.equalisation_db, draws[1])
        heard, reference, room = self._in_a_room(dry, draws[2])
        noise, kind = self._draw_noise(source.speaker, item.chunk.utt_id, draws[3])
        noise *= noise_gain(heard, noise, snr, self.sample_rate) or 1.0
        made_of = {"speech": source.name, "noise": kind, "room": room, "snr_db": round(float(snr), 2)}
        if choice < options.noise_only:
            heard, reference, made_of["speech"] = np.zeros_like(heard), np.zeros_like(reference), "none"
        elif choice < options.noise_only + options.speech_only:
            noise, made_of["noise"] = np.zeros_like(noise), "none"
        mixture, reference, effects = self._recorded(heard + noise, reference, draws[4])
        return Example(mixture.astype(np.float32), reference.astype(np.float32), {**made_of, "effects": effects})

    def _as_recorded(self, item: SeededChunk, utterance: Recording) -> Example:
        chunk = item.chunk._replace(length=min(self.chunk_length, utterance.frames - item.chunk.start))
        signals = self.pairs.read(item._replace(chunk=chunk))
        missing = self.chunk_length - chunk.length
        mixture, reference = (np.pad(signals[name], (0, missing)) for name in (MIXTURE, REFERENCE))
        nothing = {"noise": "as recorded", "room": "", "snr_db": "", "effects": ""}
        return Example(mixture, reference, {"speech": utterance.name, **nothing})

    def _draw_speech(
        self, item: SeededChunk, utterance: Recording, random: np.random.Generator
    ) -> Tuple[np.ndarray, Recording]:
        start = item.chunk.start
        if random.random() < self._more_share:
            utterance = self.more_speech[random.integers(len(self.more_speech))]
            start = int(random.integers(0, max(1, utterance.frames - self.chunk_length + 1)))
        wave = read_stretch(utterance, start, min(self.chunk_length, utterance.frames - start))
        before = int(random.integers(0, self.chunk_length - len(wave) + 1))
        return np.pad(wave, (before, self.chunk_length - len(wave) - before)), utterance

    def _in_a_room(self, dry: np.ndarray, random: np.random.Generator) -> Tuple[np.ndarray, np.ndarray, str]:
        if random.random() >= self.options.reverberation:
            return dry, dry, ""
        response = self.responses[random.integers(len(self.responses))]
        wave, _ = read_audio(response.path, mono=True)
        early = round(EARLY_SECONDS * self.sample_rate) if self.options.reverberation_target == "early" else 1
        return (*reverberated(dry, wave, early), response.name)

    def _draw_noise(self, speaker: str, utt_id: str, random: np.random.Generator) -> Tuple[np.ndarray, str]:
        noise, names = self._one_noise(speaker, utt_id, random)
        if random.random() < self.options.second_noise:
            second, more = self._one_noise(speaker, utt_id, random)
            power = max(np.mean(second**2), INAUDIBLE)
            noise = noise + second * np.sqrt(np.mean(noise**2) / power) * 10 ** (random.uniform(-10, 0) / 20)
            names = f"{names} + {more}"
        return noise, names

    def _one_noise(self, speaker: str, utt_id: str, random: np.random.Generator) -> Tuple[np.ndarray, str]:
        options, choice = self.options, random.random()
        if choice < options.babble:
            voices = self._draw_voices(speaker, int(random.integers(VOICES[0], VOICES[1] + 1)), random)
            return babble([draw_stretch(voice, self.chunk_length, random)[0] for voice in voices]), "babble: " + (
                " ".join(voice.name for voice in voices)
            )
        choice -= options.babble
        if choice < options.speech_shaped:
            (voice,) = self._draw_voices(speaker, 1, random)
            wave, _ = draw_stretch(voice, self.chunk_length, random)
            noise = speech_shaped(wave, random)
            return _equalised(noise, options.equalisation_db, random), f"speech-shaped: {voice.name}"
        from_the_set = not self.noises or choice - options.speech_shaped < options.residual
        for _ in range(10):
            wave, name = self._residual(utt_id, random) if from_the_set else self._recorded_noise(random)
            if np.mean(wave**2) > INAUDIBLE:
                break
        return _equalised(wave, options.equalisation_db, random), name

    def _recorded_noise(self, random: np.random.Generator) -> Tuple[np.ndarray, str]:
        noise = self.noises[random.integers(len(self.noises))]
        return draw_stretch(noise, self.chunk_length, random)[0], noise.name

    def _residual(self, utt_id: str, random: np.random.Generator) -> Tuple[np.ndarray, str]:
        """What the mixture of another utterance holds beside its speech."""
        place = int(random.integers(len(self.utterances) - 1))
        other = self.utterances[place]
        if other.name == utt_id:
            other = self.utterances[-1]
        mixture = other._replace(path=self.pairs.files[MIXTURE][other.name])
        frames = min(self.chunk_length, other.frames)
        start = int(random.integers(0, other.frames - frames + 1))
        noise = read_stretch(mixture, start, frames) - read_stretch(other, start, frames)
        return np.resize(noise, self.chunk_length), f"residual: {other.name}"

    def _draw_voices(self, speaker: str, count: int, random: np.random.Generator) -> List[Recording]:
        """Recordings of different other speakers."""
        others = [name for name in self._by_speaker if name != speaker] or [speaker]
        names = [others[i] for i in random.choice(len(others), count, replace=False)]
        return [self._by_speaker[name][random.integers(len(self._by_speaker[name]))] for name in names]

    def _recorded(
        self, mixture: np.ndarray, reference: np.ndarray, random: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray, str]:
        """Both as a device records them."""
        options, effects = self.options, []
        coins, places = random.random(3), random.random(5)
        gain = 10 ** ((options.gain_db[0] + places[0] * (options.gain_db[1] - options.gain_db[0])) / 20)
        if coins[0] < options.band_limit:
            low, high = 50 + 250 * places[1], 3400 + 3600 * places[2]
            mixture, reference = (band_limited(wave, low, high, self.sample_rate) for wave in (mixture, reference))
            effects.append(f"band {low:.0f} to {high:.0f} Hz")
        if coins[1] < options.low_pass:
            high = 2000 + 5000 * places[3]
            mixture = band_limited(mixture, 0, high, self.sample_rate)
            effects.append(f"low-pass {high:.0f} Hz")
        if coins[2] < options.clipping:
            share = 0.1 + 0.5 * places[4]
            limit = share * float(np.abs(mixture).max())
            mixture = np.clip(mixture, -limit, limit)
            effects.append(f"clipped at {share:.2f} of the peak")
        peak = max(float(np.abs(mixture).max()), float(np.abs(reference).max()))
        if gain * peak > 1:  # a recording has no more
            gain = 1 / peak
        effects.append(f"gain {20 * np.log10(gain):.1f} dB")
        return gain * mixture, gain * reference, ", ".join(effects)


def babble(voices: Sequence[np.ndarray]) -> np.ndarray:
    """Voices of equal power, added."""
    return np.sum([voice / np.sqrt(max(np.mean(voice**2), INAUDIBLE)) for voice in voices], axis=0) / len(voices)


def speech_shaped(speech: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Steady noise with the mean spectrum of speech, in frames of 512 samples."""
    frames = np.lib.stride_tricks.sliding_window_view(speech, 512)[::256]
    spectrum = np.sqrt(np.square(np.abs(scipy.fft.rfft(frames * np.hanning(512).astype(np.float32)))).mean(0))
    noise = random.standard_normal(len(speech), dtype=np.float32)
    gain = np.interp(np.linspace(0, 256, len(speech) // 2 + 1), np.arange(257), spectrum)
    return shaped(noise, gain / max(float(gain.max()), 1e-20))


def reverberated(dry: np.ndarray, response: np.ndarray, early: int) -> Tuple[np.ndarray, np.ndarray]:
    """Speech in a room, and what of it a listener shall hear.

    Args:
        dry: ``(samples,)``.
        response: of the room; its largest value is the direct sound, which is brought to 1 and to the time of ``dry``.
        early: samples of the response from the direct sound on that belong to the reference; 1: the direct sound alone.

    Returns:
        Both ``(samples,)``.
    """
    direct = int(np.argmax(np.abs(response)))
    response = response[direct:] / response[direct]
    return tuple(  # type: ignore[return-value]
        scipy.signal.fftconvolve(dry, part)[: len(dry)].astype(np.float32) for part in (response, response[:early])
    )


def shaped(wave: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """A wave whose spectrum is multiplied with real gains ``(samples // 2 + 1,)``."""
    return scipy.fft.irfft(scipy.fft.rfft(wave) * gain.astype(np.float32), len(wave))


def band_limited(wave: np.ndarray, low: float, high: float, fs: int) -> np.ndarray:
    """What lies between two frequencies in Hz, with edges as steep as a fourth-order Butterworth filter's."""
    frequency = np.maximum(scipy.fft.rfftfreq(len(wave), 1 / fs), 1e-3)
    return shaped(wave, 1 / np.sqrt((1 + (low / frequency) ** 8) * (1 + (frequency / high) ** 8)))


def _equalised(wave: np.ndarray, limit_db: float, random: np.random.Generator) -> np.ndarray:
    """Through a smooth random filter of at most ``limit_db`` up and down."""
    if limit_db == 0:
        return wave
    points = random.uniform(-limit_db, limit_db, 8)
    place = np.linspace(0, 1, len(wave) // 2 + 1) ** 0.5 * (len(points) - 1)  # more points for low frequencies
    return shaped(wave, 10 ** (np.interp(place, np.arange(len(points)), points) / 20))


def _hours(recordings: Sequence[Recording], fs: int) -> str:
    return f"{sum(r.frames for r in recordings) / fs / 3600:.2f} h in {len(recordings)} files"
