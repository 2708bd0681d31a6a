"""Part ``loss``: the distillation loss, forward and backward, against the published formulas written naively.

``calibration`` is the comparison of layers: the intra-set terms, and the inter-set term on given fused features.
``whole loss`` adds the fusion. ``published code`` is the naive form plus the convolutions that the published code
computes and drops. The arithmetic is the published one in all of them, except in the row with the default options.
"""

import argparse
from typing import Any, Callable, Dict, List, Mapping, Sequence

from reference import distillation
from torch import Tensor

from bench.measure import (
    Clock,
    Floor,
    Work,
    count_flops,
    in_turns,
    measure_rates,
    median_seconds,
    ratio,
    total_bytes,
)
from bench.memory import memory_columns
from bench.pair import BenchPair, add_pair_options, feature_tensors
from bench.report import Report
from i2srf_kd.distill.gram import padding_flops
from i2srf_kd.system.markdown import Column

OUR_CALIBRATION, NAIVE_CALIBRATION = "calibration", "calibration, naive"
OUR_LOSS, NAIVE_LOSS, PUBLISHED = "whole loss", "whole loss, naive", "whole loss, published code"
DEFAULT = "whole loss, default options"
STUDENT, TEACHER = "student forward and backward", "teacher forward"
# The candidates in the order of the table.
NAMES = (NAIVE_CALIBRATION, OUR_CALIBRATION, PUBLISHED, NAIVE_LOSS, OUR_LOSS, DEFAULT, STUDENT, TEACHER)
# Each is measured in a process of its own, which takes longer than the loss itself.
WITH_MEMORY = (NAIVE_LOSS, OUR_LOSS)
REFERENCES = {OUR_CALIBRATION: NAIVE_CALIBRATION, OUR_LOSS: NAIVE_LOSS, DEFAULT: NAIVE_LOSS}

SetLossFunction = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], Tensor]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    add_pair_options(parser)
    parser.set_defaults(batch=4)


def candidates(args: argparse.Namespace) -> Dict[str, Work]:
    """What is measured, by name."""
    return _candidates(BenchPair(args))


def _candidates(pair: BenchPair) -> Dict[str, Work]:
    method, default = pair.published_method(), pair.default_method()
    fused = [
        [f.detach() for f in fusion(side.features)]
        for fusion, side in (
            (method.student_fusion, pair.student_leaves()),
            (method.teacher_fusion, pair.teacher_side),
        )
    ]

    def backward(terms: Mapping[str, Tensor]) -> None:
        sum(terms.values(), pair.mixture.new_zeros(())).backward()
        method.zero_grad()
        default.zero_grad()

    def calibration(set_loss: SetLossFunction) -> None:
        student, (ours, theirs) = pair.student_leaves().features, fused
        terms = {
            name: set_loss(loss, student[name], pair.teacher_side.features[name]) for name, loss in method.intra.items()
        }
        leaves = [[f.detach().requires_grad_() for f in layers] for layers in (ours, theirs)]
        backward({**terms, "inter": set_loss(method.inter_set, *leaves)})

    def student_step() -> None:
        pair.task_loss(pair.student(pair.spectrum).spectrum).backward()
        pair.student.zero_grad()

    def naive(every_step: bool) -> Work:
        return lambda: backward(
            distillation.total_loss(method, pair.student_leaves().features, pair.teacher_side.features, every_step)
        )

    found: Dict[str, Work] = {
        OUR_CALIBRATION: lambda: calibration(lambda loss, *features: loss(*features).loss),
        OUR_LOSS: lambda: backward(method(pair.student_leaves(), pair.teacher_side)),
        DEFAULT: lambda: backward(default(pair.student_leaves(), pair.teacher_side)),
        STUDENT: student_step,
        TEACHER: lambda: pair.teacher(pair.spectrum),
    }
    found[NAIVE_CALIBRATION] = lambda: calibration(distillation.set_loss)
    found[NAIVE_LOSS], found[PUBLISHED] = naive(False), naive(True)
    return found


def floors(pair: BenchPair, work: Mapping[str, Work]) -> Dict[str, Floor]:
    """Products that ours runs, and features that must be read twice and whose gradients must be written."""
    features = [feature_tensors(side) for side in (pair.student_leaves(), pair.teacher_side)]
    student, teacher = (total_bytes(side) for side in features)
    padding = sum(padding_flops(feature) for side in features for feature in side)
    names = (OUR_CALIBRATION, OUR_LOSS, DEFAULT)
    return {name: Floor(count_flops(work[name]) - padding, 3 * student + teacher) for name in names}


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    # First, while this process holds little itself.
    memory = memory_columns(args, arguments, WITH_MEMORY)
    clock, pair = Clock(args.device, args.threads), BenchPair(args)
    work = _candidates(pair)
    rates, limits = measure_rates(clock), floors(pair, work)
    turns = in_turns(work, clock, args.repeats)
    seconds = median_seconds(turns)
    others = seconds[STUDENT] + seconds[TEACHER]
    rows: List[Dict[str, Any]] = []
    for name in NAMES:
        reference = REFERENCES.get(name, "")
        row: Dict[str, Any] = {"name": name, "seconds": seconds[name], "peak_mb": memory.get(name)}
        row["faster"] = ratio(turns, name, reference)
        if name in memory and reference in memory:
            row["memory_ratio"] = memory[name] / memory[reference]
        if name in limits:
            row["gflop"] = limits[name].flops / 1e9
            row["times_floor"] = seconds[name] / limits[name].seconds(rates)
        if name not in (STUDENT, TEACHER, OUR_CALIBRATION, NAIVE_CALIBRATION):
            row["share"] = seconds[name] / (seconds[name] + others)
        rows.append(row)
    columns = (
        Column("name", "forward and backward"),
        Column("seconds", f"{clock.name} [s]", "{:.3f}"),
        Column("faster", "times faster than naive", "{:.2f}"),
        Column("peak_mb", "peak memory [MB]", "{:.0f}"),
        Column("memory_ratio", "of naive", "{:.2f}"),
        Column("gflop", "GFLOP", "{:.1f}"),
        Column("times_floor", "time over floor", "{:.2f}"),
        Column("share", "share of training step", "{:.0%}"),
    )
    conditions = {"clips": args.batch, "frames": pair.frames, "GFLOP/s": rates.flops_per_second / 1e9}
    conditions["GB/s"] = rates.bytes_per_second / 1e9
    notes = ["A training step is student forward and backward, teacher forward and the loss of the row."]
    return Report("loss", columns, rows, conditions, notes)
