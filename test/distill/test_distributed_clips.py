"""The frequency stream over the clips of two processes, against one process with the whole batch."""

import multiprocessing
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import nn

from i2srf_kd.distill.calibration import CalibratedSetLoss, CalibrationOptions
from i2srf_kd.distill.similarity import batch_similarity

SHAPE = (4, 3, 5, 6)  # B, C, T, F


class Network(nn.Module):
    """A layer to be trained on either side, and their calibrated comparison."""

    def __init__(self, options: Dict[str, Any]) -> None:
        super().__init__()
        self.student = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(2))
        self.teacher = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(2))
        self.loss = CalibratedSetLoss(2, 2, CalibrationOptions(**options), attach_keys=True)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.loss([layer(clips) for layer in self.student], [layer(clips) for layer in self.teacher]).loss


def loss_and_gradients(options: Dict[str, Any], rank: int = 0, world_size: int = 1) -> Tuple[float, List[torch.Tensor]]:
    """Of one process, for its part of the batch."""
    torch.manual_seed(0)
    network = Network(options).double()
    clips = torch.randn(SHAPE, dtype=torch.float64)
    size = SHAPE[0] // world_size
    loss = network(clips[rank * size : (rank + 1) * size])
    loss.backward()
    return float(loss.detach()), [p.grad if p.grad is not None else torch.zeros_like(p) for p in network.parameters()]


CASES: List[Dict[str, Any]] = [
    {"batch_reduction": reduction, "weighting": weighting, "normalize_over": "embedding", "gather": True}
    for reduction in ("clips", "frames")
    for weighting in ("own", "product")
]
CASES.append({"streams": ("clips",), "normalize_over": "embedding"})


def run_rank(rank: int, folder: Path) -> None:
    """All cases as one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for options in CASES:
        loss, gradients = loss_and_gradients(options, rank, 2)
        values = [torch.tensor(loss, dtype=torch.float64), *gradients]
        for value in values:  # as DistributedDataParallel does
            torch.distributed.all_reduce(value)
            value /= 2
        results.append((float(values[0]), values[1:]))
    torch.save(results, folder / f"rank{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> List[Tuple[float, List[torch.Tensor]]]:
    """For each case the mean loss and the mean gradients of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_rank, args=(rank, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return torch.load(folder / "rank0.pth")


@pytest.mark.parametrize("case", range(4))
def test_two_processes_equal_one(case: int, two_ranks: List[Tuple[float, List[torch.Tensor]]]) -> None:
    expected_loss, expected = loss_and_gradients(CASES[case])
    loss, gradients = two_ranks[case]
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for actual, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


def test_without_gathering_each_process_has_its_own_loss(two_ranks: List[Tuple[float, List[torch.Tensor]]]) -> None:
    assert two_ranks[4][0] != pytest.approx(loss_and_gradients(CASES[4])[0], rel=1e-3)


def test_without_processes_gathering_changes_nothing() -> None:
    vectors = torch.randn(3, 4, 5)
    for plain, gathered in zip(batch_similarity(vectors), batch_similarity(vectors, gather=True), strict=True):
        assert torch.equal(plain, gathered)
