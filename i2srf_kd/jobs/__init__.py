"""How a command is run: one process or an array of them, with a log each. Standard library only, it starts at once.

A backend is a function ``run(array: JobArray) -> list[JobResult]`` in a module of its own, named in
:data:`i2srf_kd.jobs.registry.BACKENDS`.
"""

from i2srf_kd.jobs.array import EXIT_RUN_AGAIN, JobArray, JobResult, Resources
from i2srf_kd.jobs.registry import BACKENDS, get_backend

__all__ = ["BACKENDS", "EXIT_RUN_AGAIN", "JobArray", "JobResult", "Resources", "get_backend"]
