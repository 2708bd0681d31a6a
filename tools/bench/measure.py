"""Time, memory and physical limits, measured so that ratios hold on a machine that others use too.

- Candidates run in turns (A B A B ...), so that all of them meet the same disturbances; ratios are medians over turns.
- One CPU thread is timed in CPU time of the process, anything else in elapsed time.
- Peak memory is that of a process of its own for each candidate, above what it held before, with an allocator that
  gives freed memory back.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.memory import peak_resident_bytes, resident_bytes

Work = Callable[[], Any]
# As egs/TEMPLATE/enh_kd.sh sets them: freed memory is kept, instead of being given back and faulted in again.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "536870912",
    "GOMP_SPINCOUNT": "10000",
}
# For peak memory: what is freed goes back at once; nothing of the preparations is left to be used again, uncounted.
RETURNING_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
COMMAND = (sys.executable, str(Path(__file__).parent))
MEMORY_OPTION = "--memory_of"
ALLOCATOR_OPTION, ALLOCATORS = "--allocator", ("recipes", "system")
_CLEAR = Path("/proc/self/clear_refs")


def restart_with_allocator_settings(arguments: Sequence[str]) -> None:
    """Replace this process by the same command under the allocator settings that ``--allocator`` asks for.

    Not in a process whose parent has chosen.
    """
    words = [word for argument in arguments for word in argument.split("=", 1)]
    wants_system = (ALLOCATOR_OPTION, ALLOCATORS[1]) in zip(words, words[1:], strict=False)
    wanted = {**_plain_environment(), **({} if wants_system else ALLOCATOR)}
    if wanted != dict(os.environ) and MEMORY_OPTION not in arguments:
        os.execve(COMMAND[0], [*COMMAND, *arguments], wanted)


def _plain_environment() -> Dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ALLOCATOR}


def has_allocator_settings() -> bool:
    """Whether this process was started with the recipes' allocator settings."""
    return all(os.environ.get(name) == value for name, value in ALLOCATOR.items())


class Clock:
    """What durations are measured in.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: CPU threads in use.

    Attributes:
        name: ``CPU time`` or ``elapsed time``.
    """

    def __init__(self, device: str, threads: int):
        self.device = device
        self._read = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
        self.name = "CPU time" if self._read is time.process_time else "elapsed time"

    def seconds(self, work: Work) -> float:
        """How long ``work`` takes."""
        self._finish()
        begin = self._read()
        work()
        self._finish()
        return self._read() - begin

    def _finish(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


Turns = Dict[str, List[float]]


def in_turns(candidates: Mapping[str, Work], clock: Clock, repeats: int) -> Turns:
    """Seconds of each candidate in each turn, after one turn that does not count."""
    turns: Turns = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, work in candidates.items():
            seconds = clock.seconds(work)
            if turn:
                turns[name].append(seconds)
    return turns


def median_seconds(turns: Turns) -> Dict[str, float]:
    """Median duration of each candidate."""
    return {name: statistics.median(seconds) for name, seconds in turns.items()}


def ratio(turns: Turns, name: str, reference: str) -> Optional[float]:
    """How many times faster a candidate is than another: the median over the turns; None where one was not run."""
    if name not in turns or reference not in turns:
        return None
    return statistics.median(slow / fast for slow, fast in zip(turns[reference], turns[name], strict=True))


class Rates(NamedTuple):
    """What the machine can do at best."""

    flops_per_second: float
    bytes_per_second: float


def measure_rates(clock: Clock, repeats: int = 5) -> Rates:
    """Best rates of float32 matrix products and of copies, with the threads in use now.

    A product is tried as such and as a 3x3 convolution, because the libraries behind the two differ in speed.
    """
    size, device = 1024 if clock.device == "cpu" else 8192, clock.device
    channels, side = size // 8, 64
    a, b = torch.randn(2, size, size, device=device)
    image = torch.randn(2, channels, side, side, device=device)
    kernel = torch.randn(channels, channels, 3, 3, device=device)
    source = torch.empty(2**24 if device == "cpu" else 2**28, device=device).fill_(1.0)  # beyond the caches
    target = torch.empty_like(source)

    def best(work: Work) -> float:
        work()
        return min(clock.seconds(work) for _ in range(repeats))

    with torch.inference_mode():
        product = 2 * size**3 / best(lambda: a @ b)
        outputs = F.conv2d(image, kernel, padding=1).numel()
        convolution = 2 * 9 * channels * outputs / best(lambda: F.conv2d(image, kernel, padding=1))
        copy = 2 * source.nbytes / best(lambda: target.copy_(source))
    return Rates(max(product, convolution), copy)


class Floor(NamedTuple):
    """Arithmetic and traffic that a task cannot do without."""

    flops: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        """Shortest time at these rates, arithmetic and traffic at the same time."""
        return max(self.flops / rates.flops_per_second, self.bytes / rates.bytes_per_second)


def count_flops(work: Work) -> int:
    """Floating-point operations of the products and convolutions in ``work``, backward pass included."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return int(counter.get_total_flops())


def total_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of all tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


class Usage(NamedTuple):
    """One run of a candidate in a process of its own: bytes above what was held before, and seconds."""

    peak_bytes: int
    seconds: float


def usage_here(work: Work, clock: Clock) -> Usage:
    """Run ``work`` once and measure it; on a CPU the process must not have run anything larger before."""
    gc.collect()
    if clock.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = clock.seconds(work)
        return Usage(torch.cuda.max_memory_allocated() - before, seconds)
    if not _CLEAR.exists():
        raise UserError("peak memory is read from /proc, which this system lacks: add --no_memory")
    _CLEAR.write_text("5")  # the peak starts anew at what is held now
    before = resident_bytes()
    seconds = clock.seconds(work)
    return Usage(peak_resident_bytes() - before, seconds)


def usage_of(arguments: Sequence[str], name: str, allocator: Mapping[str, str] = RETURNING_ALLOCATOR) -> Usage:
    """Usage of one candidate of the command line ``arguments``, in a new process.

    Args:
        allocator: settings of the allocator. With those of the recipes, memory that the preparations have freed is used
            again and not counted.

    Raises:
        UserError: the process failed, for instance for want of memory.
    """
    command = [*COMMAND, *arguments, MEMORY_OPTION, name]
    done = subprocess.run(command, env={**_plain_environment(), **allocator}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"measuring the memory of {name!r} ended with code {done.returncode}: {last}")
    return Usage(**json.loads(done.stdout.splitlines()[-1]))
