"""A real Slurm for the tests: authentication, controller and node daemons of one machine in a folder of their own.

Several nodes are several daemons on this machine, each with its name, port and folder: what a job of two machines does
is done, but for the network between them.

Nothing of the system's own installation is touched, no accounting database is used (as in Debian's packages), and all
daemons end with the context. Needs root and the packages ``slurm-wlm`` and ``munge``.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Optional

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")
_SECONDS = 60.0

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again starts after so many seconds at the soonest.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
PriorityType=priority/basic
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=5
MinJobAge=30
CompleteWait=0
# More CPUs and memory than the machine may have: the tests are about order, not about speed.
SlurmdParameters=config_overrides
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> Optional[str]:
    """What is missing to start a cluster here; None when nothing is."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "starting Slurm's daemons needs root"
    return None


def free_ports(count: int) -> List[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class SlurmCluster:
    """Daemons in ``folder``; :attr:`environment` makes Slurm's commands talk to them.

    Args:
        folder: for everything that the daemons write.
        nodes: number of machines that the cluster seems to have.
    """

    def __init__(self, folder: Path, nodes: int = 1):
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        # The first name is one that can be resolved: there the processes of a job meet.
        self.nodes = [self.host, *(f"{self.host}-{number}" for number in range(2, nodes + 1))]
        self.environment: Dict[str, str] = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: Dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start all daemons and wait until the node takes jobs."""
        for name in ("state", *(f"spool.{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        controller_port, *ports = free_ports(1 + len(self.nodes))
        lines = [
            f"NodeName={node} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=200000"
            for node, port in zip(self.nodes, ports, strict=True)
        ]
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=self.host, folder=self.folder, controller_port=controller_port, nodes="\n".join(lines)
            )
        )
        self._start_munge()
        self.start_daemon("slurmctld")
        for node in self.nodes:
            self._start("slurmd" if len(self.nodes) == 1 else f"slurmd.{node}", [*self._command("slurmd"), "-N", node])
        ready = ("idle", "mixed", "allocated")
        self.wait_for(
            lambda: (
                [state in ready for state in self.output("sinfo", "-hN", "-o", "%T").split()]
                == [True] * len(self.nodes)
            ),
            "idle nodes",
        )

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start(
            "munged",
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
            + [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "seed", "log")],
        )
        self.wait_for((self.folder / "munge.socket").exists, "munged")

    def start_daemon(self, name: str) -> None:
        """Start ``slurmctld`` or the ``slurmd`` of a cluster of one node, again after :meth:`stop_daemon`."""
        self._start(name, self._command(name))

    def _command(self, name: str) -> List[str]:
        return [name, "-D", "-f", str(self.folder / "slurm.conf")]

    def _start(self, name: str, command: List[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as stream:
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env={**os.environ, **self.environment}
            )

    def stop_daemon(self, name: str) -> None:
        """End one daemon and wait for it."""
        process = self.daemons.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """Cancel what is left and end all daemons."""
        nodes = [name for name in self.daemons if name.startswith("slurmd")]
        if "slurmctld" in self.daemons and nodes:
            self.output("scancel", "--signal=KILL", "--full", f"--user={pwd.getpwuid(os.getuid()).pw_name}")
            self.output("scancel", f"--user={pwd.getpwuid(os.getuid()).pw_name}")
            end = time.monotonic() + 20
            while self.queue() and time.monotonic() < end:
                time.sleep(0.2)
        for name in (*nodes, "slurmctld", "munged"):
            if name in self.daemons:
                self.stop_daemon(name)

    def output(self, *command: str) -> str:
        """Standard output of a Slurm command, empty when it fails."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout.strip()

    def queue(self) -> List[str]:
        """Jobs that wait or run, as ``id state name``."""
        return self.output("squeue", "-h", "-r", "-o", "%i %T %j").splitlines()

    def wait_for(self, condition, what: str, seconds: float = _SECONDS) -> None:
        """Wait until ``condition()``; tell what the daemons said when it does not come."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited in vain for {what}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """Last lines of the daemons' logs."""
        parts = []
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")]):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(parts)


@contextmanager
def slurm_cluster(folder: Path, nodes: int = 1) -> Iterator[SlurmCluster]:
    """A running cluster, which ends with the context."""
    cluster = SlurmCluster(folder, nodes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
