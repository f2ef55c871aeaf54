"""What Slurm tells a process about its job."""

import os
import shutil
import subprocess


def is_task() -> bool:
    """Whether `srun` has started this process, and with it all others of the job.

    As Lightning sees it: a shell that `salloc` gave is none.
    """
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def is_requeued() -> bool:
    """Whether this job has run before, and was put back into the queue: preempted, at its time limit …"""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def means_to_go_on() -> bool:
    """Whether Slurm has this job in its list as one that runs: neither cancelled nor put back into the queue.

    SIGTERM is then the warning before a preemption, and a job that ends within its period of grace is not put back.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("squeue") is None:  # a container need not have it
        return False
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() == "RUNNING"
