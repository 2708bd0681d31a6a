"""What there is to choose from: every registered method, and what it costs for a student and a teacher at hand."""

import inspect
import statistics
import time
from dataclasses import replace
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from i2srf_kd.distill.gradients import gradients, norm
from i2srf_kd.distill.method import DistillMethod, LayerShape, Side, build_method, layout_of, method_class
from i2srf_kd.losses.compressed_spectrum import compressed_spectrum_loss
from i2srf_kd.metrics.complexity import count_parameters
from i2srf_kd.nets import DPDCRN, STFT


class Entry(NamedTuple):
    """What the catalogue says of a method."""

    summary: str
    source: str
    parameters: int
    """Of the method itself; they are no part of the student."""


def network_layout(network: DPDCRN) -> Dict[str, List[LayerShape]]:
    """Layout of a network's feature sets, without a forward pass."""
    return {name: [LayerShape(*shape) for shape in shapes] for name, shapes in network.feature_shapes().items()}


def describe(name: str, student: DPDCRN, teacher: DPDCRN) -> Entry:
    """The entry of a method with its default options, for a pair of networks; nothing is computed."""
    cls, method = method_class(name), build_method(name, network_layout(student), network_layout(teacher))
    return Entry((inspect.getdoc(cls) or "").split("\n")[0], cls.source, count_parameters(method))


class StudentAndTeacher:
    """Two networks and what they make of one batch, to measure a training step and its parts.

    Args:
        student, teacher: on one device; the teacher is put into evaluation mode.
        mixture, reference: waveforms ``(B, samples)``.
    """

    def __init__(self, student: DPDCRN, teacher: DPDCRN, mixture: Tensor, reference: Tensor):
        self.student, self.teacher = student, teacher.eval()
        self.mixture, self.reference = mixture, reference
        self.stft = STFT().to(mixture.device)
        self.spectrum, self.target = self.stft(mixture), self.stft(reference)
        with torch.no_grad():
            self.teacher_side, self._student_side = self._run(self.teacher), self._run(self.student)

    def _run(self, network: DPDCRN) -> Side:
        """One forward pass over the batch, with everything that a method may read."""
        output = network(self.stft(self.mixture), return_features=True)
        waveform = self.stft.inverse(output.spectrum, self.mixture.shape[1])
        return Side(output.features or {}, output.spectrum, waveform)

    def student_leaves(self) -> Side:
        """The student's side, cut from the graph, each feature and output collecting a gradient of its own."""

        def leaf(x: Optional[Tensor]) -> Optional[Tensor]:
            return None if x is None else x.detach().requires_grad_()

        side = self._student_side
        features = {name: [f.detach().requires_grad_() for f in layers] for name, layers in side.features.items()}
        return replace(side, features=features, spectrum=leaf(side.spectrum), waveform=leaf(side.waveform))

    def build(self, name: str, **options: Any) -> DistillMethod:
        """A method for these networks."""
        layouts = (layout_of(side.features) for side in (self._student_side, self.teacher_side))
        return build_method(name, *layouts, **options).to(self.mixture.device)

    def task_loss(self, spectrum: Tensor) -> Tensor:
        """Spectral loss of the student's planes ``(B, 2, T, F)``."""
        estimate, target = (torch.complex(x[:, 0], x[:, 1]) for x in (spectrum, self.target))
        return compressed_spectrum_loss(estimate, target).mean()

    def student_step(self) -> None:
        """Forward and backward of the student alone."""
        loss = self.task_loss(self.student(self.stft(self.mixture)).spectrum)
        self.student.zero_grad()
        loss.backward()

    def teacher_pass(self) -> None:
        """Forward of the teacher."""
        with torch.no_grad():
            self._run(self.teacher)

    def method_step(self, method: DistillMethod) -> None:
        """Forward and backward of a method, down to the student's outputs."""
        method.zero_grad()
        terms = method(self.student_leaves(), self.teacher_side, self.reference)
        torch.stack(list(terms.values())).sum().backward()

    def gradient_ratio(self, method: DistillMethod) -> float:
        """Norm of the method's gradient in the student's parameters, relative to the task's."""
        side = self._run(self.student)
        assert side.spectrum is not None
        losses = [torch.stack(list(method(side, self.teacher_side, self.reference).values())).sum()]
        losses.append(self.task_loss(side.spectrum))
        weights = list(self.student.parameters())
        distillation, task = (float(norm(gradients(loss, weights))) for loss in losses)
        return distillation / task

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Median duration of ``work`` after one run that does not count."""
        durations: List[float] = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            if self.mixture.is_cuda:
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
        return statistics.median(durations[1:])
