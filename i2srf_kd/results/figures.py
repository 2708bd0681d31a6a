"""The figures of a report: what the logs of a study's trainings say."""

from operator import methodcaller
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from i2srf_kd.metrics.table import metric_named
from i2srf_kd.results.comparison import paired_scores
from i2srf_kd.results.drawing import (
    CalibrationMap,
    Curve,
    Estimate,
    Panel,
    calibration_figure,
    curves_figure,
    forest_figure,
    mean_curve,
    terms_figure,
)
from i2srf_kd.results.model import Run, System
from i2srf_kd.results.study import Study

_STREAMS = ("time", "frequency", "clips")
_Value = Callable[[Mapping[str, Any]], Optional[float]]  # of a line of diagnostics.jsonl
_WEIGHTS = "_weights"
_CHARACTERISTICS = ("level", "snr", "voicing")


class Picture(NamedTuple):
    """A figure of a report.

    Attributes:
        name: of its file.
        title: what is shown, for the heading and for those who cannot see it.
        text: how to read it.
        figure: of matplotlib.
    """

    name: str
    title: str
    text: str
    figure: Any


def forest(study: Study, metric: str, against: Optional[str] = None) -> Optional[Picture]:
    """Paired differences of all systems to one of them (default: the undistilled student)."""
    other = against or study.baseline
    look = metric_named(metric)
    rows = []
    for system in study.cells:
        score = (system.differences.get(other or "") or {}).get(metric)
        if score and score["mean"] is not None and system.name != other:
            mean, low, high = (look.scale * score[key] for key in ("mean", "low", "high"))
            seeds = _seed_differences(study, system, str(other), metric)
            rows.append(Estimate(system.name, mean, low, high, seeds if len(seeds) > 1 else ()))
    if not rows:
        return None
    title = f"{look.label}: difference to {other}"
    text = (
        f"Mean of the paired differences to {other} with the {study.interval or 'interval'}. Blue: the interval leaves "
        "out zero; grey: it does not."
    )
    text += " Small strokes: single seeds." if any(row.seeds for row in rows) else ""
    return Picture(f"forest_{metric}", title, text, forest_figure(rows, f"Δ {look.label}"))


def _seed_differences(study: Study, system: System, other: str, metric: str) -> List[float]:
    scores = paired_scores(system, study.system(other)).get(metric)
    return [] if scores is None else [metric_named(metric).scale * x for x in np.nanmean(scores[0] - scores[1], axis=1)]


def task_loss_name(run: Run) -> str:
    """Name of the task loss in ``metrics.jsonl``; of an undistilled training it is the whole loss."""
    names = [criterion.get("name") for criterion in run.config.get("criterions") or []]
    reported = {key for line in run.metrics[:2] for key in line}
    return next((str(name) for name in names if name in reported), "loss")


def curve(run: Run, phase: str, name: str) -> Curve:
    """One value over the epochs."""
    values = {line["epoch"]: line.get(name) for line in run.metrics if line["phase"] == phase}
    return {epoch: value for epoch, value in values.items() if value is not None}


def learning_curves(study: Study) -> Optional[Picture]:
    """Validation PESQ and task loss of every training."""
    trained = [system for system in study.systems if system.trained]

    def panel(title: str, unit: str, values: Callable[[Run], Curve]) -> Panel:
        curves = {system.name: [values(run) for run in system.trained] for system in trained}
        curves = {name: [c for c in seeds if c] for name, seeds in curves.items()}
        return Panel(title, unit, {name: seeds for name, seeds in curves.items() if seeds})

    pesq = metric_named(study.pesq).name
    panels = [
        panel(f"validation {pesq}", f"{pesq} (MOS-LQO)", lambda run: curve(run, "valid", "pesq")),
        panel("validation task loss", "task loss", lambda run: curve(run, "valid", task_loss_name(run))),
        panel("training task loss", "task loss", lambda run: curve(run, "train", task_loss_name(run))),
    ]
    panels = [entry for entry in panels if entry.curves]
    if not panels:
        return None
    text = "The task loss is that of the student without distillation, so that all systems can be compared."
    seeds = max(len(system.trained) for system in trained)
    text += " Thick: mean over the seeds; thin: each of them." if seeds > 1 else ""
    return Picture("learning_curves", "Learning curves", text, curves_figure(panels, [s.name for s in trained]))


