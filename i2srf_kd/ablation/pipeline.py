"""Calling a recipe's ``run.sh``: what its options come to, and running it."""

import shlex
import subprocess
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.processes import call


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


def last_lines(path: Path, count: int = 15) -> List[str]:
    """End of a log."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
