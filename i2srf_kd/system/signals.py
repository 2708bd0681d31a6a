"""Signals that ask a training to stop, and the exit code that asks for the same command again."""

import logging
import os
import signal
import threading
import time
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Type

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the state is saved, run the same command again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SLURM_SECONDS = 5.0


class StopSignals:
    """Remembers SIGTERM and SIGUSR1 inside of its context; a second one ends the process at once.

    Slurm signals all processes of a job while those that wait for this one pass the signal on as well: what comes there
    within a moment of the first is the same request.

    When the work in the context is done, or leaves with an exit code, there is nothing left to stop: until the process
    has ended, the signals change its exit code no more. After an error they do what they did before.
    """

    def __init__(self) -> None:
        self.received = False
        self._ignore_until = 0.0
        self._before: Dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python's handlers belong to it
            self._before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        done = kind is None or issubclass(kind, SystemExit)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if done else handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.received:
            if time.monotonic() < self._ignore_until:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = True
        if "SLURM_JOB_ID" in os.environ:
            self._ignore_until = time.monotonic() + SLURM_SECONDS
        logger.warning("%s: finishing the step, saving, and leaving", signal.Signals(number).name)


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, Optional[FrameType]], None]) -> Iterator[None]:
    """Let ``handler`` have these signals inside of the context."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def passed_on(children: Callable[[], List[Any]]) -> Iterator[None]:
    """Pass SIGTERM and SIGUSR1 on to the processes that ``children()`` lists."""

    def pass_on(number: int, frame: object) -> None:
        for child in children():
            os.kill(child.pid, number)

    with handled(STOP_SIGNALS, pass_on):
        yield
