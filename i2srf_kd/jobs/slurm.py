"""Run a job array under Slurm: submit it, watch it, tell how it ended.

The jobs run :mod:`i2srf_kd.jobs.slurm_job`, which writes logs and exit codes as the local backend does. What belongs
to a submission (batch script, exit codes, Slurm's own messages) stays in a folder beside the logs, ``<log>.slurm``.
No accounting database is needed. A controller that does not answer for a while is waited for.
"""

import getpass
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Dict, List, Optional, Sequence, Tuple

from i2srf_kd.jobs.array import JobArray, JobResult, job_name, without_job
from i2srf_kd.jobs.messages import HEADER_LINES, Report, last_lines, say
from i2srf_kd.jobs.slurm_config import SlurmOptions, slurm_options
from i2srf_kd.jobs.slurm_job import STOP, code_file, write_job
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text
from i2srf_kd.system.processes import FORWARDED
from i2srf_kd.system.signals import EXIT_INTERRUPTED, handled

_TICK_SECONDS = 0.1
_FIRST_POLL_SECONDS = 0.5
_SUBMIT_SECONDS = 600.0  # how long a controller that does not answer is asked again
_CODE_FILE_SECONDS = 30.0  # shared file systems show new files late
_AWAY = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "Zero Bytes were transmitted")
JOB_ID = "job.id"  # in the control folder
#: States after which a job does not come back: what they say, and the exit code where the job left none.
_ENDED: Dict[str, Tuple[str, int]] = {
    "BOOT_FAIL": ("its machine did not start", 1),
    "CANCELLED": ("cancelled", 128 + signal.SIGTERM),
    "COMPLETED": ("", 0),
    "DEADLINE": ("its deadline passed", 124),
    "FAILED": ("", 1),
    "NODE_FAIL": ("its machine failed", 1),
    "OUT_OF_MEMORY": ("ran out of memory: raise mem in conf/slurm.yaml or --mem in cmd.sh", 128 + signal.SIGKILL),
    "PREEMPTED": ("pre-empted", 128 + signal.SIGTERM),
    "REVOKED": ("revoked", 1),
    "TIMEOUT": ("reached its time limit: raise time in conf/slurm.yaml or --time in cmd.sh", 124),
}


def run(array: JobArray) -> List[JobResult]:
    """Submit all elements as one Slurm array (or job) and wait for them.

    SIGINT, SIGTERM and SIGHUP cancel what was submitted; SIGUSR1 asks the jobs to save their state and leave.

    Returns:
        One result per element, in the order in which their end was seen; none for a detached array, whose id goes to
        standard output.

    Raises:
        UserError: Slurm is not installed or refuses the job.
    """
    if array.detach:
        print(_SlurmRun(array).submit(), flush=True)
        return []
    return _SlurmRun(array).run()


@dataclass(frozen=True)
class _Entry:
    """A line of the queue."""

    state: str
    reason: str
    nodes: str


class ControllerAway(Exception):
    """Slurm's controller does not answer."""


def call(command: Sequence[str]) -> str:
    """Output of one of Slurm's commands.

    Raises:
        ControllerAway: the controller did not answer; the same call may succeed later.
        UserError: the command is missing, or refuses.
    """
    try:
        # Ctrl-C is ours to handle, and must not end a submission half-way.
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: no such program: is Slurm installed here (see docs/cluster.md)?") from None
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip()
    if any(text in message for text in _AWAY):
        raise ControllerAway(message)
    raise UserError(f"{command[0]} refuses: {message or f'exit code {done.returncode}'}")


