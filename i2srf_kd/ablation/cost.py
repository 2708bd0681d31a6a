"""What a training cost, from what it left behind."""

import math
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from i2srf_kd.results.model import METRICS_LOG, Run
from i2srf_kd.system.errors import UserError

KEYS = ("steps", "seconds_per_step", "hours", "parameters", "distillation_parameters")


def training_cost(experiment: Path) -> Optional[Dict[str, Any]]:
    """Steps, seconds per step and hours of a training, and the parameters it trained; None without a log."""
    if not (experiment / METRICS_LOG).is_file():
        return None
    return {**Run(experiment=experiment).times, **_parameters(experiment)}


def training_environments(experiment: Path) -> List[Tuple[Tuple[str, Any], ...]]:
    """Commit, versions and hardware of every start of a training, as pairs of name and value; none without a record."""
    try:
        return [_environment(start) for start in Run(experiment=experiment).starts]
    except UserError:  # being written
        return []


def _environment(start: Mapping[str, Any]) -> Tuple[Tuple[str, Any], ...]:
    versions = start.get("versions") or {}
    hardware = ", ".join(start.get("gpus") or []) or f"{start.get('cpu')}, {start.get('torch_threads')} thread(s)"
    record = {"git_hash": start.get("git_hash"), "espnet": versions.get("espnet"), "torch": versions.get("torch")}
    return tuple({**record, "python": start.get("python"), "hardware": hardware}.items())


def _parameters(experiment: Path) -> Dict[str, Optional[int]]:
    """Numbers in the weights: of the network, and of what only the training needs."""
    from i2srf_kd.inference.experiment import TRAINING_ONLY_PREFIX, Experiment
    from i2srf_kd.training.checkpoint import CHECKPOINT, load_weights

    state = experiment / CHECKPOINT
    try:
        weights = load_weights(state if state.is_file() else Experiment(experiment).weights())
    except UserError:  # not trained to its end, or weights that were tidied away
        return {"parameters": None, "distillation_parameters": None}
    sizes = {name: value.numel() for name, value in weights.items() if value.is_floating_point()}
    extra = sum(size for name, size in sizes.items() if name.startswith(TRAINING_ONLY_PREFIX))
    # Files of weights have what the network needs, the state of the training has all.
    known = extra or state.is_file() or not Experiment(experiment).config.get("distill")
    return {"parameters": sum(sizes.values()) - extra, "distillation_parameters": extra if known else None}


def mean_cost(costs: Sequence[Optional[Dict[str, Any]]]) -> Optional[Dict[str, Any]]:
    """Mean over trainings, of the values that are known; None when there is none."""
    known = [cost for cost in costs if cost]
    if not known:
        return None
    return {key: _mean([cost[key] for cost in known if cost.get(key) is not None]) for key in KEYS}


def _mean(values: List[float]) -> Optional[float]:
    return math.fsum(values) / len(values) if values else None
