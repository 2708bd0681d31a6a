"""A small synthetic corpus in VoiceBank-DEMAND's layout, so that everything runs without a download.

    generate_mini_corpus("mini/corpus", MiniCorpusOptions(fs=16000, seed=0))

Speech comes from espeak-ng, noise from formulas; test speakers, test noises and test SNRs differ from those of the
training set. Models trained on it say nothing about real speech.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.io import write_audio
from i2srf_kd.audio.level import INAUDIBLE, active_power, noise_gain
from i2srf_kd.corpora.espeak import Voice, synthesize_speech
from i2srf_kd.corpora.noises import babble, make_noise
from i2srf_kd.system.errors import UserError, writing
from i2srf_kd.system.files import PathLike, write_text
from i2srf_kd.system.progress import progress

MARKER = ".mini_corpus.json"
CORPUS_VERSION = 1  # to be raised when the same options give other audio
PEAK = 0.98
TRAIN_SNRS = (0.0, 5.0, 10.0, 15.0)
TEST_SNRS = (2.5, 7.5, 12.5, 17.5)

TRAIN_SPEAKERS: Dict[str, Voice] = {
    "p227": Voice("en", "m1", rate=165, pitch=38, pitch_range=50),
    "p228": Voice("en-gb-x-rp", "f2", rate=170, pitch=55, pitch_range=60),
    "p230": Voice("en-us", "f3", rate=160, pitch=60, pitch_range=45),
    "p236": Voice("en-gb-scotland", "f5", rate=175, pitch=48, pitch_range=55),
    "p239": Voice("en-us-nyc", "m7", rate=180, pitch=42, pitch_range=60),
    "p243": Voice("en-gb-x-gbclan", "m3", rate=160, pitch=30, pitch_range=40),
    "p250": Voice("en-029", "steph", rate=165, pitch=52, pitch_range=50),
    "p254": Voice("en-gb-x-gbcwmd", "adam", rate=170, pitch=45, pitch_range=45),
}
VALID_SPEAKERS: Dict[str, Voice] = {
    "p226": Voice("en-gb-x-rp", "m4", rate=165, pitch=35, pitch_range=55),
    "p287": Voice("en-us", "Annie", rate=170, pitch=58, pitch_range=50),
}
TEST_SPEAKERS: Dict[str, Voice] = {
    "p232": Voice("en-us", "m2", rate=168, pitch=44, pitch_range=52),
    "p257": Voice("en", "f1", rate=163, pitch=54, pitch_range=58),
}
_BABBLE_VOICES: Dict[str, Tuple[Voice, ...]] = {
    "babble": (
        Voice("en", "m5", 170, 40, 50),
        Voice("en-us", "f4", 175, 60, 50),
        Voice("en-gb-scotland", "m8", 160, 32, 50),
        Voice("en-029", "belinda", 165, 50, 50),
        Voice("en-us-nyc", "linda", 180, 55, 50),
    ),
    "crowd": (
        Voice("en-us", "m6", 165, 36, 50),
        Voice("en-gb-x-rp", "Andrea", 170, 60, 50),
        Voice("en-us", "zac", 175, 45, 50),
    ),
}


class NoiseRecipe(NamedTuple):
    """A noise of the corpus: its kind and what it differs in from others of this kind."""

    kind: str
    options: Mapping[str, object] = {}


TRAIN_NOISES: Dict[str, NoiseRecipe] = {
    "white": NoiseRecipe("white"),
    "pink": NoiseRecipe("pink"),
    "babble": NoiseRecipe("babble"),
    "hum50": NoiseRecipe("hum", {"mains": 50.0}),
    "machine": NoiseRecipe("machine"),
    "clicks": NoiseRecipe("clicks"),
    "wind": NoiseRecipe("wind"),
}
TEST_NOISES: Dict[str, NoiseRecipe] = {
    "brown": NoiseRecipe("brown"),
    "crowd": NoiseRecipe("babble"),
    "hum60": NoiseRecipe("hum", {"mains": 60.0}),
    "drill": NoiseRecipe("machine", {"turns": (30.0, 45.0)}),
    "dishes": NoiseRecipe("clicks", {"per_second": 12.0}),
    "storm": NoiseRecipe("wind", {"band": (80.0, 1200.0)}),
}


@dataclass(frozen=True)
class MiniCorpusOptions:
    """What the mini corpus depends on; the same options give the same bytes (with the same package versions)."""

    fs: int = 16000  # Hz
    seed: int = 0
    train_utts: int = 168  # over 8 speakers
    valid_utts: int = 22  # over 2 speakers, part of the training folders as in VoiceBank
    test_utts: int = 24  # over 2 speakers


class _Utterance(NamedTuple):
    utt_id: str
    clean: np.ndarray  # (samples,)
    noise: str
    snr: float
    seed: Tuple[int, ...]  # of its noise


# ---------------------------------------------------------------------------------------------------------------------
# Sentences

_TIMES = ("This morning", "Last summer", "On Sunday", "After lunch", "Before the storm", "Every evening", "At noon")
_PEOPLE = (
    "the old gardener", "my younger sister", "a tall stranger", "our neighbour", "the bus driver", "a quiet child",
    "the young doctor", "my best friend", "the village teacher", "a careful painter", "her grandmother", "the captain",
)  # fmt: skip
_ACTIONS = (
    "found", "carried", "borrowed", "repaired", "watched", "painted", "described", "forgot", "sold", "washed",
    "measured", "hid",
)  # fmt: skip
_THINGS = (
    "the yellow bicycle", "a box of oranges", "three silver keys", "the heavy suitcase", "a piece of chalk",
    "the broken window", "six fresh loaves", "an empty jug", "the wooden ladder", "a pair of shoes",
    "the blue fishing boat", "two jars of honey",
)  # fmt: skip
_PLACES = (
    "behind the church", "near the river", "in the kitchen", "under the bridge", "at the station", "on the hill",
    "beside the road", "by the open fire", "across the valley", "in a narrow street",
)  # fmt: skip


def make_sentences(count: int, random: np.random.Generator) -> List[str]:
    """Different English sentences of 8 to 13 words, built from a small grammar.

    Raises:
        UserError: more are wanted than the grammar gives.
    """
    patterns = (_TIMES, _PEOPLE, _ACTIONS, _THINGS, _PLACES)
    sizes = [len(words) for words in patterns]
    if count > int(np.prod(sizes)):
        raise UserError(f"{count} sentences are wanted, the grammar has only {int(np.prod(sizes))}")
    picks = random.choice(int(np.prod(sizes)), size=count, replace=False)
    chosen = zip(*np.unravel_index(picks, sizes), strict=True)
    sentences = []
    for indices in chosen:
        time, person, action, thing, place = (words[i] for words, i in zip(patterns, indices, strict=True))
        sentences.append(f"{time} {person} {action} {thing} {place}.")
    return sentences


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures


def audible_gain(speech: np.ndarray, noise: np.ndarray, snr: float, fs: int) -> float:
    """:func:`~i2srf_kd.audio.level.noise_gain`, which must be defined.

    Raises:
        UserError: the speech or the noise is silent.
    """
    gain = noise_gain(speech, noise, snr, fs)
    if gain is None:
        silent = "noise" if active_power(speech, fs) > INAUDIBLE else "clean speech"
        raise UserError(f"the {silent} is silent, so no signal-to-noise ratio can be set")
    return gain


def mix(clean: np.ndarray, noise: np.ndarray, snr: float, fs: int) -> Tuple[np.ndarray, np.ndarray]:
    """Add noise to speech at a signal-to-noise ratio; both results share one scale that keeps the peak below 1.

    Args:
        clean: speech ``(samples,)``; its level is that of the frames with speech, see ``audio.level.active_power``.
        noise: ``(samples,)``, with its level over the whole signal.
        snr: ratio in dB.
        fs: sampling rate in Hz.

    Returns:
        Mixture and clean speech, ``(samples,)`` each.

    Raises:
        UserError: the speech is silent.
    """
    mixture = clean + audible_gain(clean, noise, snr, fs) * noise
    peak = max(np.abs(mixture).max(), np.abs(clean).max())
    scale = min(1.0, PEAK / peak)
    return mixture * scale, clean * scale


def between_pauses(speech: np.ndarray, fs: int, random: np.random.Generator) -> np.ndarray:
    """Speech ``(samples,)`` at a random level between pauses, as cut from a recording."""
    before, after = (int(seconds * fs) for seconds in random.uniform(0.1, 0.4, size=2))
    level = 10 ** (random.uniform(-30.0, -22.0) / 20)
    gain = level / np.sqrt(active_power(speech, fs))
    return np.pad(speech.astype(np.float64) * gain, (before, after))


def speak_as(speakers: Mapping[str, Voice], sentences: Sequence[Sequence[str]], fs: int, seed: int) -> List[List]:
    """Speech of several speakers, spoken in parallel processes.

    Args:
        speakers: voices by name.
        sentences: those of each speaker, in the same order.
        fs: sampling rate in Hz.
        seed: of the variations of the voices.

    Returns:
        Per speaker one signal ``(samples,)`` per sentence.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(
            pool.map(
                lambda job: synthesize_speech(job[1], job[0], fs, seed), zip(speakers.values(), sentences, strict=True)
            )
        )