def weighted_terms(run: Run) -> Dict[str, Curve]:
    """Task loss and terms of the distillation in the validation, where the final weights hold for all of them."""
    distill = run.config.get("distill") or {}
    weight = float(distill.get("weight", 1.0))
    methods = distill.get("method")
    methods = methods if isinstance(methods, list) else []
    names = dict.fromkeys(key for line in run.metrics for key in line if key.startswith("kd_"))
    task = task_loss_name(run)
    terms: Dict[str, Curve] = {"task": curve(run, "valid", task)}
    for name in names:
        # A single method has no number in the names of its terms.
        own = float(methods[0].get("weight", 1.0)) if len(methods) == 1 else 1.0
        for i, method in enumerate(methods):
            if name.startswith(f"kd_{method['name']}{i}_"):
                own = float(method.get("weight", 1.0))
        terms[name[len("kd_") :]] = {
            epoch: weight * own * value for epoch, value in curve(run, "valid", name).items()
        }  # fmt: skip
    return {name: values for name, values in terms.items() if values}


def loss_terms(study: Study) -> List[Picture]:
    """What the loss of each distilled student consists of."""
    pictures = []
    for system in study.cells:
        per_run = [weighted_terms(run) for run in system.trained] if system.distilled else []
        names = [name for name in per_run[0] if all(name in terms for terms in per_run)] if per_run else []
        if len(names) < 2:
            continue
        figure = terms_figure({name: mean_curve([terms[name] for terms in per_run]) for name in names}, "weighted loss")
        text = f"Validation loss, each term with its weight{_over_seeds(per_run)}."
        pictures.append(Picture(f"loss_terms_{system.name}", f"Loss terms of {system.name}", text, figure))
    return pictures


def _over_seeds(runs: Sequence[Any]) -> str:
    return f", mean over {len(runs)} seeds" if len(runs) > 1 else ""


def gradient_share(study: Study) -> Optional[Picture]:
    """How much of the student's gradient comes from the distillation, and whether it agrees with the task's."""

    def share(line: Mapping[str, Any]) -> Optional[float]:
        task, kd = line.get("grad_norm_task"), line.get("grad_norm_kd")
        return 100 * kd / (task + kd) if task is not None and kd is not None and task + kd > 0 else None

    panels = []
    kinds: Sequence[Tuple[str, str, _Value, Optional[Tuple[float, str]]]] = (
        ("share of the distillation in the gradient", "‖KD‖ / (‖task‖ + ‖KD‖) [%]", share, (50.0, "as much as task")),
        (
            "agreement with the task",
            "cosine of both gradients",
            methodcaller("get", "grad_cosine"),
            (0.0, "unrelated"),
        ),
        ("norm of the task's gradient", "‖task‖", methodcaller("get", "grad_norm_task"), None),
    )
    for title, unit, value, level in kinds:
        curves = {system.name: _diagnostic_curves(system, value) for system in study.cells}
        panels.append(Panel(title, unit, {name: seeds for name, seeds in curves.items() if seeds}, level))
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    if not names:
        return None
    text = (
        "Norms of the gradients of the weighted losses with respect to the student's parameters, on the same "
        "validation clips before the first and after every epoch. A cosine above 0: both losses pull the same way."
    )
    # Colours as in the learning curves, where the systems come in the same order.
    order = [system.name for system in study.systems if system.trained]
    return Picture("gradient_share", "Share in the gradient", text, curves_figure(panels, order, "training step"))


def _diagnostic_curves(system: System, value: _Value) -> List[Curve]:
    curves = []
    for run in system.trained:
        points = {line["step"]: value(line) for line in run.diagnostics}
        curves.append({step: point for step, point in points.items() if point is not None})
    return [entry for entry in curves if entry]


def split_name(key: str) -> Tuple[str, str]:
    """``intra_encoder_time`` to set and stream (``intra encoder``, ``time``); the stream may be missing."""
    for stream in _STREAMS:
        if key.endswith(f"_{stream}"):
            return key[: -len(stream) - 1].replace("_", " "), stream
    return key.replace("_", " "), ""


def calibration(study: Study) -> List[Picture]:
    """Calibration weights of each distilled student over the training, and how far they are from equal."""
    pictures: List[Picture] = []
    for system in study.cells:
        runs = [run for run in system.trained if run.diagnostics]
        steps = _shared_steps(runs)
        # A single teacher layer always has weight 1.
        maps = [entry for entry in _maps(runs, steps) if entry.weights.shape[2] > 1]
        if maps:
            text = (
                "Each row is a pair of layers: how much the teacher's layer (right of the arrow) teaches the student's "
                f"(left); mean over clips and frames of the same validation clips{_over_seeds(runs)}. Orange: more "
                "than an equal share, purple: less; the number is the last weight."
            )
            figure = calibration_figure(maps, steps)
            title = f"Calibration weights of {system.name}"
            pictures.append(Picture(f"calibration_{system.name}", title, text, figure))
        pictures += _calibration_curves(system.name, runs)
    return pictures


def _shared_steps(runs: Sequence[Run]) -> List[int]:
    sets = [{line["step"] for line in run.diagnostics} for run in runs]
    return sorted(set.intersection(*sets)) if sets else []


