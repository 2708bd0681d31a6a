"""Scores of enhanced speech: from pairs of audio files to ``scores.csv`` and ``summary.json``.

The work can be split: every shard writes a file of its own, :func:`collect` merges them.
"""

import logging
import math
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.io import probe, read_audio
from i2srf_kd.data.kaldi_dir import describe, raise_problems, read_audio_table
from i2srf_kd.metrics import asr, dnsmos
from i2srf_kd.metrics.perceptual import copies_at
from i2srf_kd.metrics.table import WIDE_BAND
from i2srf_kd.metrics.utterance import align_lengths, score_utterance
from i2srf_kd.results.scores import read_csv, write_csv, write_scores
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike, remove_temporaries
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress

_RECOGNISED_TOGETHER = 64  # pairs in memory at a time

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """One utterance to score."""

    utt: str
    reference: str
    estimate: str


class ScoreOptions(NamedTuple):
    """How utterances are scored; goes to the worker processes."""

    metrics: Tuple[str, ...]
    ref_channel: int
    dnsmos_model: Optional[str]
    asr_model: Optional[str] = None

    @property
    def columns(self) -> Tuple[str, ...]:
        """Names of the scores in the order they are written."""
        optional = (dnsmos.METRICS if self.dnsmos_model else ()) + (asr.METRICS if self.asr_model else ())
        return self.metrics + optional


def read_pairs(ref_data_dir: PathLike, enhanced_scp: PathLike) -> List[Pair]:
    """Pair references and estimates, sorted by utterance; both must hold the same utterances."""
    reference_scp = Path(ref_data_dir) / "spk1.scp"
    references, estimates = read_audio_table(reference_scp), read_audio_table(enhanced_scp)
    missing, extra = references.keys() - estimates.keys(), estimates.keys() - references.keys()
    if missing:
        raise UserError(f"{enhanced_scp}: lacks {len(missing)} of {reference_scp}: {describe(sorted(missing))}")
    if extra:
        raise UserError(f"{enhanced_scp}: has {len(extra)} that are not in {reference_scp}: {describe(sorted(extra))}")
    return [Pair(utt, references[utt], estimates[utt]) for utt in sorted(references)]


def rate_of(pairs: Sequence[Pair]) -> int:
    """Sampling rate in Hz of the first reference that can be read."""
    problems = []
    for pair in pairs:
        try:
            return probe(pair.reference).fs
        except UserError as error:
            problems.append(f"utterance {pair.utt}: {error}")
    raise UserError("\n  ".join(["no reference can be read:", *problems[:5]]))


def _read_channel(utt: str, path: str, channel: int) -> Tuple[np.ndarray, int]:
    """Read one channel; a file with a single channel is taken as it is."""
    try:
        wave, fs = read_audio(path)
    except UserError as error:
        raise UserError(f"utterance {utt}: {error}") from error
    if wave.ndim == 1:
        return wave, fs
    if channel >= wave.shape[1]:
        raise UserError(f"utterance {utt}: {path} has {wave.shape[1]} channels, so --ref_channel {channel} is too high")
    _tell_of_channels(wave.shape[1], channel)
    return wave[:, channel], fs


@lru_cache
def _tell_of_channels(channels: int, channel: int) -> None:
    logger.warning("of files with %d channels, channel %d is scored (--ref_channel)", channels, channel)


def _read_pair(pair: Pair, options: ScoreOptions) -> Tuple[np.ndarray, np.ndarray, int]:
    """Reference, estimate and their common rate in Hz."""
    reference, fs = _read_channel(pair.utt, pair.reference, options.ref_channel)
    estimate, estimate_fs = _read_channel(pair.utt, pair.estimate, options.ref_channel)
    if fs != estimate_fs:
        raise UserError(
            f"utterance {pair.utt}: {pair.reference} has {fs} Hz but {pair.estimate} has {estimate_fs} Hz; "
            "resample one of them"
        )
    return reference, estimate, fs


def score_pair(pair: Pair, options: ScoreOptions) -> Dict[str, Any]:
    """Score one utterance: its name, its seconds and its metrics but those of a recogniser; or its ``problem``."""
    try:
        reference, estimate, fs = _read_pair(pair, options)
    except UserError as error:
        return {"utt": pair.utt, "problem": str(error)}
    try:
        scores = score_utterance(reference, estimate, fs, options.metrics)
        if options.dnsmos_model:
            (copy,) = copies_at(WIDE_BAND, "DNSMOS", fs, align_lengths(reference, estimate, fs)[1:])
            scores.update(_dnsmos(options.dnsmos_model)(copy, WIDE_BAND))
    except ValueError as error:
        return {"utt": pair.utt, "problem": f"utterance {pair.utt}: {error} ({pair.estimate})"}
    return {"utt": pair.utt, "seconds": len(reference) / fs, **scores}


@lru_cache(maxsize=1)
def _dnsmos(path: str) -> dnsmos.DNSMOS:
    """Load the model once per process."""
    return dnsmos.DNSMOS(path)


