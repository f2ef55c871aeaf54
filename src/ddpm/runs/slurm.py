"""What Slurm says about the job of this process."""

import os
import shutil
import subprocess


def is_task() -> bool:
    """Return whether `srun` started this process, and so all processes of the job.

    As in Lightning, an interactive shell from `salloc` does not count.
    """
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def is_requeued() -> bool:
    """Return whether Slurm put this job back into the queue after an earlier start, for example after a preemption."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def means_to_go_on() -> bool:
    """Return whether Slurm lists this job as running, so neither cancelled nor requeued.

    Then SIGTERM is the warning before a preemption. Slurm does not requeue a job that exits within its grace time.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("squeue") is None:  # a container may lack squeue
        return False
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() == "RUNNING"
