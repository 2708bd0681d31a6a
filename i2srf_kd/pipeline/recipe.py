"""Calling a recipe's ``run.sh``: what its options come to, and running it."""

import shlex
import subprocess
from typing import Dict, List, Mapping, Sequence, Tuple

from i2srf_kd.system.errors import UserError
from i2srf_kd.system.processes import call

_NO_OPTIONS = ("pipeline", "teacher_dir", "rawdir", "train_cmd")  # what is shown with the options


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
    """A script that takes the pipeline's options: a recipe's ``run.sh``, or ``enh_kd.sh``, which it calls.

    Args:
        script: path of it.
        options: options of every call.
    """

    def __init__(self, script: str, options: Mapping[str, str]):
        self.script = script
        self.options = dict(options)

    def with_options(self, **more: str) -> "Pipeline":
        """The same script with further options."""
        return Pipeline(self.script, {**self.options, **more})

    def command(self) -> List[str]:
        """The command line."""
        return [self.script, *option_words(self.options)]

    def resolve(self) -> Tuple["Pipeline", Dict[str, str]]:
        """What the options of ``run.sh`` come to: asked once, so that nothing else has to know them.

        Returns:
            ``enh_kd.sh`` with all of its options, for calls without ``run.sh``; and the same options as a mapping, with
            what they lead to: ``teacher_dir``, ``rawdir``, and the resources ``train_cmd``.

        Raises:
            UserError: the pipeline refuses an option; with its own words.
        """
        command = self.with_options(show_options="true").command()
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise UserError((done.stderr.strip() or f"{shlex.join(command)} failed").removeprefix("error: "))
        values = dict(line.partition("=")[::2] for line in done.stdout.splitlines() if "=" in line)
        options = {name: value for name, value in values.items() if name not in _NO_OPTIONS}
        return Pipeline(values["pipeline"], {**options, "show_options": "false"}), values

    def run(self, **more: str) -> int:
        """Run it; the exit code."""
        return call(self.with_options(**more).command())
