"""A whole training step under the flags of :mod:`i2srf_kd.training.speed`, for the parts ``step`` and ``curve``."""

import copy
from typing import Any, Dict, Mapping

import torch

from bench.pair import BenchPair
from i2srf_kd.distill import Side
from i2srf_kd.training.speed import compile_regions, ordinary, parse_speed, speed_up_model, speed_up_network

# Each alone; what a CPU can run. Compiled parts come on demand: compiling takes minutes.
FLAGS: Dict[str, Mapping[str, Any]] = {
    "teacher_inference_mode": {"teacher_inference_mode": True},
    "channels_last": {"channels_last": True},
    "dense_buffer": {"dense_buffer": True},
    "fused_optimizer": {"fused_optimizer": True},
    "teacher_dtype: bfloat16": {"teacher_dtype": "bfloat16"},
    "amp_dtype: bfloat16": {"amp_dtype": "bfloat16"},
}
ALL = {key: value for section in FLAGS.values() for key, value in section.items()}
COMPILE = {"compile": ["student", "teacher", "loss"]}


def add_compile_option(parser: Any) -> None:
    """Whether compiled parts are measured as well."""
    parser.add_argument("--compile", action="store_true", help="also with compiled parts, which takes minutes at first")


def sections(compiled: bool, device: str) -> Dict[str, Mapping[str, Any]]:
    """Sections ``speed`` to try, by name: each flag alone, then all together."""
    found = dict(FLAGS)
    together: Dict[str, Any] = dict(ALL)
    if compiled:
        found["compile"] = COMPILE
        together.update(COMPILE)
        if device != "cpu":
            found["compile, cuda_graphs"] = {**COMPILE, "cuda_graphs": True}
    return {**found, "all together": together}


class TrainingStep:
    """Student, teacher, I2SRF-TFCKD and AdamW of a pair; copies, so that several can be trained side by side.

    Args:
        pair: networks and batch.
        section: the section ``speed``.
        dtype: of the distillation's parameters.
    """

    def __init__(self, pair: BenchPair, section: Mapping[str, Any], dtype: torch.dtype = torch.float32):
        self.pair, self.device = pair, pair.mixture.device.type
        self.options = parse_speed(section, self.device != "cpu")
        self.student, self.teacher = copy.deepcopy(pair.student), copy.deepcopy(pair.teacher)
        torch.manual_seed(1)
        self.method = pair.default_method().to(dtype)
        speed_up_network(self.student, self.options, "student")
        speed_up_network(self.teacher, self.options, "teacher")
        if "loss" in self.options.compile:
            compile_regions(self.method, self.options)
        self.losses = torch.nn.Module()
        self.losses.forward = self._losses  # type: ignore[method-assign]
        speed_up_model(self.losses, self.options, self.device)
        parameters = [*self.student.parameters(), *self.method.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=self.options.fused_optimizer or None)

    def _losses(self) -> torch.Tensor:
        student = self.student(self.pair.spectrum, return_features=True)
        with self.options.teacher_context(self.device):
            theirs = self.teacher(self.pair.spectrum, return_features=True).features
        theirs = {name: ordinary(layers) for name, layers in theirs.items()}
        terms = self.method(Side(student.features), Side(theirs))
        return self.pair.task_loss(student.spectrum) + 0.1 * torch.stack(list(terms.values())).sum()

    def __call__(self) -> float:
        """One step; the loss before the update."""
        loss = self.losses()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
