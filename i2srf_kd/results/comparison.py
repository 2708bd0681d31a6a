"""Systems that were scored alike: read from the folders that scoring wrote, and compared with one another."""

import glob
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from i2srf_kd.metrics.bootstrap import CrossedBootstrap
from i2srf_kd.metrics.table import in_order, metric_named
from i2srf_kd.results.model import MIXTURE, Run, Score, System
from i2srf_kd.results.scores import LEVEL, RESAMPLES, SEED, finite
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike

_SCORED_WITH = ("ref_channel", "asr_model")
_Scores = NDArray[np.float64]

# Statistics -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _bootstrap(seeds: int, utterances: int) -> CrossedBootstrap:
    """The same object for the same numbers, so that comparisons share draws."""
    return CrossedBootstrap(seeds, utterances, LEVEL, RESAMPLES, SEED)


def _mean(values: _Scores) -> Score:
    """Mean of scores or of paired differences, ``(S, U)``, with its interval over seeds and utterances."""
    return finite(_bootstrap(*values.shape).mean(values)._asdict())


def _by_metric(*groups: Sequence[Run]) -> Dict[str, List[_Scores]]:
    """Scores ``(S, U)`` of each group of runs, on the utterances and in the metrics that all runs have."""
    runs = [run for group in groups for run in group]
    utterances = sorted(set.intersection(*(set(run.scores) for run in runs))) if runs else []
    if not utterances:
        return {}
    metrics = set.intersection(*(set(run.scores[utterances[0]]) for run in runs)) - {"utt", "seconds"}
    return {
        metric: [np.array([[run.scores[utt][metric] for utt in utterances] for run in group]) for group in groups]
        for metric in in_order(metrics)
    }


def paired_scores(*systems: Optional[System]) -> Dict[str, List[_Scores]]:
    """Scores of each system by metric, ``(S, U)``, with the seeds that all have; nothing where a system is absent."""
    present = [system for system in systems if system is not None and system.scored]
    if len(present) < len(systems):
        return {}
    own = [[run.seed for run in system.scored] for system in present if system.has_seeds] or [[None]]
    seeds = [seed for seed in own[0] if all(seed in others for others in own)]
    return _by_metric(*(system.with_seeds(seeds) for system in present))


def means(system: System) -> Dict[str, Score]:
    """Mean over seeds and utterances by metric."""
    return {metric: _mean(values) for metric, (values,) in _by_metric(system.scored).items()}


def difference(first: Optional[System], second: Optional[System]) -> Dict[str, Score]:
    """Mean of the paired differences, first minus second, by metric; nothing without common seeds."""
    return {metric: _mean(a - b) for metric, (a, b) in paired_scores(first, second).items()}


def gap_closed(system: Optional[System], baseline: Optional[System], teacher: System) -> Dict[str, Dict[str, Any]]:
    """By metric, the gain over the baseline divided by the teacher's, both positive where they are for the better."""
    shares = {}
    for metric, (own, student, best) in paired_scores(system, baseline, teacher).items():
        better = -1.0 if metric_named(metric).higher_is_better is False else 1.0
        result = _bootstrap(*own.shape).ratio(better * (own - student), better * (best - student))
        numbers = finite({"share": result.ratio, "low": result.low, "high": result.high})
        shares[metric] = {**numbers, "gap": finite(result.denominator._asdict())}
    return shares


# Systems that options name --------------------------------------------------------------------------------------------


def read_system(name: str, scored: Sequence[PathLike], experiment: Optional[PathLike] = None) -> System:
    """Read a system from the folders that ``bin/score.py`` wrote, one per seed, and its ``complexity.json``, if any.

    Raises:
        UserError: a file is absent or malformed, or the seeds were not scored alike.
    """
    if experiment is not None and not Path(experiment).is_dir():
        raise UserError(f"system {name}: {experiment} is no folder; give NAME=SCORED_DIR:EXPERIMENT_DIR")
    folder = None if experiment is None else Path(experiment)
    several = len(scored) > 1
    runs = [Run(i if several else None, folder, Path(place)) for i, place in enumerate(scored)]
    first = runs[0]
    metrics = first.summary["metrics"].keys()
    for run in runs:
        if not run.scores:
            raise UserError(
                f"{run.scored}/scores.csv: no scores; score the system first (python -m i2srf_kd.bin.score)"
            )
        if run.scores.keys() != first.scores.keys():
            raise UserError(f"system {name}: {run.scored} was scored on other utterances than {first.scored}")
        if how_scored(run) != how_scored(first) or run.summary["metrics"].keys() != metrics:
            raise UserError(f"system {name}: {run.scored} was scored otherwise than {first.scored}: score it again")
    system = System(name, runs, complexity=first.complexity)
    system.metrics = means(system)
    return system


