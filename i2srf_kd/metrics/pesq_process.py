"""PESQ in a process of its own, because its C code crashes on some recordings, such as those with very many pauses.

The process lives on from one utterance to the next; after a crash the next utterance gets a new one.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
from typing import Any, Optional

import numpy as np

SECONDS_LIMIT = 60.0
"""Processor time that the process may spend on an utterance, plus the utterance's length."""
_START = "import sys; sys.path[:] = sys.argv[1:]; from i2srf_kd.metrics.pesq_process import serve; serve()"


class PesqFailed(Exception):
    """PESQ has no score for a pair of waveforms; the text says why."""


class PesqProcess:
    """The process and the pipes to it; it is started when it is first used."""

    def __init__(self) -> None:
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._owner = 0

    def __call__(self, fs: int, reference: np.ndarray, estimate: np.ndarray, mode: str) -> float:
        """Arguments and result of ``pesq.pesq``.

        Raises:
            PesqFailed: PESQ refuses the pair, crashes, or takes too long.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((fs, reference, estimate, mode), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = process.wait()
            if code >= 0:  # it did not get as far as PESQ
                raise RuntimeError(f"the process for PESQ ended with exit code {code}; its message is above") from None
            reason = "took too long" if code == -signal.SIGPROF else "crashed"
            raise PesqFailed(f"the package pesq {reason} (signal {-code})") from None
        except BaseException:  # an answer that nobody waits for would be taken for the next one
            process.kill()
            process.wait()
            raise
        if isinstance(answer, str):
            raise PesqFailed(answer)
        return float(answer)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-c", _START, *sys.path]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid() and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


pesq = PesqProcess()
atexit.register(pesq.close)


def serve() -> None:
    """Answer until there are no more questions; what ends the process that asks ends this one with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # these are for the one that asks
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the C code prints is no answer
    while True:
        try:
            fs, reference, estimate, mode = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, SECONDS_LIMIT + len(reference) / fs)
        answer = _score(fs, reference, estimate, mode)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pickle.dump(answer, answers)
        answers.flush()


def _score(fs: int, reference: np.ndarray, estimate: np.ndarray, mode: str) -> Any:
    """The score, or why there is none."""
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    try:
        return float(pesq(fs, reference, estimate, mode))
    except NoUtterancesError:
        return "no speech was found in the reference"
    except BufferTooShortError:
        return f"{len(reference)} samples are less than a quarter of a second"
    except Exception as error:  # whatever else the package refuses
        return str(error)
