"""Calling a recipe's ``run.sh``: what its options come to, and running it with signals passed on."""

import os
import shlex
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import IO, Any, Dict, List, Mapping, Optional, Sequence

from i2srf_kd.errors import UserError
from i2srf_kd.jobs.parent import end_with_parent

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def option_words(options: Mapping[str, str]) -> List[str]:
    """Options as the words of a command line."""
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def parse_option_words(words: Sequence[str]) -> Dict[str, str]:
    """Read ``--name value`` and ``--name=value``.

    Raises:
        UserError: anything else.
    """
    options: Dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected argument {word!r}; options are written --name value (see --help)")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError(f"option --{name} needs a value")
            value = rest.pop(0)
        options[name] = value
    return options


class Pipeline:
    """A recipe's ``run.sh``.

    Args:
        script: path of it.
        python: interpreter that it shall use.
        options: options of every call.
    """

    def __init__(self, script: str, python: str, options: Mapping[str, str]):
        self.script = script
        self.options = {"python": python, **options}

    def command(self, **more: str) -> List[str]:
        """The command line with further options."""
        return [self.script, *option_words({**self.options, **more})]

    def resolve(self) -> Dict[str, str]:
        """What every option comes to.

        Raises:
            UserError: the pipeline refuses an option; with its own words.
        """
        command = self.command(show_options="true")
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise UserError((done.stderr.strip() or f"{shlex.join(command)} failed").removeprefix("error: "))
        return dict(line.partition("=")[::2] for line in done.stdout.splitlines() if "=" in line)

    def run(self, **more: str) -> int:
        """Run it; the exit code."""
        return call(self.command(**more))


def call(
    command: Sequence[str],
    output: Optional[IO[Any]] = None,
    environment: Optional[Mapping[str, str]] = None,
    pass_fds: Sequence[int] = (),
) -> int:
    """Run a program, pass signals on to it and wait for it, whatever happens.

    Args:
        command: program and arguments. It gets SIGTERM when this process is killed.
        output: file for both of its outputs; by default those of this process.
        environment: added to that of this process.
        pass_fds: files that stay open in it.

    Returns:
        Its exit code, 128 + signal number when a signal ended it.
    """
    received: List[int] = []
    child: Optional[subprocess.Popen] = None

    def pass_on(number: int, frame: Optional[FrameType]) -> None:
        received.append(number)
        if child is not None and child.returncode is None:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _FORWARDED}
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
        for number in list(received):  # while it was being started
            child.send_signal(number)
        code = child.wait()
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def last_lines(path: Path, count: int = 15) -> List[str]:
    """End of a log."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