def ranges(indices: Sequence[int]) -> str:
    """``1-3,7`` for 1, 2, 3, 7."""
    parts: List[List[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def control_folder(array: JobArray) -> Path:
    """Where batch script and exit codes of an array are kept: the log's path without ``JOB``, ending in ``.slurm``."""
    log = without_job(array)
    return log.with_name((log.stem or "job") + ".slurm").absolute()


def batch_script(array: JobArray, options: SlurmOptions, folder: Path, comment: str) -> str:
    """The script that is submitted."""
    needs = array.resources
    lines = [
        f"--job-name={job_name(array.name)}",
        f"--comment={comment}",
        f"--chdir={Path.cwd()}",
        f"--output={str(folder).replace('%', '%%')}/{'job' if array.indices is None else '%a'}.out",
        "--open-mode=append",
        "--requeue" if options.requeue else "--no-requeue",
        f"--nodes={needs.nodes}",
        f"--ntasks-per-node={needs.tasks}",
        f"--cpus-per-task={needs.num_threads}",
    ]
    if needs.gpu:
        kind = f"{options.gpu_type}:" if options.gpu_type else ""
        lines.append(f"--gpus-per-node={kind}{needs.gpu}")
    if array.indices is not None:
        cap = min((most for most in (array.max_jobs, options.max_jobs) if most), default=None)
        lines.append(f"--array={ranges(array.indices)}" + (f"%{cap}" if cap else ""))
    if array.after is not None:
        lines += [f"--dependency=afterok:{array.after}", "--kill-on-invalid-dep=yes"]
    lines += options.limits(array.kind)
    package = Path(__file__).resolve().parents[2]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {_quoted(line)}" for line in lines),
            *(options.setup or []),
            f"export PYTHONPATH={shlex.quote(str(package))}${{PYTHONPATH:+:${{PYTHONPATH}}}}",
            f"exec {shlex.quote(sys.executable)} -m i2srf_kd.jobs.slurm_job {shlex.quote(str(folder))}",
            "",
        ]
    )


def _quoted(option: str) -> str:
    """An option for a ``#SBATCH`` line, where double quotes are understood."""
    name, equals, value = option.partition("=")
    return f"{name}={chr(34)}{value}{chr(34)}" if equals and re.search(r"[^\w.,:/%@+\-=]", value) else option


class _Patience:
    """Waits between two questions to a controller that does not answer, ever longer and not for ever."""

    def __init__(self) -> None:
        self.end = time.monotonic() + _SUBMIT_SECONDS
        self.seconds = _FIRST_POLL_SECONDS

    def wait(self, error: ControllerAway) -> None:
        """Wait for a while.

        Raises:
            UserError: it has been away for too long.
        """
        if self.seconds == _FIRST_POLL_SECONDS:
            say(f"warning: Slurm's controller does not answer ({error}); asking again")
        if time.monotonic() > self.end:
            raise UserError(f"Slurm's controller does not answer: {error}") from None
        time.sleep(self.seconds)
        self.seconds = min(2 * self.seconds, 30.0)


def submit(script: Path, comment: str) -> str:
    """Submit a script and return the id of the job.

    A controller that does not answer is asked again, but never given the same job twice: it may have taken the job
    although its answer was lost.

    Raises:
        UserError: the job is refused, or the controller stays away.
    """
    patience = _Patience()
    while True:
        try:
            return call(["sbatch", "--parsable", str(script)]).strip().split(";")[0]
        except ControllerAway as error:
            patience.wait(error)
        try:
            listing = call(["squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%F|%k"])
        except ControllerAway:
            continue
        taken = [line.partition("|")[0] for line in listing.splitlines() if line.endswith(f"|{comment}")]
        if taken:
            return taken[0]


def look_up(job: str) -> Dict[Optional[int], _Entry]:
    """The elements of a job that the controller still knows, ended ones included; the key of a single job is None.

    Raises:
        ControllerAway: it does not answer.
    """
    try:
        listing = call(["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%r|%N"])
    except UserError as error:
        if "Invalid job id" in str(error):  # forgotten: it ended a while ago
            return {}
        raise
    entries: Dict[Optional[int], _Entry] = {}
    for line in listing.splitlines():
        name, state, reason, nodes = line.strip().split("|", 3)
        index = name.partition("_")[2]
        entries[int(index) if index.isdigit() else None] = _Entry(state, reason, nodes)
    return entries


