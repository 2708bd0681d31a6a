"""Signals that reach the processes of a training."""

import multiprocessing
import os
import signal
import sys
from typing import Any

from i2srf_kd.system.signals import passed_on


def test_signals_are_passed_on_to_the_process_of_each_gpu() -> None:
    def wait_for_signal(ready: Any) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
        ready.set()
        while True:
            signal.pause()

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=wait_for_signal, args=(ready,))
    child.start()
    assert ready.wait(30)
    with passed_on(lambda: [child]):
        os.kill(os.getpid(), signal.SIGUSR1)
        child.join(30)
    assert child.exitcode == 75
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
