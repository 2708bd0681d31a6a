"""Run the elements of a job array as processes of this machine.

Every element leads a process group of its own, with standard input closed and both outputs in its log. A signal to the
runner is passed on and waited for, a second one kills; whatever an element leaves behind in its group is ended with it.
Elements get SIGTERM when the runner itself is killed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Deque, List, Optional

from i2srf_kd.jobs.array import JobArray, JobResult, quote
from i2srf_kd.jobs.messages import Report, footer, header, last_lines, say
from i2srf_kd.jobs.ranks import step_command
from i2srf_kd.system.errors import FULL, UserError, disk_full
from i2srf_kd.system.processes import FORWARDED, end_with_parent
from i2srf_kd.system.signals import SLURM_SECONDS, handled

_POLL_SECONDS = 0.02
_LEFTOVER_SECONDS = 5.0  # between SIGTERM and SIGKILL for what an element left behind


def run(array: JobArray) -> List[JobResult]:
    """Run all elements, at most ``array.max_jobs`` at a time, and wait for them.

    Returns:
        One result per element, in the order in which they ended; elements that were never started come last.

    Raises:
        UserError: a log cannot be written, there are fewer GPUs than one element needs, or a queue is asked for.
    """
    if array.detach or array.after is not None:
        raise UserError("--detach and --after need a queue: use --backend slurm")
    return _LocalRun(array).run()


def visible_gpus() -> List[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(x for x in listing.stdout.splitlines() if x.startswith("GPU "))]


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Element:
    """One running element."""

    def __init__(self, array: JobArray, index: Optional[int], gpus: List[str]) -> None:
        self.index = index
        self.gpus = gpus
        self.log = array.log_of(index)
        self.start = time.monotonic()
        self.process: Optional[subprocess.Popen] = None
        self.code: Optional[int] = None
        command = step_command(array.command_of(index), array.resources)
        environment = dict(os.environ)
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[variable] = str(array.resources.num_threads)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._open_log(command)
        with self.log.open("ab") as stream:
            self.body_start = stream.tell()
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    close_fds=False,  # a lock that this process inherited lasts until the element has ended
                    preexec_fn=end_with_parent(),
                )
            except OSError as error:  # as a shell would say it
                stream.write(f"cannot run {command[0]}: {error.strerror}\n".encode())
                self._finish(127 if isinstance(error, FileNotFoundError) else 126)

    def _open_log(self, command: List[str]) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.log.exists():  # keep the run before this one: a resumed training continues its story
                os.replace(self.log, self.log.with_name(self.log.name + ".1"))
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            self.log.write_text(header(quote(command), socket.gethostname(), now), encoding="utf-8")
        except OSError as error:
            if error.errno in FULL:
                raise disk_full(self.log, error.strerror) from None
            raise UserError(f"cannot write the log {self.log}: {error.strerror}") from error

    def poll(self) -> bool:
        """Whether the element has ended."""
        if self.code is None and self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self._end_leftovers()
            self._finish(code if code >= 0 else 128 - code)
        return self.code is not None

    def signal(self, number: int) -> None:
        """Pass a signal on.

        SIGINT goes to the whole group, as from a terminal. The others go to the command alone: a training that saves
        its state on SIGTERM or SIGUSR1 must not lose its workers while it does.
        """
        if self.process is None or self.process.poll() is not None:
            return
        if number in (signal.SIGINT, signal.SIGKILL):
            self._signal_group(number)
        else:
            self.process.send_signal(number)

    def _finish(self, code: int) -> None:
        self.code = code
        self.seconds = time.monotonic() - self.start
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(footer(now, code, self.seconds))
        except OSError as error:
            if error.errno not in FULL:
                raise
            say(f"warning: {disk_full(self.log, error.strerror)}")

    def _signal_group(self, number: int) -> bool:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _end_leftovers(self) -> None:
        if not self._signal_group(signal.SIGTERM):
            return
        end = time.monotonic() + _LEFTOVER_SECONDS
        while time.monotonic() < end:
            if not self._signal_group(0):
                return
            time.sleep(_POLL_SECONDS)
        self._signal_group(signal.SIGKILL)


class _LocalRun:
    """The scheduling of one array."""

    def __init__(self, array: JobArray) -> None:
        self.array = array
        self.waiting: Deque[Optional[int]] = deque(array.elements())
        self.running: List[_Element] = []
        self.report = Report(array)
        self.received = 0
        self.ignore_until = 0.0
        self.forwarded = 0
        self.last_signal = 0
        self.shown = 0
        need = array.resources.gpu
        self.gpus = visible_gpus() if need else []
        if len(self.gpus) < need:
            raise UserError(f"--gpu {need}: only {len(self.gpus)} GPU(s) visible on {socket.gethostname()}")
        self.slots = array.max_jobs or max(1, _available_cpus() // array.resources.num_threads)
        if need:
            self.slots = min(self.slots, len(self.gpus) // need)

    def run(self) -> List[JobResult]:
        with handled(FORWARDED, self._receive):
            try:
                while self.running or self.waiting:
                    self._forward_signals()
                    self._start_waiting()
                    self._follow()
                    ended = [element for element in self.running if element.poll()]
                    for element in ended:
                        self._ended(element)
                    if not ended:
                        self.report.heartbeat()
                        time.sleep(_POLL_SECONDS)
            except BaseException:  # nothing may outlive the runner, whatever went wrong in it
                for element in self.running:
                    element.signal(signal.SIGKILL)
                raise
        return self.report.results

    def _receive(self, number: int, frame: Optional[FrameType]) -> None:
        if self.received and time.monotonic() < self.ignore_until:
            return
        if "SLURM_JOB_ID" in os.environ:
            # Slurm signals all processes of a job, and those above this one pass the signal on: it is one request.
            self.ignore_until = time.monotonic() + SLURM_SECONDS
        self.received += 1
        self.last_signal = number

    def _forward_signals(self) -> None:
        if self.received == self.forwarded:
            return
        self.forwarded = self.received
        number = self.last_signal if self.received == 1 else signal.SIGKILL
        what = "again; killing" if self.received > 1 else "passing it on and waiting for"
        name = signal.Signals(self.last_signal).name
        say(f"{self.array.name}: received {name}; {what} {len(self.running)} running job(s)")
        self._drop_waiting(128 + self.last_signal)
        for element in self.running:
            element.signal(number)

    def _drop_waiting(self, code: Optional[int]) -> None:
        # Not started counts as ended by what stopped it, so that the array cannot look complete.
        while self.waiting:
            self.report.not_started(self.waiting.popleft(), code)

    def _start_waiting(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            need = self.array.resources.gpu
            taken, self.gpus = self.gpus[:need], self.gpus[need:]
            self.running.append(_Element(self.array, self.waiting.popleft(), taken))

    def _ended(self, element: _Element) -> None:
        self._follow()
        self.running.remove(element)
        self.gpus.extend(element.gpus)
        result = JobResult(element.index, element.code, element.seconds, element.log)
        self.report.ended(result, last_lines(element.log))

    def _follow(self) -> None:
        if not self.array.follow or not self.running:
            return
        element = self.running[0]
        with Path(element.log).open("rb") as stream:
            stream.seek(max(self.shown, element.body_start))
            new = stream.read()
            self.shown = stream.tell()
        if new:
            sys.stdout.buffer.write(new)
            sys.stdout.buffer.flush()