def _maps(runs: Sequence[Run], steps: Sequence[int]) -> List[CalibrationMap]:
    if not steps:
        return []
    tables = [{line["step"]: line.get("diagnostics") or {} for line in run.diagnostics} for run in runs]
    keys = [key for key, value in tables[0][steps[-1]].items() if key.endswith(_WEIGHTS) and _is_matrix(value)]
    maps = []
    for key in keys:
        if not all(key in table[step] for table in tables for step in steps):
            continue
        weights = np.mean([[table[step][key] for step in steps] for table in tables], axis=0, dtype=float)
        title, stream = split_name(key[: -len(_WEIGHTS)])
        maps.append(CalibrationMap(title, stream, weights, *_layer_names(runs[0], title, weights.shape[1:])))
    return maps


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, list) for row in value)


def _layer_names(run: Run, title: str, shape: Sequence[int]) -> Tuple[List[str], List[str]]:
    """Names of the student's and the teacher's layers; in the inter-set term they are the sets."""
    if title.endswith("inter"):
        conf = (run.config.get("distill") or {}).get("method_conf") or {}
        sets = conf.get("sets") or ["encoder", "dual_path", "decoder"]
        if len(sets) == shape[0] == shape[1]:
            names = [str(name).replace("_", "-") for name in sets]
            return names, names
    return [f"S{i + 1}" for i in range(shape[0])], [f"T{j + 1}" for j in range(shape[1])]


def _calibration_curves(name: str, runs: Sequence[Run]) -> List[Picture]:
    """What the weights of a student do over the training, as far as it is recorded."""
    over_seeds = _over_seeds(runs)
    by_frame = {like: f"{_WEIGHTS}_by_{like}" for like in _CHARACTERISTICS}
    kinds: List[Tuple[str, str, str, List[Panel]]] = [
        (
            "entropy",
            "Entropy of the calibration weights",
            "Entropy of the weights over the teacher's layers, relative to the largest possible: at 1 every layer "
            f"teaches alike, at 0 one alone{over_seeds}.",
            _stream_panels(runs, "_entropy", "relative entropy", float, (1.0, "equal weights")),
        ),
        (
            "spread",
            "Spread of the calibration weights over clips and frames",
            f"Standard deviation of the weights over clips and frames: at 0 all frames are taught alike{over_seeds}.",
            _stream_panels(runs, "_spread", "standard deviation", float),
        ),
        (
            "characteristics",
            "Calibration weights and speech",
            "Largest correlation, over the pairs of layers, of the weights with level, SNR and voicing of the "
            f"frames{over_seeds}.",
            [
                panel._replace(title=f"{panel.title}: {like}")
                for like, suffix in by_frame.items()
                for panel in _stream_panels(runs, suffix, "largest |r|", lambda r: float(np.abs(r).max()))
            ],
        ),
        (
            "uniform",
            "Distillation loss under uniform weights",
            "What the loss of each layer set would be under uniform weights. Only this one can be compared between "
            f"trainings: weights change the other{over_seeds}.",
            _stream_panels(runs, "_uniform", "loss", float),
        ),
    ]
    pictures = []
    for kind, title, text, panels in kinds:
        if panels:
            curves = list(dict.fromkeys(curve for panel in panels for curve in panel.curves))
            figure = curves_figure(panels, curves, "training step")
            pictures.append(Picture(f"{kind}_{name}", f"{title} of {name}", text, figure))
    return pictures


def _stream_panels(
    runs: Sequence[Run],
    suffix: str,
    unit: str,
    value: Callable[[Any], float],
    level: Optional[Tuple[float, str]] = None,
) -> List[Panel]:
    """A panel for each stream, a curve for each layer set, of what is recorded under names with this suffix."""
    last = (runs[0].diagnostics[-1].get("diagnostics") or {}) if runs else {}
    panels: Dict[str, Dict[str, List[Curve]]] = {}
    for key in last:
        if not key.endswith(suffix):
            continue
        title, stream = split_name(key[: -len(suffix)])
        curves = [
            {
                line["step"]: value(line["diagnostics"][key])
                for line in run.diagnostics
                if (line.get("diagnostics") or {}).get(key) is not None
            }
            for run in runs
        ]
        panels.setdefault(stream, {})[title] = [entry for entry in curves if entry]
    return [Panel(f"{stream} stream".strip(), unit, curves, level) for stream, curves in panels.items()]


def all_pictures(study: Study) -> List[Picture]:
    """Every figure that the study has the data for."""
    first = [forest(study, metric) for metric in study.metrics]
    pictures = [*first, learning_curves(study), *loss_terms(study), gradient_share(study), *calibration(study)]
    return [picture for picture in pictures if picture is not None]
