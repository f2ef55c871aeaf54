"""A real Slurm of two nodes on this machine, from Debian's packages: slurmctld slurmd slurm-client munge."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # a user's PATH may lack the daemons

# No accounting: `sacct` returns nothing here, as on many small clusters. A requeued job starts when its credential
# has expired, by default after two minutes. An urgent job preempts the others, after a warning.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=1,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=tests Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime=600
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=2
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm for the session; all its processes use it."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)}): apt install slurmctld slurmd slurm-client munge")
    if os.getuid() != 0:
        pytest.skip("the daemons of Slurm need root")
    folder = tmp_path_factory.mktemp("slurm")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(write_config(folder)))
        environment.setenv("MASTER_ADDR", "127.0.0.1")  # the names of the nodes cannot be resolved
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "seed", "pid", "log")]
        stack.enter_context(
            daemon(folder, "munged", "--foreground", "--force", *files, f"--socket={folder}/munge.socket")
        )
        stack.enter_context(daemon(folder, "slurmctld", "-D", "-c"))
        for node in ("n1", "n2"):
            stack.enter_context(daemon(folder, "slurmd", "-D", "-N", node))
        wait_for_nodes(folder)
        yield
        subprocess.run(["scancel", "--me"], check=True)


def write_config(folder: Path) -> Path:
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    path = folder / "slurm.conf"
    path.write_text(
        CONFIG.format(
            folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=free_ports(3), cpus=os.cpu_count()
        )
    )
    return path


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def daemon(folder: Path, program: str, *arguments: str) -> Iterator[None]:
    command = [shutil.which(program, path=SEARCHED) or program, *arguments]
    with (folder / f"{program}-{Path(arguments[-1]).name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def wait_for_nodes(folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], capture_output=True, text=True)
        if len(done.stdout.split()) >= 2 and set(done.stdout.split()) == {"idle"}:
            return
        time.sleep(0.2)
    pytest.fail(f"the nodes of Slurm did not come up: {done.stdout}{done.stderr}; see {folder}/*.log")
