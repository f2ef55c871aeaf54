"""What Slurm says about the job of this process."""

import os
import shutil
import subprocess


def is_task() -> bool:
    """Return whether `srun` started this process, and so all processes of the job.

    As in Lightning, an interactive shell from `salloc` does not count.
    """
    # srun alone sets the step's tasks. A script of `sbatch` has SLURM_NTASKS and SLURM_PROCID too.
    by_srun = {"SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"} <= os.environ.keys()
    return by_srun and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def number_of_tasks() -> int:
    """Return how many tasks the job asked Slurm for; 1 outside of Slurm."""
    return int(os.environ.get("SLURM_NTASKS", 1))


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
