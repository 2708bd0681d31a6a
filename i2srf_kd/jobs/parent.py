"""Programs that end with the one that started them, even when that is killed: nothing goes on training unseen."""

import ctypes
import os
import signal
import sys
from typing import Callable, Optional

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(number: int = signal.SIGTERM, parent: Optional[int] = None) -> Optional[Callable[[], None]]:
    """A function for a child to call, which then gets a signal when its parent is gone.

    It may be the ``preexec_fn`` of :class:`subprocess.Popen`. Linux only; None elsewhere.

    Args:
        number: the signal; SIGTERM lets a training save its state.
        parent: id of the parent; by default the process that calls this function.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    parent = os.getpid() if parent is None else parent

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it was gone before the kernel knew
            os._exit(128 + number)

    return ask_kernel
