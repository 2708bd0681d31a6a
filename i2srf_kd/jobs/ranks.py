"""The ranks of one job: processes that Slurm starts on one or several machines and that find each other.

:func:`step_command` turns a command into one ``srun`` step; in it, every process runs this module, which translates
Slurm's variables into those that ``torch.distributed`` reads (``env://``) and becomes the command.
"""

import os
import socket
import subprocess
import sys
from typing import Dict, List, Mapping, Sequence

from i2srf_kd.jobs.array import Resources
from i2srf_kd.system.errors import UserError

#: A step lives so long after its first process has ended. Ranks that save and leave do so within a moment of each
#: other; those whose peer was lost may wait for it in a collective operation, for many minutes.
_GRACE_SECONDS = 30


def step_command(command: Sequence[str], resources: Resources) -> List[str]:
    """The command itself, or the ``srun`` line that starts all of its processes.

    Raises:
        UserError: several processes are asked for outside of a Slurm job.
    """
    if resources.world_size == 1 or resources.start_once:
        return list(command)
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            f"--nodes {resources.nodes} --tasks {resources.tasks}: several processes of one job need --backend slurm"
        )
    address = rendezvous(resources.nodes)
    return [
        "srun", "--mpi=none", "--unbuffered", "--kill-on-bad-exit=0", f"--wait={_GRACE_SECONDS}",
        f"--nodes={resources.nodes}", f"--ntasks={resources.world_size}", f"--ntasks-per-node={resources.tasks}",
        f"--cpus-per-task={resources.num_threads}",
        "env", *(f"{name}={value}" for name, value in address.items()),
        sys.executable, "-m", "i2srf_kd.jobs.ranks", *command,
    ]  # fmt: skip


def rendezvous(nodes: int) -> Dict[str, str]:
    """Where the ranks meet: on the first machine of the allocation, which is the one that this runs on."""
    if nodes == 1:
        host = "127.0.0.1"
    else:
        listing = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        host = listing.stdout.split()[0]
    with socket.socket() as probe:
        probe.bind(("", 0))
        return {"MASTER_ADDR": host, "MASTER_PORT": str(probe.getsockname()[1])}


def rank_environment(slurm: Mapping[str, str]) -> Dict[str, str]:
    """Variables of ``torch.distributed`` from those of an ``srun`` task."""
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "NCCL_DEBUG": slurm.get("NCCL_DEBUG", "WARN"),  # ESPnet's default tells every detail
    }


def main() -> None:
    """Become the command on the command line, as one rank."""
    os.environ.update(rank_environment(os.environ))
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
