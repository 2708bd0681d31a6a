"""A step of the pipeline: skipped when it is done with the same settings, else run under a lock and recorded.

The record (a "done file") has a line ``key=value`` for every setting and says when the step finished. Keys called
``input_...`` stand for what was read: when just these differ, the step is out of date, and it is run again, unless it
is one to *keep* (a training, too dear to repeat unasked), which is an error as other settings are.
"""

import math
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from i2srf_kd.jobs.resume import RESUME_KEY
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import write_text
from i2srf_kd.system.fingerprints import fingerprint_of_existing, fingerprint_of_text
from i2srf_kd.system.locks import held
from i2srf_kd.system.processes import call
from i2srf_kd.system.signals import EXIT_INTERRUPTED
from i2srf_kd.system.user_modules import imported_files


@dataclass(frozen=True)
class Step:
    """Work that a done file stands for.

    Args:
        done_file: the record; the work's own folder holds it.
        settings: what tells one outcome from another, by name.
        keep: never run it again unasked.
    """

    done_file: Path
    settings: Mapping[str, str]
    keep: bool = False

    def run(self, commands: Sequence[Sequence[str]], force: bool = False) -> int:
        """Run the commands one after the other, unless the step is done; the exit code of the first that fails.

        Args:
            commands: their programs and arguments.
            force: also when it is done; but once, when Slurm queues the job again.

        Raises:
            UserError: it was done with other settings.
        """
        anew = force and not self._is_of_this_job()
        if not anew and self.is_done():
            return 0
        with held(self.done_file.with_name(self.done_file.name + ".lock"), str(self.done_file), math.inf) as lock:
            if not anew and self.is_done():  # by the one that was waited for
                return 0
            if not self.keep:  # a trained model keeps its record until it is moved aside
                self.done_file.unlink(missing_ok=True)
            for command in commands:
                code = call(command, environment={RESUME_KEY: "" if force else self.key}, pass_fds=[lock])
                if code == EXIT_INTERRUPTED:
                    more = " (without --force, or what was finished before this is made anew too)" if force else ""
                    say(f"saved; run the same command again to continue{more}")
                if code:
                    return code
            self._record(force)
        return 0

    @property
    def key(self) -> str:
        """A text that changes with the settings."""
        return fingerprint_of_text("\n".join(self._lines()))

    def is_done(self) -> bool:
        """Whether nothing is left to do; says so, or why it is to be done again.

        Raises:
            UserError: it was done with other settings.
        """
        record = self._read()
        if record is None:
            return False
        changed = [name for name, setting in self.settings.items() if record.get(name, "") != setting]
        if not changed:
            say(f"already finished, skipped: {self.done_file.parent} ({self.done_file})")
            return True
        if not self.keep and all(name.startswith("input_") for name in changed):
            say(f"what it was made from has changed, running again: {self.done_file.parent}")
            return False
        lines = [f"  {name}: {record.get(name) or '(empty)'} -> {self.settings[name] or '(empty)'}" for name in changed]
        again = (
            "train anew with --force true, which keeps the old model beside it"
            if self.keep
            else "run it again with --force true"
        )
        raise UserError(
            f"{self.done_file.parent} was finished with other settings:\n" + "\n".join(lines) + "\n"
            f"Give the old settings, choose another tag or folder for the new ones, or {again}."
        )

    def _lines(self) -> List[str]:
        return [f"{name}={setting}" for name, setting in self.settings.items()]

    def _read(self) -> Optional[Dict[str, str]]:
        try:
            lines = self.done_file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return dict(line.partition("=")[::2] for line in lines)

    def _is_of_this_job(self) -> bool:
        """Whether Slurm has queued this job again, and the record is what it wrote when it ran before."""
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        return again and (self._read() or {}).get("slurm_job") == os.environ.get("SLURM_JOB_ID", "")

    def _record(self, force: bool) -> None:
        lines = self._lines()
        job = os.environ.get("SLURM_JOB_ID")
        if force and job:
            lines.append(f"slurm_job={job}")
        lines.append(f"finished={datetime.now().astimezone().isoformat()}")
        write_text(self.done_file, "\n".join(lines) + "\n")


def say(text: str) -> None:
    """One line to standard output with the time, as the stages print theirs."""
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", flush=True)


def parse_settings(words: Sequence[str]) -> Dict[str, str]:
    """Settings from words as :mod:`i2srf_kd.bin.step` takes them.

    Files count by their contents, whatever they are called; those that are absent do not count.

    Raises:
        UserError: a distillation file cannot be read.
    """
    values: Dict[str, str] = {}
    files: Dict[str, List[Path]] = {}
    for word in words:
        name, kind, text = re.fullmatch(r"([^=@]+)(=|@@|@)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
        if kind == "=":
            values[name] = text.replace("\n", " ")
        else:
            files.setdefault(name, []).extend([Path(text)] if kind == "@" else imported_files(text))
    return {**values, **{name: fingerprint_of_existing(paths) for name, paths in files.items()}}


def parse_commands(words: Sequence[str]) -> List[List[str]]:
    """Commands from ``COUNT WORD ... COUNT WORD ...``; no word can be taken for a separator."""
    rest, commands = list(words), []
    while rest:
        count = int(rest.pop(0))
        commands.append(rest[:count])
        rest = rest[count:]
    return commands