def recognise(
    pairs: Sequence[Pair], rows: Sequence[Dict[str, Any]], recogniser: asr.Recogniser, options: ScoreOptions
) -> Iterator[Dict[str, Any]]:
    """Add what a recogniser measures to the rows of the pairs, some utterances at a time."""
    for first in range(0, len(pairs), _RECOGNISED_TOGETHER):
        part = slice(first, first + _RECOGNISED_TOGETHER)
        waves: List[np.ndarray] = []
        for pair in pairs[part]:
            reference, estimate, fs = _read_pair(pair, options)
            try:
                waves += copies_at(asr.RATE, "--asr_model", fs, align_lengths(reference, estimate, fs))
            except ValueError as error:
                raise UserError(f"utterance {pair.utt}: {error} ({pair.reference})") from error
        texts = recogniser(waves, asr.RATE)
        for row, reference_text, text in zip(rows[part], texts[::2], texts[1::2], strict=True):
            row.update(asr.challenge_scores(row["stoi"], reference_text, text))
            yield row


def _shard_file(out_dir: Path, index: int, count: int) -> Path:
    return out_dir / "shards" / f"{index}-of-{count}.csv"


def score_shard(
    pairs: Sequence[Pair],
    options: ScoreOptions,
    out_dir: Path,
    shard: Tuple[int, int],
    nj: int,
    recogniser: Optional[asr.Recogniser] = None,
    partly: bool = False,
) -> Dict[str, str]:
    """Score every N-th utterance in ``nj`` processes and write one file.

    Args:
        partly: also write it where some utterances cannot be scored.

    Returns:
        What is wrong with those, by utterance.

    Raises:
        UserError: names all of them, unless ``partly``; or no utterance can be scored.
    """
    if options.dnsmos_model:
        _dnsmos(options.dnsmos_model)  # a wrong file is reported before any work
    index, count = shard
    target = _shard_file(out_dir, index, count)
    target.unlink(missing_ok=True)  # a shard that fails must not leave an older one to be collected
    chosen = pairs[index - 1 :: count]
    chunksize = max(1, min(8, len(chosen) // (4 * nj)))
    with process_map(partial(score_pair, options=options), chosen, nj, chunksize) as scored:
        found = list(progress(scored, len(chosen), desc="scoring"))
    problems = {row["utt"]: row["problem"] for row in found if "problem" in row}
    if not partly or len(problems) == len(chosen):
        raise_unscored(problems, len(chosen))
    chosen = [pair for pair in chosen if pair.utt not in problems]
    rows = [row for row in found if row["utt"] not in problems]
    if recogniser is not None:
        rows = list(progress(recognise(chosen, rows, recogniser, options), len(chosen), desc="recognising"))
    for row in rows:
        undefined = [name for name in options.columns if math.isnan(row[name])]
        if undefined:
            logger.warning("utterance %s: %s undefined, left out of the means", row["utt"], ", ".join(undefined))
    write_csv(target, rows, options.columns)
    return problems


def raise_unscored(problems: Mapping[str, str], total: int) -> None:
    """Raise UserError where there are utterances that cannot be scored."""
    raise_problems(f"{len(problems)} of {total} utterances cannot be scored", list(problems.values()))


def collect(
    pairs: Sequence[Pair], options: ScoreOptions, out_dir: Path, count: int, asr_record: Mapping[str, str]
) -> Dict[str, Any]:
    """Merge ``count`` shards, check that they cover the set once, and write scores.csv and summary.json.

    ``asr_record`` goes into the summary: the recogniser, or why there is none.
    """
    files = [_shard_file(out_dir, index, count) for index in range(1, count + 1)]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {count} shards are not there, such as {absent[0]}; run them again")
    rows = sorted((row for file in files for row in read_csv(file)), key=lambda row: row["utt"])
    names = [row["utt"] for row in rows]
    if names != [pair.utt for pair in pairs]:
        unpaired = set(names) ^ {pair.utt for pair in pairs}
        wrong = unpaired or {name for name in names if names.count(name) > 1}
        raise UserError(
            f"{out_dir}/shards: do not hold each utterance once ({describe(sorted(wrong))}); score all shards again"
        )
    for row in rows:
        if set(row) != {"utt", "seconds", *options.columns}:
            raise UserError(
                f"{out_dir}/shards: utterance {row['utt']} was scored with other metrics; give --collect the same "
                "options as --shard, or score again"
            )
    for folder in (out_dir, out_dir / "shards"):
        remove_temporaries(folder)  # of runs that were killed; all shards are finished
    how = {"ref_channel": options.ref_channel, "fs": rate_of(pairs)}
    return write_scores(out_dir, rows, options.columns, **how, **asr_record)


def asr_record(model: Optional[str], metrics: Sequence[str]) -> Dict[str, str]:
    """``asr_model``, or ``asr_missing`` with the reason why the model that was asked for is not used."""
    if model is None:
        return {}
    if "stoi" not in metrics:
        raise UserError("--asr_model: the challenge's score is made of WER and STOI; add stoi to --metrics")
    if asr.missing_packages():
        reason = f"{' and '.join(asr.missing_packages())} not installed (pip install i2srf_kd[asr])"
        logger.warning("--asr_model %s is not used: %s; everything else is scored", model, reason)
        return {"asr_missing": reason}
    return {"asr_model": model}