class _Follower:
    """Copies a log to standard output while it grows, also when a job that is queued again starts a new one."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.old = self._identity()
        self.shown: Optional[Tuple[int, int]] = None
        self.position = 0

    def _identity(self) -> Optional[Tuple[int, int]]:
        try:
            status = self.log.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def show(self) -> None:
        identity = self._identity()
        if identity is None or identity == self.old:
            return
        if identity != self.shown:
            self.shown, self.position = identity, 0
        with self.log.open("rb") as stream:
            stream.seek(self.position)
            new = stream.read()
        if self.position == 0:
            lines = new.split(b"\n", HEADER_LINES)
            if len(lines) <= HEADER_LINES:  # its head is still being written
                return
            self.position, new = len(new), lines[-1]
        else:
            self.position += len(new)
        sys.stdout.buffer.write(new)
        sys.stdout.buffer.flush()


class _SlurmRun:
    """One submission."""

    def __init__(self, array: JobArray) -> None:
        self.array = array
        self.options = slurm_options(array)
        self.folder = control_folder(array)
        self.report = Report(array)
        self.open: List[Optional[int]] = array.elements()
        self.started: Dict[Optional[int], float] = {}
        self.gone: Dict[Optional[int], float] = {}
        self.told = ""
        self.follower = _Follower(array.log_of(None)) if array.follow else None
        self.received: List[int] = []
        self.handled = 0
        self.job = ""
        self.queue: Dict[Optional[int], _Entry] = {}
        self.next_poll = 0.0
        self.interval = _FIRST_POLL_SECONDS
        self.away_since: Optional[float] = None

    def run(self) -> List[JobResult]:
        with handled(FORWARDED, self._receive):
            try:
                self.submit()
                while self.open:
                    self._handle_signals()
                    if self.follower:
                        self.follower.show()
                    if time.monotonic() >= self.next_poll:
                        self._poll()
                        self._collect()
                    time.sleep(_TICK_SECONDS)
            except BaseException:
                if self.job and self.open:
                    self._try("scancel", self.job)
                raise
        return self.report.results

    def submit(self) -> str:
        """Submit the array and return its id."""
        self._check_not_queued()
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            for index in self.open:
                self.array.log_of(index).absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the log {self.array.log}: {error.strerror}") from error
        comment = f"i2srf-{uuid.uuid4().hex[:12]}"
        write_job(self.folder, self.array, self.options.requeue, self.options.max_requeues)
        script = self.folder / "job.sbatch"
        write_text(script, batch_script(self.array, self.options, self.folder, comment))
        self.job = submit(script, comment)
        write_text(self.folder / JOB_ID, f"{self.job}\n")
        say(f"{self.array.name}: submitted as Slurm job {self.job} ({job_name(self.array.name)}); script: {script}")
        return self.job

    def _check_not_queued(self) -> None:
        """Refuse to run the same work twice at a time, as after a terminal that died.

        A controller that does not answer is asked again: submitting removes the only record of the job before.
        """
        try:
            before = (self.folder / JOB_ID).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        patience = _Patience()
        while True:
            try:
                entries = look_up(before)
                break
            except ControllerAway as error:
                patience.wait(error)
        active = sorted({entry.state.lower() for entry in entries.values() if entry.state not in _ENDED})
        if active:
            raise UserError(
                f"{self.array.name} was submitted before and is still {' and '.join(active)}: wait for Slurm job "
                f"{before}, or cancel it: scancel {before}"
            )

    # Signals ----------------------------------------------------------------------------------------------------

    def _receive(self, number: int, frame: Optional[FrameType]) -> None:
        self.received.append(number)

    def _handle_signals(self) -> None:
        while self.handled < len(self.received):
            number = self.received[self.handled]
            self.handled += 1
            name = signal.Signals(number).name
            (self.folder / STOP).touch()  # what saves now is not to be queued again
            if self.handled == 1 and number == signal.SIGUSR1:
                say(f"{self.array.name}: received {name}; asking Slurm job {self.job} to save and leave")
                self._try("scancel", "--state=PENDING", self.job)
                self._try("scancel", "--batch", "--signal=USR1", self.job)
            elif self.handled == 1:
                say(f"{self.array.name}: received {name}; cancelling Slurm job {self.job} and waiting for its end")
                self._try("scancel", self.job)
            elif self.handled == 2:
                say(f"{self.array.name}: received {name} again; killing Slurm job {self.job}")
                self._try("scancel", "--full", "--signal=KILL", self.job)
                self._try("scancel", self.job)
            else:
                say(f"{self.array.name}: leaving; look for Slurm job {self.job} with squeue")
                while self.open:
                    self.report.not_started(self.open.pop(), 128 + number)
            self.next_poll, self.interval = 0.0, _FIRST_POLL_SECONDS

    def _try(self, *command: str) -> None:
        try:
            call(command)
        except (ControllerAway, UserError) as error:
            if "Invalid job id" not in str(error):
                say(f"warning: {shlex.join(command)}: {error}")

    # Watching ---------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        try:
            self.queue = look_up(self.job)
        except ControllerAway as error:
            if self.away_since is None:
                say(f"warning: Slurm's controller does not answer ({error}); jobs go on, waiting for it")
                self.away_since = time.monotonic()
            self.next_poll = time.monotonic() + max(self.interval, _FIRST_POLL_SECONDS)
            self.queue = {index: _Entry("UNKNOWN", "", "") for index in self.open}
            return
        if self.away_since is not None:
            say("Slurm's controller answers again")
            self.away_since = None
            if self.received:
                self._try("scancel", self.job)
        self.next_poll = time.monotonic() + self.interval
        self.interval = min(1.5 * self.interval, self.options.poll_seconds)

    def _collect(self) -> None:
        for index in list(self.open):
            entry = self.queue.get(index)
            if entry is None or entry.state in _ENDED:
                self._end(index, entry)
            else:
                self.gone.pop(index, None)
                if entry.state == "RUNNING":
                    self.started.setdefault(index, time.monotonic())
                self._tell(index, entry)
        if self.open:
            self.report.heartbeat(self._states())

    def _tell(self, index: Optional[int], entry: _Entry) -> None:
        """For a single job: say what it waits for, and where it starts."""
        if index is not None or entry.state not in ("PENDING", "RUNNING"):
            return
        detail = f" on {entry.nodes}" if entry.state == "RUNNING" else f" ({entry.reason})"
        line = f"{self.array.name}: Slurm job {self.job} {entry.state.lower()}{detail}"
        if self.told != line and (entry.state == "RUNNING" or entry.reason != "None"):
            say(line)
            self.told = line

    def _states(self) -> str:
        count: Dict[str, int] = {}
        for index in self.open:
            entry = self.queue[index]
            words = entry.state.lower() + (f" ({entry.reason})" if entry.state == "PENDING" else "")
            count[words] = count.get(words, 0) + 1
        return "".join(f", {number} {words}" for words, number in sorted(count.items()))

    def _end(self, index: Optional[int], entry: Optional[_Entry]) -> None:
        state = entry.state if entry else "FAILED"  # forgotten by the controller: the code file must tell
        why, code = _ENDED[state]
        written = self._written_code(index)
        since = self.gone.setdefault(index, time.monotonic())
        by_itself = state in ("COMPLETED", "FAILED")
        if written is None and by_itself and time.monotonic() - since < _CODE_FILE_SECONDS:
            self.next_poll = min(self.next_poll, time.monotonic() + _FIRST_POLL_SECONDS)
            return
        if written is not None and (by_itself or written == EXIT_INTERRUPTED):
            why, code = "", written
        elif self.received:
            code = 128 + self.received[0]
        elif entry is None:
            why = "Slurm does not know the job any more, and it left no exit code"
        if self.follower:
            self.follower.show()
        self.open.remove(index)
        seconds = time.monotonic() - self.started.get(index, time.monotonic())
        if index not in self.started and written is None and self.received:
            self.report.not_started(index, code)
            return
        self.report.ended(JobResult(index, code, seconds, self.array.log_of(index)), self._output(index, written), why)

    def _written_code(self, index: Optional[int]) -> Optional[int]:
        list(self.folder.iterdir())  # makes a network file system look again
        try:
            return int(code_file(self.folder, index).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _output(self, index: Optional[int], written: Optional[int]) -> List[str]:
        """What to show of a failed element: its log, or what Slurm said where the command did not even start."""
        if written is not None:
            return last_lines(self.array.log_of(index))
        messages = self.folder / ("job.out" if index is None else f"{index}.out")
        return [*last_lines(messages), f"(messages of Slurm: {messages})"]
