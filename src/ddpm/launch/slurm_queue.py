"""The jobs of a sweep in Slurm's queue: submitit submits them as one array, and `wait` follows them. No torch here."""

import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import UserError, install_hint
from ddpm.launch.jobs import job_arguments

UNKNOWN = "UNKNOWN"  # Slurm forgets a job some minutes after its end
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", UNKNOWN,
}  # fmt: skip
FILE_DELAY = 15.0  # seconds until a file that another node has written is surely visible here
GPUS = ("cuda", "xpu")
# Settings that submitit has for every scheduler. All other settings need the prefix "slurm_".
GENERAL = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}


@dataclass
class SlurmJob:
    """One job, pickled by submitit and called in each process that srun starts for the job.

    So these processes are the job's own, and it starts no further ones.
    """

    arguments: list[str]
    """the command line after `ddpm`"""

    def __call__(self) -> None:
        from ddpm.launch.composition import run_with_hydra

        command, *rest = self.arguments
        run_with_hydra(command, ["--config-name", command, *rest])

    def checkpoint(self) -> Any:
        """The call to make when submitit requeues the job: the same one, because the run has its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch(config: DictConfig, job_overrides: Sequence[Sequence[str]]) -> list[JobReturn]:
    """Submit the jobs as one array, print how each proceeds, and return when all have ended.

    submitit's own waiting never ends for a job that was killed if Slurm keeps no accounting records.

    Args:
        config: the config of the sweep, with Hydra's part; `hydra.launcher` is conf/hydra/launcher/slurm.yaml.
        job_overrides: the overrides of each job.

    Raises:
        UserError: submitit is not installed, or Slurm refuses the jobs.
    """
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: hydra/launcher=slurm needs it, {install_hint('slurm')}") from error
    options: dict[str, Any] = OmegaConf.to_container(config.hydra.launcher, resolve=True)  # type: ignore[assignment]
    del options["_target_"]
    folder, timeouts = options.pop("submitit_folder"), options.pop("max_num_timeout")
    if options["gpus_per_node"] is None and OmegaConf.select(config, "trainer.accelerator") in GPUS:
        options["gpus_per_node"] = options["tasks_per_node"]
    options["srun_args"] = ["--kill-on-bad-exit=1"]  # if one process fails, the others would wait for it
    try:
        executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        executor.update_parameters(**{k if k in GENERAL else f"slurm_{k}": v for k, v in options.items()})
        jobs = executor.submit_array([SlurmJob(job_arguments(config.hydra, job)) for job in job_overrides])
    except (FailedJobError, RuntimeError, NameError, AssertionError) as error:
        raise UserError(f"hydra/launcher=slurm: {error}") from error
    array = jobs[0].job_id.split("_")[0]
    print(f"{len(jobs)} in Slurm's queue as {array}, logs in {jobs[0].paths.folder.parent}", flush=True)
    shared = set(job_overrides[0]).intersection(*job_overrides)
    names = [
        " ".join([job.job_id, *(override for override in overrides if override not in shared)])
        for job, overrides in zip(jobs, job_overrides, strict=True)
    ]
    try:
        return wait([QueuedJob(job, name) for job, name in zip(jobs, names, strict=True)])
    except KeyboardInterrupt:
        print(f"\nthe jobs continue without this command; `scancel {array}` stops them.", file=sys.stderr)
        raise


@dataclass
class QueuedJob:
    """A job that submitit has submitted."""

    job: Any
    """submitit's object"""
    name: str
    state: str = ""
    """in the queue, as of the last poll"""
    since: float = 0.0
    """when the state was new, in seconds of the monotonic clock"""
    result: JobReturn | None = None
    """set when the job has ended"""

    def poll(self, state: str) -> None:
        """Print a new state of the job; once it has left its result, or was ended without one, set `result`.

        Args:
            state: the job's state in the queue.
        """
        is_new = state != self.state
        if is_new:
            self.state, self.since = state, time.monotonic()
        has_ended = state in ENDED and time.monotonic() - self.since > FILE_DELAY
        if has_ended or self.job.task(0).paths.result_pickle.exists():
            error = self.read_error()
            self.result = JobReturn(status=JobStatus.FAILED if error else JobStatus.COMPLETED)
            self.result.return_value = UserError(error) if error else None
            print(f"{self.name}: {f'failed: {error}' if error else 'finished'}", flush=True)
        elif is_new and state not in ENDED:
            print(f"{self.name}: {state.lower()}", flush=True)

    def read_error(self) -> str | None:
        """The error of any of the job's processes; None if the job finished."""
        paths = [self.job.task(i).paths for i in range(self.job.num_tasks)]
        results = [pickle.loads(path.result_pickle.read_bytes()) for path in paths if path.result_pickle.exists()]
        # submitit keeps the text of the traceback. Of a UserError only the message matters.
        marker = f"{UserError.__module__}.{UserError.__name__}: "
        errors = [text.rpartition(marker)[2] for kind, text in results if kind == "error"]
        if not errors and not paths[0].result_pickle.exists():
            log = paths[0].stderr.read_text().splitlines() if paths[0].stderr.exists() else []
            errors = ["\n".join([f"Slurm says it is {self.state}; its log {paths[0].stderr} ends with", *log[-5:]])]
        return "\n".join(dict.fromkeys(errors)).strip() or None


def wait(jobs: Sequence[QueuedJob], interval: float = 2.0) -> list[JobReturn]:
    """Poll the queue until all jobs have ended; return their results."""
    while True:
        states = read_queue()
        for job in jobs:
            if states is not None and job.result is None:
                job.poll(states.get(job.job.job_id, UNKNOWN))
        results = [job.result for job in jobs if job.result is not None]
        if len(results) == len(jobs):
            return results
        time.sleep(interval)


def read_queue() -> dict[str, str] | None:
    """The state of each job of this user; None if Slurm does not answer, for example while it restarts."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else dict(line.split("|") for line in done.stdout.split())
