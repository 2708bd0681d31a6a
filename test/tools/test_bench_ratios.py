"""Losses stay faster than their plain references, and inference does not fall behind its own.

Ratios of CPU time of the best of several interleaved turns, with margins that a busy machine does not use up: a change
that undoes an optimisation fails, a slow machine does not.
"""

import pytest

from bench import infer, loss
from bench.command import get_parser
from bench.measure import Clock, in_turns
from i2srf_kd.export.onnx import missing_packages


def share_of_reference(work, ours, reference, turns):
    """CPU time of ours over that of the reference."""
    seconds = in_turns({name: work[name] for name in (ours, reference)}, Clock("cpu", 1), turns)
    return min(seconds[ours]) / min(seconds[reference])


@pytest.fixture(scope="module")
def losses():
    sizes = "--student_preset dpdcrn_small --teacher_preset dpdcrn_student --batch 4 --seconds 1".split()
    return loss.candidates(get_parser().parse_args(["loss", *sizes]))


@pytest.mark.slow
def test_calibration(losses):
    assert share_of_reference(losses, loss.OUR_CALIBRATION, loss.NAIVE_CALIBRATION, turns=7) < 0.4


@pytest.mark.slow
def test_whole_loss(losses):
    assert share_of_reference(losses, loss.OUR_LOSS, loss.NAIVE_LOSS, turns=5) < 0.7


@pytest.fixture(scope="module")
def inference():
    return infer.candidates(get_parser().parse_args(["infer", "--preset", "dpdcrn_student", "--seconds", "4"]))


@pytest.mark.slow
def test_inference(inference):
    assert share_of_reference(inference, infer.OURS, infer.NAIVE, turns=7) < 1.0


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages()), reason="onnx and onnxruntime are not installed")
def test_inference_with_onnxruntime(inference):
    assert share_of_reference(inference, infer.ONNX, infer.NAIVE, turns=7) < 0.65
