"""How a command is run: one process or an array of them, with a log each. Standard library only, it starts at once.

A backend is a function ``run(array: JobArray) -> list[JobResult]`` in a module of its own, named in :data:`BACKENDS`.
"""

from importlib import import_module
from typing import Callable, Dict, List

from i2srf_kd.jobs.array import JobArray, JobResult, Resources
from i2srf_kd.system.errors import UserError

__all__ = ["BACKENDS", "Backend", "JobArray", "JobResult", "Resources", "get_backend"]

Backend = Callable[[JobArray], List[JobResult]]

#: Name of a backend -> ``module:function``. Adding a backend is one new file and one line here.
BACKENDS: Dict[str, str] = {"local": "i2srf_kd.jobs.local:run", "slurm": "i2srf_kd.jobs.slurm:run"}


def get_backend(name: str) -> Backend:
    """Look a backend up.

    Raises:
        UserError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise UserError(f"--backend {name}: no such backend; available: {', '.join(sorted(BACKENDS))}")
    module, _, function = BACKENDS[name].partition(":")
    return getattr(import_module(module), function)
