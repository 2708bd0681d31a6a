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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml

from i2srf_kd.jobs.array import JobArray
from i2srf_kd.jobs.report import say
from i2srf_kd.system.errors import UserError

#: Names another file than ``conf/slurm.yaml`` of the current folder, which may be absent.
VARIABLE = "I2SRF_SLURM_CONFIG"
#: The kind of work that is asked to save before its time limit: it is a training, or holds trainings.
TRAINING = "train"
#: Names of the models that the pipeline trains, one a line: each is the name of a job.
MODELS = "I2SRF_MODELS"
#: Names of the pipeline's stages, separated by blanks: with ``--submit`` each is the name of a job.
STAGES = "I2SRF_STAGES"

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
    max_requeues: int = 20
    signal_seconds: int = 120
    max_jobs: Optional[int] = None
    poll_seconds: float = 15.0
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
        values.update(_section(sections, section))
    return SlurmOptions(**values)


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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        if os.environ.get(VARIABLE):
            raise UserError(f"{VARIABLE}={path}: no such file") from None
        return {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold sections such as 'default: {{partition: gpu}}'")
    return content


def _section(sections: Dict[str, Any], name: str) -> Dict[str, Any]:
    section = sections.get(name) or {} if name else {}
    if not isinstance(section, dict):
        raise UserError(f"{_path()}: {name} must hold settings such as 'partition: gpu', not {section!r}")
    types = {field.name: field.type for field in fields(SlurmOptions)}
    values: Dict[str, Any] = {}
    for key, value in section.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), types, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(types)}; others go into extra"
            raise UserError(f"{_path()}: {name}: unknown setting {key}; {hint}")
        values[key] = _checked(f"{_path()}: {name}: {key}", types[key], value)
    return values


def _checked(where: str, kind: Any, value: Any) -> Any:
    if kind == Optional[List[str]]:
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise UserError(f"{where} must be a list of texts, not {value!r}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where} must be true or false, not {value!r}")
        return value
    if kind == Optional[int] and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{where} must be a whole number, 1 or more, not {value!r}")
    if kind == Optional[int]:
        return value
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or value < 0:
            raise UserError(f"{where} must be a number, 0 or more, not {value!r}")
        return value
    if where.endswith(" time") and isinstance(value, int):
        # YAML 1.1 reads 12:00:00 as a number in base 60, and a plain number means minutes to sbatch.
        raise UserError(f'{where}: put the time into quotes, such as "12:00:00"')
    return None if value is None else str(value)
