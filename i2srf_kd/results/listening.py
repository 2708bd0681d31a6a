"""Examples to look at and to listen to: which utterances and systems, with their scores, pictures and sound."""

import math
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.io import read_audio, write_audio
from i2srf_kd.data.kaldi_dir import DataDir, Table
from i2srf_kd.metrics.table import MAIN, METRICS, in_order
from i2srf_kd.results.files import read_audio_paths
from i2srf_kd.results.media import common_top, encode_audio, spectrogram_png
from i2srf_kd.results.model import MIXTURE, TEACHER, System
from i2srf_kd.results.spectrogram import spectrogram_grid
from i2srf_kd.results.study import Study
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import remove_temporaries
from i2srf_kd.system.progress import progress

REFERENCE = "clean"
MAX_SECONDS = 10.0


class Clip(NamedTuple):
    """One system's version of an utterance; both addresses are ``data:``."""

    system: str
    role: str
    scores: str
    picture: str
    audio: str


class Example(NamedTuple):
    """One utterance in all its versions.

    Attributes:
        utterance: its name.
        why: why it was chosen.
        seconds: its length.
        clips: mixture, systems and reference.
        cut: whether the end was left out.
    """

    utterance: str
    why: str
    seconds: float
    clips: List[Clip]
    cut: bool


def systems_to_show(study: Study, wanted: Sequence[str] = ()) -> List[System]:
    """Teacher, undistilled student and the distilled one with the best mean PESQ, or those that are asked for.

    Raises:
        UserError: no system of that name has audio.
    """
    audible = [system for system in study.systems if system.name != MIXTURE and _audio(system)]
    if wanted:
        unknown = sorted(set(wanted) - {system.name for system in audible})
        if unknown:
            names = ", ".join(system.name for system in audible) or "none"
            raise UserError(f"--show {unknown[0]}: no system of that name has enhanced audio; there are {names}")
        return [system for system in audible if system.name in wanted]
    students = [system for system in audible if system.distilled]
    best = max(students, key=lambda system: _mean(system, study.pesq), default=None)
    return [system for system in audible if system.name in (TEACHER, study.baseline) or system is best]


def _audio(system: System) -> Table:
    return next((table for table in (run.audio() for run in system.runs) if table), {})


def _mean(system: System, metric: str) -> float:
    mean = (system.metrics.get(metric) or {}).get("mean")
    return -math.inf if mean is None else mean


def choose(study: Study, shown: Sequence[System], count: int) -> List[Tuple[str, str]]:
    """Utterances with the reason: those where distillation helps most, about as usual, and least, in PESQ.

    Without scores of both students they are spread evenly over the set.
    """
    tables = [read_audio_paths(study.mixture_scp), read_audio_paths(study.reference_scp), *map(_audio, shown)]
    utterances = sorted(set.intersection(*(set(table) for table in tables)))
    base = study.system(study.baseline)
    distilled = next((system for system in shown if system.distilled), None)
    gains = _gains(distilled, base, utterances, study.pesq) if distilled is not None and base is not None else {}
    if not gains:
        return [(utt, "") for utt in spread(utterances, count)]
    assert distilled is not None and base is not None
    ranked = sorted(gains, key=lambda utt: -gains[utt])
    ends = {ranked[-1]: "smallest gain", ranked[0]: "largest gain"}

    def why(utt: str) -> str:
        place = ends.get(utt, f"gain number {ranked.index(utt) + 1} of {len(ranked)}")
        return f"{place} of {distilled.name} over {base.name}: {gains[utt]:+.2f} {METRICS[study.pesq].name}"

    return [(utt, why(utt)) for utt in spread(ranked, count)]


def _gains(distilled: System, base: System, utterances: Sequence[str], metric: str) -> Dict[str, float]:
    def mean(system: System, utt: str) -> float:
        return float(np.mean([run.scores[utt][metric] for run in system.scored]))

    try:
        gains = {utt: mean(distilled, utt) - mean(base, utt) for utt in utterances if distilled.scored and base.scored}
    except KeyError:
        return {}
    return {utt: gain for utt, gain in gains.items() if math.isfinite(gain)}


