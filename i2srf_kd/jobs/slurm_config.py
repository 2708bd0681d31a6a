"""What a cluster needs to be told: ``conf/slurm.yaml`` of a recipe.

::

    default: {partition: gpu, account: my_project}      # all jobs
    train: {time: "48:00:00", gpu_type: a100}           # a kind of work: data, train, decode, score
    student_kd: {time: "12:00:00"}                      # one job by its name; with --submit a stage: student

The later wins: options of ``run_jobs`` (from ``cmd.sh``), ``default``, kind, name.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Dict, List, Optional

from i2srf_kd.jobs.array import JobArray
from i2srf_kd.jobs.messages import say
from i2srf_kd.system.config import AtLeast, parse_section, read_yaml
from i2srf_kd.system.errors import UserError

#: Names another file than ``conf/slurm.yaml`` of the current folder, which may be absent.
VARIABLE = "I2SRF_SLURM_CONFIG"
#: The kind of work that is asked to save before its time limit: it is a training, or holds trainings.
TRAINING = "train"
#: Names of the models that the pipeline trains, one a line: each is the name of a job.
MODELS = "I2SRF_MODELS"
#: Names of the pipeline's stages, separated by blanks: with ``--submit`` each is the name of a job.
STAGES = "I2SRF_STAGES"

_NUMBERS_TOO = ("partition", "account", "qos", "constraint", "mem", "gpu_type")  # texts that may look like numbers
_KINDS = ("data", TRAINING, "decode", "score")
_JOBS = ("statistics", "teacher", "student", "student_kd", "examples", "results", "export")
_NAMED_JOBS = re.compile(r"(format|enhance|score|ablation) .+")  # after a set, or a grid


@dataclass(frozen=True)
class SlurmOptions:
    """Settings of one job; names and values as in ``sbatch`` where it has them.

    Args:
        partition, account, qos, constraint, mem, time: as in ``sbatch``.
        gpu_type: type of the GPUs, such as ``a100``.
        requeue: queue a job again when it saved its state (exit code 75) or its machine failed.
        max_requeues: how often at most.
        signal_seconds: a training is asked to save so long before its time limit; 0: never.
        max_jobs: run at most so many elements of an array at a time, where ``--max_jobs`` does not say fewer.
        poll_seconds: longest time between two looks at the queue.
        extra: further options for ``sbatch``, such as ``--exclude=node7``.
        setup: shell lines before the command, such as ``module load cuda``.
    """

    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    mem: Optional[str] = None
    time: Optional[str] = None
    gpu_type: Optional[str] = None
    requeue: bool = True
    max_requeues: Annotated[int, AtLeast(0)] = 20
    signal_seconds: Annotated[int, AtLeast(0)] = 120
    max_jobs: Optional[Annotated[int, AtLeast(1)]] = None
    poll_seconds: Annotated[float, AtLeast(0)] = 15.0
    extra: Optional[List[str]] = None
    setup: Optional[List[str]] = None

    def limits(self, kind: str) -> List[str]:
        """The options of ``sbatch`` that a kind of work asks for."""
        names = ("partition", "account", "qos", "constraint", "mem", "time")
        lines = [f"--{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None]
        # What cannot save would die of the signal, before its time and without a word about the limit.
        if kind == TRAINING and self.signal_seconds and self.time is not None:
            lines.append(f"--signal=B:USR1@{self.signal_seconds}")
        return [*lines, *(self.extra or [])]


def slurm_options(array: JobArray) -> SlurmOptions:
    """Settings of an array, from the configuration file and its own needs.

    Raises:
        UserError: the file cannot be read or holds something unknown.
    """
    sections = _read_sections()
    _warn_of_others(sections, array)
    needs = array.resources
    values: Dict[str, Any] = {}
    values.update({name: value for name, value in (("mem", needs.mem), ("time", needs.time)) if value is not None})
    for section in ("default", array.kind, array.name):
        if sections.get(section):
            values.update(_settings(sections[section], f"{_path()}: {section}"))
    return SlurmOptions(**values)


def _settings(section: Any, where: str) -> Dict[str, Any]:
    """The settings that a section has."""
    if isinstance(section, dict):
        if isinstance(section.get("time"), int):
            # YAML 1.1 reads 12:00:00 as a number in base 60, and a plain number means minutes to sbatch.
            raise UserError(f'{where}: time: put the time into quotes, such as "12:00:00"')
        section = {name: str(value) if name in _NUMBERS_TOO else value for name, value in section.items()}
    options = parse_section(SlurmOptions, section, where)
    return {name: getattr(options, name) for name in section}


def _warn_of_others(sections: Dict[str, Any], array: JobArray) -> None:
    """Name the sections that no job reads, such as misspelt ones."""
    if array.after is not None:
        return  # said with the first of these jobs
    detached, waited_for = os.environ.get(STAGES, "").split(), [*_JOBS, *os.environ.get(MODELS, "").splitlines()]
    jobs = detached if array.detach else waited_for
    for section, content in sections.items():
        name = str(section)
        known = name in ("default", *_KINDS, *jobs, array.kind, array.name) or _NAMED_JOBS.fullmatch(name)
        if content and not known:
            close = difflib.get_close_matches(name, ["default", *_KINDS, *jobs], 1)
            say(
                f"warning: {_path()}: section {name} has no effect"
                f"{', did you mean ' + close[0] + '?' if close else ''} "
                f"(kinds of work: {', '.join(_KINDS)}; jobs: {', '.join(dict.fromkeys(jobs))})"
            )


def _path() -> Path:
    return Path(os.environ.get(VARIABLE) or "conf/slurm.yaml")


def _read_sections() -> Dict[str, Any]:
    path = _path()
    if not path.exists() and not os.environ.get(VARIABLE):
        return {}
    return read_yaml(path, f"{VARIABLE}={path}" if os.environ.get(VARIABLE) else "")
