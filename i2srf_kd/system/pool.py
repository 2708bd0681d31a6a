"""Pools of worker processes that leave nothing behind, whatever ends them.

A worker ends with the process that started it, also when that is killed; left alone, it would wait for work for ever.
Ctrl-C reaches all processes of a terminal, and only the first is to speak of it.
"""

import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence, Tuple, TypeVar

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.processes import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def process_map(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    nj: int,
    chunksize: Optional[int] = None,
    initializer: Optional[Callable[..., None]] = None,
    initargs: Tuple[Any, ...] = (),
) -> Iterator[Iterable[Result]]:
    """Results of ``work`` for all items, in order, from ``nj`` processes (this one when ``nj`` is 1).

    Args:
        work: can be pickled, as can items and results.
        items: what to work on.
        nj: processes; never more than items.
        chunksize: items that a process gets at a time; by default few enough to keep all of them busy.
        initializer: called with ``initargs`` once in each process before any work.

    Raises:
        UserError: ``nj`` is below 1, or a process died.
    """
    if nj < 1:
        raise UserError(f"--nj {nj}: must be 1 or more")
    nj = min(nj, len(items) or 1)
    if nj == 1:
        if initializer is not None and items:
            initializer(*initargs)
        yield map(work, items)
        return
    # Workers are started afresh, not forked: the numerical libraries' threads do not survive a fork.
    pool = ProcessPoolExecutor(nj, get_context("spawn"), _start_worker, (initializer, initargs))
    try:
        yield pool.map(work, items, chunksize=chunksize or max(1, min(16, len(items) // (4 * nj))))
    except BrokenProcessPool as error:
        raise UserError(f"--nj {nj}: a process died, perhaps for lack of memory; use fewer") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(initializer: Optional[Callable[..., None]], initargs: Tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    ask_kernel = end_with_parent(signal.SIGKILL, parent.pid if parent else None)
    if ask_kernel is not None:
        ask_kernel()
    if initializer is not None:
        initializer(*initargs)
