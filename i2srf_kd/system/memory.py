"""Resident memory of this process."""

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Bytes held now.

    Raises:
        OSError: the system has no ``/proc``.
    """
    return _field("VmRSS")


def peak_resident_bytes() -> int:
    """Most bytes held since the process began.

    From ``/proc`` where there is one: ``getrusage`` counts what the parent held when it started this process, too.
    """
    try:
        return _field("VmHWM")
    except OSError:
        factor = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def _field(name: str) -> int:
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{STATUS} has no {name}")