def read_system_option(text: str) -> System:
    """Read the system that ``NAME=SCORED_DIR[:EXPERIMENT_DIR]`` names, with all seeds that its wildcards match.

    Raises:
        UserError: it has another form, nothing matches, or a folder cannot be read.
    """
    name, scored, experiment = _split_option(text)
    if Path(scored).is_dir() or not any(letter in scored for letter in "*?["):
        return read_system(name, [scored], experiment)
    folders = sorted(glob.glob(scored))
    if not folders:
        raise UserError(f"--system {text}: no folder matches {scored}")
    return read_system(name, folders, experiment)


def _split_option(text: str) -> Tuple[str, str, Optional[str]]:
    name, equals, folders = text.partition("=")
    if not (name.strip() and equals and folders):
        raise UserError(f"--system {text}: expected NAME=SCORED_DIR or NAME=SCORED_DIR:EXPERIMENT_DIR")
    if Path(folders).is_dir():
        return name.strip(), folders, None
    # Folders may have colons in their names: the one that divides leaves a folder on either side.
    splits = [(folders[:at], folders[at + 1 :]) for at, letter in enumerate(folders) if letter == ":"]
    existing = [split for split in splits if all(split) and all(Path(folder).is_dir() for folder in split)]
    for scored, experiment in existing or splits[-1:]:
        return name.strip(), scored, experiment
    return name.strip(), folders, None


def how_scored(run: Run) -> Dict[str, Any]:
    """The options that scores depend on."""
    return {key: run.summary.get(key) for key in _SCORED_WITH}


def order_systems(systems: Sequence[System]) -> List[System]:
    """Put the mixture first and check that all were scored alike on the same utterances.

    Raises:
        UserError: no mixture, a name twice, or systems that cannot be compared.
    """
    names = [system.name for system in systems]
    if MIXTURE not in names:
        raise UserError(
            f"no system called {MIXTURE}: score the mixtures too (ENHANCED_SCP = REF_DATA_DIR/wav.scp) and give "
            f"--system {MIXTURE}=SCORED_DIR; scores mean little without that row"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"system {repeated[0]} is given twice")
    ordered = sorted(systems, key=lambda system: system.name != MIXTURE)
    mixture = ordered[0].runs[0]
    for system in ordered[1:]:
        run = system.runs[0]
        odd = mixture.scores.keys() ^ run.scores.keys()
        if odd:
            raise UserError(
                f"system {system.name} was scored on other utterances than {MIXTURE} ({len(odd)} differ, such as "
                f"{min(odd)}): a table compares systems on one set"
            )
        for key, value in how_scored(mixture).items():
            if how_scored(run)[key] != value:
                raise UserError(f"system {system.name} was scored with another {key} than {MIXTURE}: score it again")
    return ordered


def comparisons(systems: Sequence[System], baseline: Optional[str], pairs: Sequence[str] = ()) -> List[Tuple[str, str]]:
    """What is compared: every model with the baseline, if there is one, and the pairs ``A-B``.

    Raises:
        UserError: a name is not among the systems.
    """
    names = [system.name for system in systems]
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline}: not among the systems {', '.join(names)}")
    others = [name for name in names if baseline is not None and name not in (baseline, MIXTURE)]
    return [(name, str(baseline)) for name in others] + [parse_comparison(text, names) for text in pairs]


def parse_comparison(text: str, names: Sequence[str]) -> Tuple[str, str]:
    """Split ``A-B`` into two known systems, whose names may hold hyphens themselves.

    Raises:
        UserError: not two known names, or more than one way to read it.
    """
    splits = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "-"]
    known = [split for split in splits if split[0] in names and split[1] in names]
    if len(known) != 1:
        reason = "can be read in several ways" if known else "does not name two systems"
        raise UserError(f"--compare {text}: {reason}; expected A-B of {', '.join(names)}")
    return known[0]


def compare(first: System, second: System) -> Dict[str, Any]:
    """Paired differences of two systems in every metric that both have.

    Seeds are paired as well, in the order they were given; a system of one seed is compared with each of the other's.

    Raises:
        UserError: different numbers of seeds.
    """
    numbers = [len(first.runs), len(second.runs)]
    if {*numbers} - {1, max(numbers)}:
        raise UserError(
            f"{first.name} has {numbers[0]} seeds, {second.name} {numbers[1]}: a paired difference needs the same"
        )
    return {"name": f"{first.name} - {second.name}", "metrics": difference(first, second)}
