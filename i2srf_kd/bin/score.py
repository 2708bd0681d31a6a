"""Score enhanced speech against clean references.

    python -m i2srf_kd.bin.score dump/raw/test exp/x/enhanced_test/wav.scp exp/x/scored_test --nj 4

REF_DATA_DIR is a Kaldi-style folder with the clean speech in spk1.scp. Any scp with the same utterances can be scored;
its own wav.scp gives the row of the unprocessed mixtures. Writes scores.csv (one line per utterance) and summary.json
(mean and bootstrap interval per metric) in OUT_DIR. For a job array, run it with --shard i/N for i = 1..N and then
once with --collect N.

--asr_model adds the word error rate of a recogniser and the score of the L3DAS challenges (i2srf_kd/metrics/asr.py).
Where its packages are not installed, everything else is scored and the result table says so.
"""

import argparse
import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.audio.io import read_audio
from i2srf_kd.data.kaldi_dir import describe, parse_shard, read_audio_table
from i2srf_kd.metrics import asr, dnsmos
from i2srf_kd.metrics.utterance import DEFAULT, align_lengths, score_utterance
from i2srf_kd.results.scores import read_csv, summarise, write_csv
from i2srf_kd.system.errors import UserError, run_command
from i2srf_kd.system.files import PathLike, remove_temporaries, write_text
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress

_RECOGNISED_TOGETHER = 64  # pairs in memory at a time


class Pair(NamedTuple):
    """One utterance to score."""

    utt: str
    reference: str
    estimate: str


class Options(NamedTuple):
    """How utterances are scored; goes to the worker processes."""

    metrics: Tuple[str, ...]
    ref_channel: int
    zero_mean: bool
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
    return wave[:, channel], fs


def _read_pair(pair: Pair, options: Options) -> Tuple[np.ndarray, np.ndarray, int]:
    """Reference, estimate and their common rate in Hz."""
    reference, fs = _read_channel(pair.utt, pair.reference, options.ref_channel)
    estimate, estimate_fs = _read_channel(pair.utt, pair.estimate, options.ref_channel)
    if fs != estimate_fs:
        raise UserError(
            f"utterance {pair.utt}: {pair.reference} has {fs} Hz but {pair.estimate} has {estimate_fs} Hz; "
            "resample one of them"
        )
    return reference, estimate, fs


def score_pair(pair: Pair, options: Options) -> Dict[str, Any]:
    """Score one utterance: its name, its seconds and its metrics, those of a recogniser excepted."""
    reference, estimate, fs = _read_pair(pair, options)
    try:
        scores = score_utterance(reference, estimate, fs, options.metrics, options.zero_mean)
        if options.dnsmos_model:
            scores.update(_dnsmos(options.dnsmos_model)(align_lengths(reference, estimate, fs)[1], fs))
    except ValueError as error:
        raise UserError(f"utterance {pair.utt}: {error} ({pair.estimate})") from error
    return {"utt": pair.utt, "seconds": len(reference) / fs, **scores}


_dnsmos_models: Dict[str, dnsmos.DNSMOS] = {}


def _dnsmos(path: str) -> dnsmos.DNSMOS:
    """Load the model once per process."""
    if path not in _dnsmos_models:
        _dnsmos_models[path] = dnsmos.DNSMOS(path)
    return _dnsmos_models[path]


def recognise(
    pairs: Sequence[Pair], rows: Sequence[Dict[str, Any]], recogniser: asr.Recogniser, options: Options
) -> Iterator[Dict[str, Any]]:
    """Add what a recogniser measures to the rows of the pairs, some utterances at a time."""
    for first in range(0, len(pairs), _RECOGNISED_TOGETHER):
        part = slice(first, first + _RECOGNISED_TOGETHER)
        waves: List[np.ndarray] = []
        for pair in pairs[part]:
            reference, estimate, fs = _read_pair(pair, options)
            if fs != asr.RATE:
                raise UserError(f"utterance {pair.utt}: {pair.reference} has {fs} Hz, --asr_model needs {asr.RATE} Hz")
            waves += align_lengths(reference, estimate, fs)
        texts = recogniser(waves, asr.RATE)
        for row, reference_text, text in zip(rows[part], texts[::2], texts[1::2], strict=True):
            row.update(asr.challenge_scores(row["stoi"], reference_text, text))
            yield row


