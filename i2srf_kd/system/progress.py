"""Progress of long work: a bar with rate and ETA on a terminal, plain lines in a log."""

import sys
import time
from typing import Iterable, Iterator, Optional, TypeVar

Item = TypeVar("Item")


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:d}:{minutes:02d}:{seconds:02d}"


def progress(
    iterable: Iterable[Item],
    total: Optional[int] = None,
    desc: str = "",
    unit: str = "utt",
    every: float = 15.0,
) -> Iterator[Item]:
    """Iterate and report progress on standard error.

    Args:
        iterable: what to iterate over.
        total: number of items; taken from ``len(iterable)`` where it has one.
        desc: what is being done.
        unit: name of one item in the rate.
        every: seconds between two plain lines when standard error is no terminal.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=desc, unit=unit, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every or done == total:
            last = now
            rate = done / max(now - start, 1e-9)
            left = f", {clock((total - done) / rate)} left" if total else ""
            print(f"{desc}: {done}/{total or '?'} {unit} ({rate:.1f} {unit}/s{left})", file=sys.stderr, flush=True)
