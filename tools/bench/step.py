"""Part ``step``: what a distilled training step consists of, and the audio it gets through in a second.

The plain step is the naive network, the naive loss and an optimiser that goes through the parameters one by one, all
in float32; the teacher of the plain step runs without gradient. The whole step is measured as one, with the default
options of I2SRF-TFCKD, without and with the flags of :mod:`i2srf_kd.training.speed`.
"""

import argparse
from typing import Any, Dict, List, Sequence

import torch
from reference import distillation, network

from bench.flags import TrainingStep, add_compile_option, sections
from bench.infer import network_floor
from bench.measure import Clock, Floor, Work, in_turns, measure_rates, median_seconds, ratio
from bench.pair import BenchPair, add_pair_options
from bench.report import Report
from i2srf_kd.nets import DPDCRN
from i2srf_kd.system.markdown import Column

STUDENT, LOSS = "student forward and backward", "distillation loss"
NAIVE_STUDENT, NAIVE_LOSS = "student forward and backward, naive", "distillation loss, naive"
TEACHER, INFERENCE, BFLOAT = "teacher, no_grad", "teacher, inference mode", "teacher, inference mode, bfloat16"
NAIVE_TEACHER = "teacher, naive"
LOOP, FOREACH, FUSED = "AdamW, one by one", "AdamW, foreach", "AdamW, fused"
WHOLE = "whole step"
FLAG = WHOLE + ", "
STEPS = {
    "plain step": (NAIVE_STUDENT, NAIVE_TEACHER, NAIVE_LOSS, LOOP),
    "step": (STUDENT, TEACHER, LOSS, FOREACH),
    "step, bfloat16 teacher, fused optimiser": (STUDENT, BFLOAT, LOSS, FUSED),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this part."""
    add_pair_options(parser)
    add_compile_option(parser)
    parser.set_defaults(batch=2)


def candidates(args: argparse.Namespace) -> Dict[str, Work]:
    """What is measured, by name."""
    return _candidates(BenchPair(args))


def _candidates(pair: BenchPair) -> Dict[str, Work]:
    method = pair.published_method()

    def optimiser(**kind: Any) -> Work:
        parameters = [p.detach().clone() for p in pair.student.parameters()]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(parameters, **kind).step

    def teacher(dtype: torch.dtype) -> None:
        with torch.inference_mode(), torch.autocast(pair.mixture.device.type, dtype, enabled=dtype != torch.float32):
            pair.teacher(pair.spectrum, return_features=True)

    def plain_teacher() -> None:
        with torch.no_grad():
            pair.teacher(pair.spectrum, return_features=True)

    def loss() -> None:
        sum(method(pair.student_leaves(), pair.teacher_side).values()).backward()

    def student() -> None:
        pair.task_loss(pair.student(pair.spectrum).spectrum).backward()

    def naive_teacher() -> None:
        with torch.no_grad():
            network.forward(pair.teacher, pair.spectrum)

    def naive_loss() -> None:
        features = pair.student_leaves().features
        sum(distillation.total_loss(method, features, pair.teacher_side.features).values()).backward()

    found: Dict[str, Work] = {STUDENT: student, TEACHER: plain_teacher, LOSS: loss}
    found[INFERENCE], found[BFLOAT] = lambda: teacher(torch.float32), lambda: teacher(torch.bfloat16)
    found.update({LOOP: optimiser(foreach=False), FOREACH: optimiser(foreach=True), FUSED: optimiser(fused=True)})
    found[NAIVE_STUDENT] = lambda: pair.task_loss(network.forward(pair.student, pair.spectrum)).backward()
    found[NAIVE_TEACHER], found[NAIVE_LOSS] = naive_teacher, naive_loss
    return found


def _network_floor(network: DPDCRN, pair: BenchPair, passes: int) -> Floor:
    """A backward pass costs two forward passes."""
    floor = network_floor(network, pair.spectrum)
    return Floor(passes * floor.flops, passes * floor.bytes)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> Report:
    """Measure this part."""
    clock, pair = Clock(args.device, args.threads), BenchPair(args)
    work = _candidates(pair)
    flags = sections(args.compile, args.device)
    work[WHOLE] = TrainingStep(pair, {})
    work.update({FLAG + name: TrainingStep(pair, section) for name, section in flags.items()})
    rates = measure_rates(clock)
    turns = in_turns(work, clock, args.repeats)
    seconds = median_seconds(turns)
    student, teacher = _network_floor(pair.student, pair, 3), _network_floor(pair.teacher, pair, 1)
    limits = {STUDENT: student, NAIVE_STUDENT: student}
    limits.update({name: teacher for name in (NAIVE_TEACHER, TEACHER, INFERENCE)})
    audio = args.batch * args.seconds
    steps = {name: sum(seconds[part] for part in parts) for name, parts in STEPS.items()}
    rows: List[Dict[str, Any]] = []
    for name, value in seconds.items():
        row: Dict[str, Any] = {"name": name, "seconds": value, "share": value / steps["step"]}
        if name.startswith(WHOLE):
            row["audio"] = audio / value
            row["faster_whole"] = ratio(turns, name, WHOLE)
        if name in limits:
            row["times_floor"] = value / limits[name].seconds(rates)
        rows.append(row)
    for name, value in steps.items():
        row = {"name": f"**{name}**", "seconds": value, "share": value / steps["step"], "audio": audio / value}
        row["faster"] = steps["plain step"] / value
        rows.append(row)
    columns = (
        Column("name", "part"),
        Column("seconds", f"{clock.name} [s]", "{:.3f}"),
        Column("share", "relative to the step", "{:.3f}"),
        Column("times_floor", "time over floor", "{:.2f}"),
        Column("audio", "seconds of audio per second", "{:.2f}"),
        Column("faster", "times faster than plain", "{:.2f}"),
        Column("faster_whole", "times faster than without flags", "{:.2f}"),
    )
    conditions = {"clips": args.batch, "frames": pair.frames, "GFLOP/s": rates.flops_per_second / 1e9}
    notes = [f"A step is the sum of: {', '.join(STEPS['step'])}."]
    return Report("step", columns, rows, conditions, notes)