def score_pairs(pairs: Sequence[Pair], options: Options, nj: int = 1) -> Iterator[Dict[str, Any]]:
    """Score utterances in ``nj`` processes; results come in the order of ``pairs``."""
    chunksize = max(1, min(8, len(pairs) // (4 * nj)))
    with process_map(partial(score_pair, options=options), pairs, nj, chunksize) as rows:
        yield from rows


def _shard_file(out_dir: Path, index: int, count: int) -> Path:
    return out_dir / "shards" / f"{index}-of-{count}.csv"


def score_shard(
    pairs: Sequence[Pair],
    options: Options,
    out_dir: Path,
    shard: Tuple[int, int],
    nj: int,
    recogniser: Optional[asr.Recogniser] = None,
) -> None:
    """Score every N-th utterance and write one file."""
    index, count = shard
    target = _shard_file(out_dir, index, count)
    target.unlink(missing_ok=True)  # a shard that fails must not leave an older one to be collected
    chosen = pairs[index - 1 :: count]
    rows = list(progress(score_pairs(chosen, options, nj), len(chosen), desc="scoring"))
    if recogniser is not None:
        rows = list(progress(recognise(chosen, rows, recogniser, options), len(chosen), desc="recognising"))
    write_csv(target, rows, options.columns)


def collect(
    pairs: Sequence[Pair], options: Options, out_dir: Path, count: int, asr_record: Mapping[str, str]
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
    write_csv(out_dir / "scores.csv", rows, options.columns)
    summary = summarise(rows, options.columns)
    summary.update(si_sdr_zero_mean=options.zero_mean, ref_channel=options.ref_channel, **asr_record)
    write_text(out_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _print_summary(summary: Dict[str, Any]) -> None:
    print(f"{summary['utterances']} utterances, {summary['seconds'] / 60:.1f} min")
    for name, value in summary["metrics"].items():
        undefined = f", undefined for {value['n_nan']}" if value["n_nan"] else ""
        if value["mean"] is None:
            print(f"  {name:<12} undefined for all")
        else:
            print(f"  {name:<12} {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]{undefined}")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("ref_data_dir", metavar="REF_DATA_DIR", help="folder with spk1.scp (clean speech)")
    parser.add_argument("enhanced_scp", metavar="ENHANCED_SCP", help="scp of the speech to be scored")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("--shard", metavar="i/N", help="score only part i of N")
    parser.add_argument("--collect", metavar="N", type=int, help="merge N shards that were scored before")
    parser.add_argument("--nj", metavar="K", type=int, default=1, help="local processes (default: 1)")
    parser.add_argument("--metrics", nargs="+", choices=DEFAULT, default=list(DEFAULT), help="default: all")
    parser.add_argument("--ref_channel", type=int, default=0, help="channel of multi-channel files (default: 0)")
    parser.add_argument(
        "--zero_mean", choices=("true", "false"), default="false", help="remove the mean before SI-SDR (default: false)"
    )
    parser.add_argument("--dnsmos_model", help="sig_bak_ovr.onnx of DNSMOS P.835, to add its three scores")
    parser.add_argument(
        "--asr_model",
        metavar="DIR_OR_NAME",
        help="wav2vec 2.0 recogniser in a folder or on the hub, to add WER and the challenge's score; the challenge's "
        f"own is {asr.CHALLENGE_MODEL}",
    )
    parser.add_argument("--asr_batch_size", type=int, default=8, help="waveforms at a time (default: 8)")
    return parser


def _asr_record(model: Optional[str], metrics: Sequence[str]) -> Dict[str, str]:
    """``asr_model``, or ``asr_missing`` with the reason why the model that was asked for is not used."""
    if model is None:
        return {}
    if "stoi" not in metrics:
        raise UserError("--asr_model: the challenge's score is made of WER and STOI; add stoi to --metrics")
    if asr.missing_packages():
        reason = f"{' and '.join(asr.missing_packages())} not installed (pip install i2srf_kd[asr])"
        logging.warning(f"--asr_model {model} is not used: {reason}; everything else is scored")
        return {"asr_missing": reason}
    return {"asr_model": model}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(argv)
    for option in ("nj", "collect", "asr_batch_size"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: must be at least 1")
    if args.ref_channel < 0:
        raise UserError(f"--ref_channel {args.ref_channel}: channels are counted from 0")
    if args.shard and args.collect:
        raise UserError("--shard and --collect are two separate calls: first all shards, then --collect")
    asr_record = _asr_record(args.asr_model, args.metrics)
    options = Options(
        tuple(args.metrics),
        args.ref_channel,
        args.zero_mean == "true",
        args.dnsmos_model,
        asr_record.get("asr_model"),
    )
    pairs = read_pairs(args.ref_data_dir, args.enhanced_scp)
    if not args.collect:
        if options.dnsmos_model:
            _dnsmos(options.dnsmos_model)  # a wrong file is reported before any work
        recogniser = asr.Recogniser(options.asr_model, batch_size=args.asr_batch_size) if options.asr_model else None
        # One thread per process: the measures are small and the processes share the cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        shard = parse_shard(args.shard) if args.shard else (1, 1)
        score_shard(pairs, options, args.out_dir, shard, args.nj, recogniser)
        if args.shard:
            return 0
    _print_summary(collect(pairs, options, args.out_dir, args.collect or 1, asr_record))
    return 0


if __name__ == "__main__":
    run_command(main)