def _spread(total: int, parts: int) -> List[int]:
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


class _Generator:
    """Makes the utterances of the corpus; every random choice depends on the seed and on what it is for."""

    def __init__(self, options: MiniCorpusOptions) -> None:
        self.options = options
        self.babble_voices: Dict[str, List[np.ndarray]] = {}

    def random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.options.seed, *purpose])

    def prepare_babble(self) -> None:
        for number, (name, voices) in enumerate(_BABBLE_VOICES.items()):
            texts = make_sentences(4 * len(voices), self.random(1, number))
            spoken = speak_as(
                {str(i): voice for i, voice in enumerate(voices)},
                [texts[i :: len(voices)] for i in range(len(voices))],
                self.options.fs,
                self.options.seed,
            )
            self.babble_voices[name] = [np.concatenate(waves) for waves in spoken]

    def utterances(
        self,
        part: int,
        speakers: Mapping[str, Voice],
        sentences: Sequence[str],
        noises: Sequence[str],
        snrs: Sequence[float],
    ) -> Iterator[_Utterance]:
        """Utterances of one part of the corpus; noises and SNRs are spread evenly over it, in random order."""
        counts = _spread(len(sentences), len(speakers))
        ends: List[int] = np.cumsum(counts).tolist()
        texts = [list(sentences[end - count : end]) for count, end in zip(counts, ends, strict=True)]
        spoken = speak_as(speakers, texts, self.options.fs, self.options.seed)
        random = self.random(2, part)
        conditions = [(noise, snr) for snr in snrs for noise in noises]
        order = np.concatenate(
            [random.permutation(len(conditions)) for _ in range(len(sentences) // len(conditions) + 1)]
        )
        position = 0
        for speaker, waves in zip(speakers, spoken, strict=True):
            for number, wave in enumerate(waves, 1):
                noise, snr = conditions[order[position]]
                clean = between_pauses(wave, self.options.fs, random)
                yield _Utterance(f"{speaker}_{number:03d}", clean, noise, snr, (3, part, position))
                position += 1

    def noise(self, name: str, recipe: NoiseRecipe, n_samples: int, seed: Tuple[int, ...]) -> np.ndarray:
        random = self.random(*seed)
        if recipe.kind == "babble":
            return babble(n_samples, random, self.babble_voices[name])
        return make_noise(recipe.kind, n_samples, self.options.fs, random, recipe.options)


def generate_mini_corpus(folder: PathLike, options: MiniCorpusOptions) -> Path:
    """Write the corpus; a complete one of the same options is kept.

    Args:
        folder: gets ``clean_trainset_28spk_wav/``, ``noisy_trainset_28spk_wav/``, ``clean_testset_wav/``,
            ``noisy_testset_wav/`` with ``<speaker>_<number>.wav`` (16 bit) and the log files
            ``log_trainset_28spk.txt``, ``log_testset.txt`` with ``<utterance> <noise> <SNR in dB>``.
        options: size, rate and seed.

    Returns:
        ``folder``.

    Raises:
        UserError: espeakng-loader is missing, an option is out of range, ``folder`` holds something else, or the disk
            is full.
    """
    _check_options(options)
    contents = json.dumps({"version": CORPUS_VERSION, **asdict(options)}) + "\n"
    return write_once(folder, contents, lambda temporary: _write_corpus(temporary, options))


def generate_mini_sources(folder: PathLike, options: MiniCorpusOptions) -> Path:
    """Speech and noise of the mini corpus, unmixed, in ``<folder>/{speech,noise}``; arguments and errors as above."""
    _check_options(options)
    contents = json.dumps({"version": CORPUS_VERSION, "layout": "sources", **asdict(options)}) + "\n"
    return write_once(folder, contents, lambda temporary: write_sources(temporary, options))


def write_once(folder: PathLike, contents: str, write: Callable[[Path], None], resume: bool = False) -> Path:
    """Let ``write`` fill a folder unless it is there, made from the same ``contents``: it is absent or complete.

    Args:
        folder: the folder to be made; made from other contents, it is replaced.
        contents: what it depends on, as text.
        write: is given a folder to write to, beside ``folder``.
        resume: keep what an interrupted ``write`` of the same contents left, for it to go on.

    Returns:
        ``folder``.

    Raises:
        UserError: ``folder`` holds something else, or the disk is full.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        marker = folder / MARKER
        if not marker.is_file():
            raise UserError(f"{folder} holds other files; give an empty or a new folder for the generated corpus")
        if marker.read_text(encoding="utf-8") == contents:
            return folder
    temporary = folder.with_name(f".{folder.name}.partial")
    begun = temporary / MARKER
    with writing(folder):
        if not (resume and begun.is_file() and begun.read_text(encoding="utf-8") == contents):
            shutil.rmtree(temporary, ignore_errors=True)
        try:
            write_text(begun, contents)
            write(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        finally:
            if not resume:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_options(options: MiniCorpusOptions) -> None:
    if options.fs < 8000:
        raise UserError(f"--fs {options.fs}: must be 8000 or more")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more")
    parts = {"train": TRAIN_SPEAKERS, "valid": VALID_SPEAKERS, "test": TEST_SPEAKERS}
    for part, speakers in parts.items():
        wanted = getattr(options, f"{part}_utts")
        if not len(speakers) <= wanted <= 999 * len(speakers):
            raise UserError(
                f"--{part}_utts {wanted}: must lie between {len(speakers)}, one per speaker, and {999 * len(speakers)}"
            )


def _write_corpus(folder: Path, options: MiniCorpusOptions) -> None:
    generator = _Generator(options)
    generator.prepare_babble()
    counts = (options.train_utts, options.valid_utts, options.test_utts)
    ends = np.cumsum(counts)
    sentences = make_sentences(int(ends[-1]), generator.random(0))
    parts = (
        ("trainset_28spk", TRAIN_SPEAKERS, TRAIN_NOISES, TRAIN_SNRS),
        ("trainset_28spk", VALID_SPEAKERS, TRAIN_NOISES, TRAIN_SNRS),
        ("testset", TEST_SPEAKERS, TEST_NOISES, TEST_SNRS),
    )
    logs: Dict[str, List[str]] = {}
    for part, (name, speakers, noises, snrs) in enumerate(parts):
        texts = sentences[ends[part] - counts[part] : ends[part]]
        utterances = generator.utterances(part, speakers, texts, list(noises), snrs)
        for utt in progress(utterances, total=len(texts), desc=f"mini corpus, part {part + 1} of {len(parts)}"):
            noise = generator.noise(utt.noise, noises[utt.noise], len(utt.clean), utt.seed)
            mixture, clean = mix(utt.clean, noise, utt.snr, options.fs)
            write_audio(folder / f"noisy_{name}_wav" / f"{utt.utt_id}.wav", mixture, options.fs)
            write_audio(folder / f"clean_{name}_wav" / f"{utt.utt_id}.wav", clean, options.fs)
            logs.setdefault(name, []).append(f"{utt.utt_id} {utt.noise} {utt.snr:g}\n")
    for name, lines in logs.items():
        write_text(folder / f"log_{name}.txt", "".join(sorted(lines)))


def write_sources(folder: PathLike, options: MiniCorpusOptions) -> None:
    """Dry speech and noise, 10 s of each kind, of the mini corpus as files of their own, for a simulation of rooms.

    Args:
        folder: gets ``speech/{train,dev}/<speaker>-0-<number>.wav`` and ``noise/{train,dev}/<noise>.wav``; validation
            speakers are part of ``train``.
        options: size, rate and seed.

    Raises:
        UserError: as :func:`generate_mini_corpus`.
    """
    folder = Path(folder)
    _check_options(options)
    generator = _Generator(options)
    generator.prepare_babble()
    parts = (
        ("train", {**TRAIN_SPEAKERS, **VALID_SPEAKERS}, TRAIN_NOISES, options.train_utts + options.valid_utts),
        ("dev", TEST_SPEAKERS, TEST_NOISES, options.test_utts),
    )
    sentences = iter(make_sentences(sum(count for *_, count in parts), generator.random(0)))
    for part, (name, speakers, noises, count) in enumerate(parts):
        texts = [[next(sentences) for _ in range(share)] for share in _spread(count, len(speakers))]
        for speaker, waves in zip(speakers, speak_as(speakers, texts, options.fs, options.seed), strict=True):
            for number, wave in enumerate(waves, 1):
                write_audio(folder / "speech" / name / f"{speaker[1:]}-0-{number:04d}.wav", wave, options.fs)
        for number, (noise, recipe) in enumerate(noises.items()):
            wave = generator.noise(noise, recipe, 10 * options.fs, (3, part, number))
            write_audio(folder / "noise" / name / f"{noise}.wav", PEAK * wave / np.abs(wave).max(), options.fs)
