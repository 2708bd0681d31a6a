"""Score enhanced speech against clean references.

    python -m i2srf_kd.bin.score dump/raw/test exp/x/enhanced_test/wav.scp exp/x/scored_test --nj 4

REF_DATA_DIR is a Kaldi-style folder with the clean speech in spk1.scp. Any scp with the same utterances can be scored;
its own wav.scp gives the row of the unprocessed mixtures. Writes scores.csv (one line per utterance) and summary.json
(mean and bootstrap interval per metric) in OUT_DIR. For a job array, run it with --shard i/N for i = 1..N and then
once with --collect N.

Utterances that cannot be scored, such as unreadable ones, are named in the end, and the exit code is 2; without
--shard, the files hold the scores of the others then.

WB-PESQ, CSIG, CBAK and COVL exist from 16 kHz on (audio of a higher rate is scored on copies at 16 kHz), NB-PESQ stands
in for them below. An utterance whose score is undefined is named and counted.

--asr_model adds the word error rate of a recogniser and the score of the L3DAS challenges (i2srf_kd/metrics/asr.py).
Where its packages are not installed, everything else is scored and the result table says so.
"""

import argparse
import os
import sys
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from i2srf_kd.data.kaldi_dir import parse_shard
from i2srf_kd.metrics import asr
from i2srf_kd.metrics.table import SCORES, check_metrics, default_metrics
from i2srf_kd.results.scoring import ScoreOptions, asr_record, collect, raise_unscored, rate_of, read_pairs, score_shard
from i2srf_kd.system.command_line import command_parser
from i2srf_kd.system.errors import UserError, run_command


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
    parser = command_parser(__doc__)
    parser.add_argument("ref_data_dir", metavar="REF_DATA_DIR", help="folder with spk1.scp (clean speech)")
    parser.add_argument("enhanced_scp", metavar="ENHANCED_SCP", help="scp of the speech to be scored")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    parser.add_argument("--shard", metavar="i/N", help="score only part i of N")
    parser.add_argument("--collect", metavar="N", type=int, help="merge N shards that were scored before")
    parser.add_argument("--nj", metavar="K", type=int, default=1, help="local processes (default: 1)")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(SCORES)} (default: all that exist at the audio's rate)",
    )
    parser.add_argument("--ref_channel", type=int, default=0, help="channel of multi-channel files (default: 0)")
    parser.add_argument("--dnsmos_model", help="sig_bak_ovr.onnx of DNSMOS P.835, to add its three scores")
    parser.add_argument(
        "--asr_model",
        metavar="DIR_OR_NAME",
        help="wav2vec 2.0 recogniser in a folder or on the hub, to add WER and the challenge's score; the challenge's "
        f"own is {asr.CHALLENGE_MODEL}",
    )
    parser.add_argument("--check_only", metavar="HZ", type=int, help="check the options for audio of this rate and end")
    parser.add_argument("--asr_batch_size", type=int, default=8, help="waveforms at a time (default: 8)")
    return parser


def _metrics_last(words: Sequence[str]) -> List[str]:
    """The command line with ``--metrics`` behind all else: in front of the folders it would take them for scores.

    Raises:
        UserError: it is followed by no score.
    """
    rest: List[str] = []
    last: List[str] = []
    places = iter(range(len(words)))
    for place in places:
        if words[place] != "--metrics":
            rest.append(words[place])
            continue
        names = list(takewhile(SCORES.__contains__, words[place + 1 :]))
        if not names:
            raise UserError(f"--metrics {' '.join(words[place + 1 : place + 2])}: choose among {', '.join(SCORES)}")
        last = ["--metrics", *names]  # given twice, the last one counts, as for other options
        next(islice(places, len(names) - 1, None))
    return [*rest, *last]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line ``argv``."""
    args = get_parser().parse_args(_metrics_last(sys.argv[1:] if argv is None else argv))
    for option in ("nj", "collect", "asr_batch_size"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UserError(f"--{option} {getattr(args, option)}: must be at least 1")
    if args.ref_channel < 0:
        raise UserError(f"--ref_channel {args.ref_channel}: channels are counted from 0")
    if args.shard and args.collect:
        raise UserError("--shard and --collect are two separate calls: first all shards, then --collect")
    pairs = [] if args.check_only else read_pairs(args.ref_data_dir, args.enhanced_scp)
    fs = args.check_only or rate_of(pairs)
    metrics = tuple(args.metrics or default_metrics(fs))
    check_metrics(metrics, fs)
    record = asr_record(args.asr_model, metrics)
    options = ScoreOptions(metrics, args.ref_channel, args.dnsmos_model, record.get("asr_model"))
    problems: Dict[str, str] = {}
    if args.dnsmos_model and not Path(args.dnsmos_model).is_file():
        raise UserError(f"--dnsmos_model {args.dnsmos_model}: no such file")
    if args.check_only:
        return 0
    if not args.collect:
        recogniser = asr.Recogniser(options.asr_model, batch_size=args.asr_batch_size) if options.asr_model else None
        # One thread per process: the measures are small and the processes share the cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        shard = parse_shard(args.shard) if args.shard else (1, 1)
        problems = score_shard(pairs, options, args.out_dir, shard, args.nj, recogniser, partly=not args.shard)
        if args.shard:
            return 0
    scored = [pair for pair in pairs if pair.utt not in problems]
    _print_summary(collect(scored, options, args.out_dir, args.collect or 1, record))
    raise_unscored(problems, len(pairs))
    return 0


if __name__ == "__main__":
    run_command(main)
