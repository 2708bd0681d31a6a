"""Where results come from: commit of the code, versions of packages, machine."""

import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

from i2srf_kd import __version__
from i2srf_kd.system.files import PathLike


class Commit(NamedTuple):
    """State of a working tree: hash and date (ISO 8601) of its commit, and whether files were changed since."""

    hash: str
    date: str
    dirty: bool


def commit(folder: Optional[PathLike] = None) -> Optional[Commit]:
    """Commit of the working tree that a folder (by default this package) lies in; None outside of git."""
    place = str(folder or Path(__file__).parent)

    def git(*arguments: str) -> str:
        command = ["git", "-C", place, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        number, date = git("log", "-1", "--format=%H %cI").split()
        return Commit(number, date, bool(git("status", "--porcelain")))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def version(package: str) -> str:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def scoring_record() -> Dict[str, Any]:
    """Date, versions, platform and commit, as tables of results show them."""
    state = commit()
    return {
        "date": datetime.now(timezone.utc).strftime("%a %b %d %H:%M:%S UTC %Y"),
        "python": sys.version.replace("\n", " "),
        "espnet": version("espnet"),
        "torch": version("torch"),
        "pesq": version("pesq"),
        "pystoi": version("pystoi"),
        "platform": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "git_hash": state.hash if state else None,
        "git_commit_date": state.date if state else None,
        "git_dirty": state.dirty if state else None,
    }


def start_record() -> Dict[str, Any]:
    """What is needed to start the present command again; what PyTorch knows is left to its users."""
    state = commit()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": socket.gethostname(),
        "command": shlex.join([sys.executable, *sys.argv]),
        "working_directory": os.getcwd(),
        "git_hash": state.hash + "-dirty" * state.dirty if state else None,
        "python": platform.python_version(),
        "versions": {"i2srf_kd": __version__, **{name: version(name) for name in ("espnet", "numpy", "soundfile")}},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }


def cpu_name() -> str:
    """Model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
