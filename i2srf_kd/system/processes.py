"""Programs that this one starts: they get its signals, and end with it even when it is killed."""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import IO, Any, Callable, List, Mapping, Optional, Sequence

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.signals import handled

#: Signals that are passed on to programs.
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
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


def call(
    command: Sequence[str],
    output: Optional[IO[Any]] = None,
    environment: Optional[Mapping[str, str]] = None,
    pass_fds: Sequence[int] = (),
    received: Sequence[int] = (),
) -> int:
    """Run a program, pass signals on to it and wait for it, whatever happens.

    Args:
        command: program and arguments. It gets SIGTERM when this process is killed.
        output: file for both of its outputs; by default those of this process.
        environment: added to that of this process.
        pass_fds: files that stay open in it.
        received: signals that came before, for it as well.

    Returns:
        Its exit code, 128 + signal number when a signal ended it.
    """
    early: List[int] = []
    child: Optional[subprocess.Popen] = None

    def pass_on(number: int, frame: Optional[FrameType]) -> None:
        early.append(number)
        if child is not None and child.returncode is None:
            child.send_signal(number)

    with handled(FORWARDED, pass_on):
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                pass_fds=tuple(pass_fds),
                start_new_session=True,  # or Ctrl-C would reach it twice
                preexec_fn=end_with_parent(),
            )
            for number in [*received, *early]:  # before and while it was being started
                child.send_signal(number)
            code = child.wait()
        except OSError as error:
            raise UserError(f"cannot run {command[0]}: {error.strerror}") from None
    return code if code >= 0 else 128 - code
