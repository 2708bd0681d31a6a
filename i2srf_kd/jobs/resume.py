"""Which elements of an array succeeded before, when others did not: only what is missing is run again."""

import dataclasses
import json
from typing import List, Optional, Sequence, Set

from i2srf_kd.jobs.array import JobArray, JobResult, quote, without_job
from i2srf_kd.system.files import write_text

#: In the environment: stands for what the elements of an array read.
RESUME_KEY = "I2SRF_RESUME_KEY"


class FinishedElements:
    """Remembers elements beside their logs, in ``<log>.finished``, until all of them succeeded.

    Args:
        array: all elements.
        key: stands for what the elements read; with another key (or another command) all of them are run.
    """

    def __init__(self, array: JobArray, key: str) -> None:
        self.array = array
        log = without_job(array)
        self.path = log.with_name((log.stem or "job") + ".finished")
        self.key = {"key": key, "command": quote(array.command), "of": len(array.elements())}
        self.before = self._read()

    def _read(self) -> Set[int]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return set(content["indices"]) if content["key"] == self.key else set()
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def missing(self) -> Optional[JobArray]:
        """The array without what succeeded before; None when nothing is left."""
        left = [index for index in self.array.indices or [] if index not in self.before]
        return dataclasses.replace(self.array, indices=left) if left else None

    def record(self, results: Sequence[JobResult]) -> None:
        """Remember what succeeded now."""
        done: List[int] = sorted(self.before | {r.index for r in results if r.code == 0 and r.index is not None})
        if done == sorted(self.array.indices or []):
            self.path.unlink(missing_ok=True)
        elif done:
            write_text(self.path, json.dumps({"key": self.key, "indices": done}) + "\n")
