"""The ``speed`` section: every flag trains near the plain run, keeps the names of weights, and is checked."""

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import speech_task
import torch
import toy

from bench.command import get_parser
from bench.flags import TrainingStep
from bench.pair import BenchPair
from i2srf_kd.nets import DPDCRN
from i2srf_kd.nets.blocks import DilatedDenseBlock
from i2srf_kd.system.errors import UserError
from i2srf_kd.training.speed import SpeedOptions, compile_regions, parse_speed, speed_up_network

SMALL = "--student_preset dpdcrn_tiny --teacher_preset dpdcrn_small"
DISTILL = {"method": "i2srf_tfckd", "method_conf": {"middle_channels": 6}, "weight": 0.1}
# How far the losses of two epochs may be from the plain run: rounding, which grows tenfold with every step or two
# (measured up to 0.024; in float64, below, nothing is left of it), or that of bfloat16 (0.065). Twice that and more is
# left for other processors; a flag that broke something would be off by far more.
FLAGS: Dict[str, Any] = {
    "teacher_inference_mode=true": 1e-6,
    "channels_last=true": 0.15,
    "dense_buffer=true": 0.15,
    "fused_optimizer=true": 0.15,
    "teacher_dtype=bfloat16": 0.2,
    "amp_dtype=bfloat16": 0.2,
}


def run(speech: Path, teacher: Path, folder: Path, *speed: str) -> List[Dict[str, Any]]:
    more = [word for option in speed for word in ("--speed", option)]
    steps = ("--max_epoch", "2", "--num_iters_per_epoch", "5", "--kd_diagnostics", "false")
    command = speech_task.arguments(speech, folder, *steps, *more, distill=DISTILL, teacher=teacher)
    assert speech_task.train(command) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(speech: Path, speech_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("plain") / "exp"
    return folder, run(speech, speech_teacher, folder)


def check_near(plain: Any, folder: Path, lines: List[Dict[str, Any]], tolerance: float) -> None:
    for ours, theirs in zip(lines, plain[1], strict=True):
        for name in ("loss", "kd"):
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), (ours["epoch"], ours["phase"], name)
    weights, reference = toy.weights(folder), toy.weights(plain[0])
    assert list(weights) == list(reference)
    assert all(weights[name].dtype == reference[name].dtype for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_alone(flag: str, plain: Any, speech: Path, speech_teacher: Path, tmp_path: Path) -> None:
    check_near(plain, tmp_path / "exp", run(speech, speech_teacher, tmp_path / "exp", flag), FLAGS[flag])


@pytest.mark.slow
def test_all_flags_with_compiled_parts(plain: Any, speech: Path, speech_teacher: Path, tmp_path: Path) -> None:
    compiled = ("compile=[student,teacher,loss]", "compile_backend=aot_eager")
    check_near(plain, tmp_path / "exp", run(speech, speech_teacher, tmp_path / "exp", *FLAGS, *compiled), 0.15)


@pytest.mark.slow
def test_compiled_regions_give_the_same_numbers_and_names() -> None:
    torch.manual_seed(0)
    network, spectrum = DPDCRN(8, 1, heads=2, n_fft=64).train(), torch.randn(2, 2, 12, 33)
    names = list(network.state_dict())
    loss = [network(spectrum).spectrum.square().mean()]
    loss[0].backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    compile_regions(network, SpeedOptions(compile=("student",), compile_backend="aot_eager"))
    loss.append(network(spectrum).spectrum.square().mean())
    loss[1].backward()
    torch.testing.assert_close(loss[1], loss[0])
    for ours, plain in zip((p.grad for p in network.parameters() if p.grad is not None), gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
    assert list(network.state_dict()) == names


def test_in_double_precision_flags_change_nothing() -> None:
    pair = BenchPair(get_parser().parse_args(f"curve {SMALL} --batch 2 --seconds 0.1".split()))
    for network in (pair.student, pair.teacher):
        network.double()
    pair.spectrum, pair.target, pair.mixture = pair.spectrum.double(), pair.target.double(), pair.mixture.double()

    def losses(**section: bool) -> List[float]:
        step = TrainingStep(pair, section, torch.float64)
        return [step() for _ in range(4)]

    plain = losses()
    assert plain[3] < plain[0]
    for flag in ("channels_last", "dense_buffer", "fused_optimizer", "teacher_inference_mode"):
        assert losses(**{flag: True}) == pytest.approx(plain, rel=1e-10), flag


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_buffered_dense_block_is_the_plain_one(channels_last: bool) -> None:
    torch.manual_seed(0)
    block, x = DilatedDenseBlock(4), torch.randn(2, 4, 11, 9)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    with torch.no_grad():
        plain = block(x)
        block.buffered = True
        torch.testing.assert_close(block(x), plain)
    assert block(x).requires_grad  # with a gradient, the plain form


def test_dense_buffer_is_the_teachers_alone() -> None:
    networks = [DPDCRN(8, 1, heads=2, n_fft=64) for _ in range(2)]
    for network, role in zip(networks, ("student", "teacher"), strict=True):
        speed_up_network(network, SpeedOptions(dense_buffer=True), role)
    assert [network.encoder.dense.buffered for network in networks] == [False, True]
    with pytest.raises(UserError, match="dense_buffer knows the blocks of a dpdcrn"):
        speed_up_network(torch.nn.Linear(2, 2), SpeedOptions(dense_buffer=True), "teacher")


@pytest.mark.parametrize(
    "section, word",
    [
        ({"cuda_graph": True}, "no option cuda_graph: it has amp_dtype"),
        ({"cuda_graphs": True, "compile": ["loss"]}, "cuda_graphs needs a GPU"),
        ({"channels_last": "yes"}, "channels_last must be true or false"),
        ({"amp_dtype": "float16"}, "amp_dtype must be one of float32, bfloat16"),
        ({"compile": ["optimizer"]}, "compile must be a list of student, teacher, loss"),
        ({"compile": ["loss"], "compile_backend": "tensorrt9"}, "compile_backend must be one of"),
    ],
)
def test_wrong_options_are_named(section: Dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        parse_speed(section, on_gpu=False)


def test_on_a_gpu_graphs_need_something_compiled() -> None:
    assert parse_speed({"cuda_graphs": True, "compile": ["loss"]}, on_gpu=True).cuda_graphs
    with pytest.raises(UserError, match="name the parts"):
        parse_speed({"cuda_graphs": True}, on_gpu=True)


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no no-such-compiler"):
        parse_speed({"compile": "loss"}, on_gpu=False)


@pytest.mark.parametrize(
    "more, word",
    [
        (("--speed", "fused_optimizer=true", "--optim", "adadelta"), "fused_optimizer is not for --optim adadelta"),
        (("--speed", "cuda_graphs=true"), "cuda_graphs needs a GPU"),
    ],
)
def test_the_task_refuses(more: Any, word: str, speech: Path, tmp_path: Path, capfd: Any) -> None:
    assert speech_task.train(speech_task.arguments(speech, tmp_path / "exp", *more)) == 2
    assert word in capfd.readouterr().err