def spread(names: Sequence[str], count: int) -> List[str]:
    """``count`` names evenly spread over the list, all of them when there are fewer."""
    places = np.unique(np.linspace(0, len(names) - 1, num=min(count, len(names))).round().astype(int))
    return [names[place] for place in places]


def make_examples(study: Study, shown: Sequence[System], count: int, kind: str) -> List[Example]:
    """Read, draw and encode the first :data:`MAX_SECONDS` of examples; none where the set's audio is not at hand.

    Args:
        study: with tables of mixtures and references.
        shown: systems, of each the first seed that has audio.
        count: number of utterances.
        kind: audio format, see :data:`~i2srf_kd.results.media.AUDIO_FORMATS`.
    """
    mixtures, references = read_audio_paths(study.mixture_scp), read_audio_paths(study.reference_scp)
    if not (mixtures and references and count > 0):
        return []
    examples = []
    for utt, why in choose(study, shown, count):
        files = {MIXTURE: mixtures[utt], **{s.name: _audio(s)[utt] for s in shown}, REFERENCE: references[utt]}
        waves, fs = {}, 0
        for name, path in files.items():
            wave, fs = read_audio(path)
            waves[name] = wave if wave.ndim == 1 else wave[:, 0]
        seconds = len(waves[MIXTURE]) / fs
        waves = {name: wave[: round(MAX_SECONDS * fs)] for name, wave in waves.items()}
        top = common_top(tuple(waves.values()), fs)
        clips = []
        for name, wave in waves.items():
            picture, sound = spectrogram_png(wave, fs, top), encode_audio(wave, fs, kind)
            clips.append(Clip(name, _role(study, name), _scores(study, name, utt), picture, sound))
        examples.append(Example(utt, why, seconds, clips, seconds > MAX_SECONDS))
    return examples


def _role(study: Study, name: str) -> str:
    if name in (MIXTURE, REFERENCE):
        return {MIXTURE: "mixture", REFERENCE: "reference"}[name]
    system = study.system(name)
    if name == TEACHER or system is None:
        return "teacher"
    return "distilled student" if system.distilled else "student without distillation"


def _scores(study: Study, name: str, utt: str) -> str:
    """Scores of the run that is heard."""
    system = study.system(name)
    runs = [run for run in system.runs if run.audio() or name == MIXTURE] if system is not None else []
    row: Optional[Dict[str, float]] = runs[0].scores.get(utt) if runs else None
    if row is None:
        return ""
    shown = [name for name in in_order(MAIN) if math.isfinite(row.get(name, math.nan))]
    return " · ".join(f"{METRICS[m].name} {METRICS[m].text(row[m])} {METRICS[m].unit}".strip() for m in shown)


def write_examples(data: DataDir, systems: Mapping[str, Table], out: Path, count: int, ref_channel: int = 0) -> None:
    """Write one picture per utterance (mixture, every system, reference; one scale) and the audio of all of them.

    Args:
        data: mixtures and references.
        systems: enhanced audio of each utterance, by system.
        out: folder of the files.
        count: number of utterances, spread over the set.
        ref_channel: channel of a multi-channel mixture to show.

    Raises:
        UserError: a system lacks an utterance, or a file cannot be read.
    """
    remove_temporaries(out)  # of a run that was killed
    for utt in progress(spread(list(data.wav), count), desc="examples"):
        mixture, fs = read_audio(data.wav[utt])
        waves = {MIXTURE: mixture if mixture.ndim == 1 else mixture[:, ref_channel]}
        for name, table in systems.items():
            if utt not in table:
                raise UserError(f"system {name} has no utterance {utt}: enhance the test set again (stage 6)")
            waves[name] = read_audio(table[utt], mono=True)[0]
        waves[REFERENCE] = read_audio(data.spk1[utt], mono=True)[0]
        spectrogram_grid(waves, fs, out / f"{utt}.png")
        for name, wave in waves.items():
            write_audio(out / f"{utt}_{name}.wav", wave, fs)
