"""A sweep's jobs in the queue of Slurm, through submitit: put there as an array, and watched. Imports no torch."""

import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from ddpm.errors import UserError

FORGOTTEN = "FORGOTTEN"  # by Slurm, some minutes after its end
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", FORGOTTEN,
}  # fmt: skip
PATIENCE = 15.0  # seconds until a file that another node has written must be seen here
# The settings that submitit has for all schedulers; it wants the others with a prefix.
GPUS = ("cuda", "xpu")
GENERAL = {"name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"}


@dataclass
class SweepJob:
    """What submitit pickles, and calls in each of the job's processes.

    Where the plugin's call returns that the job failed, this raises, so that the process ends with an error: Slurm
    and the job's other processes must hear of it.
    """

    plugin: Any
    overrides: Sequence[str]
    number: int
    singletons: dict[type, Singleton]

    def __call__(self) -> JobReturn:
        done: JobReturn = self.plugin(self.overrides, "hydra.sweep.dir", self.number, str(self.number), self.singletons)
        _ = done.return_value  # raises what the job raised
        return done

    def checkpoint(self) -> Any:
        """The same again: submitit asks when it puts the job back into the queue. The run has its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch(
    settings: Mapping[str, Any], context: Mapping[str, Any], job_overrides: Sequence[Sequence[str]], first_number: int
) -> list[JobReturn]:
    """Submit the jobs as one array and wait until all have ended, showing how each fares.

    hydra-submitit-launcher does what a job does. Its own waiting ends at the first job that failed, and never for a
    job that was killed where Slurm keeps no accounts.

    Args:
        settings: those of conf/hydra/launcher/slurm.yaml.
        context: what Hydra tells a launcher at its set-up.

    Raises:
        UserError: submitit is missing, or Slurm does not take such jobs.
    """
    try:
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher  # type: ignore[import-untyped]
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: hydra/launcher=slurm needs it, pip install -e '.[slurm]'") from error
    plugin = SlurmLauncher()
    plugin.setup(**context)
    calls = [
        SweepJob(plugin, list(overrides), number, Singleton.get_state())
        for number, overrides in enumerate(job_overrides, first_number)
    ]
    options: dict[str, Any] = {
        key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in settings.items()
    }
    folder, timeouts = options.pop("submitit_folder"), options.pop("max_num_timeout")
    if options["gpus_per_node"] is None and OmegaConf.select(context["config"], "trainer.accelerator") in GPUS:
        options["gpus_per_node"] = options["tasks_per_node"]
    options["srun_args"] = ["--kill-on-bad-exit=1"]  # one process alone would wait for the others for long
    try:
        executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        executor.update_parameters(**{k if k in GENERAL else f"slurm_{k}": v for k, v in options.items()})
        jobs = executor.submit_array(calls)
    except (FailedJobError, RuntimeError, NameError, AssertionError) as error:
        raise UserError(f"hydra/launcher=slurm: {error}") from error
    number, shared = jobs[0].job_id.split("_")[0], set(job_overrides[0]).intersection(*job_overrides)
    own = [[override for override in overrides if override not in shared] for overrides in job_overrides]
    print(f"{len(jobs)} in Slurm's queue as {number}, logs in {jobs[0].paths.folder.parent}", flush=True)
    try:
        return wait([WaitedFor(job, " ".join([job.job_id, *o])) for job, o in zip(jobs, own, strict=True)])
    except KeyboardInterrupt:
        print(f"\nthe jobs go on without this command: `scancel {number}` stops them.", file=sys.stderr)
        raise


@dataclass
class WaitedFor:
    """A job of submitit's in the queue."""

    job: Any
    name: str
    state: str = ""
    since: float = 0.0
    outcome: JobReturn | None = None

    def look(self, state: str) -> None:
        """Show what is new, and set the outcome once the job has left a result or was ended without.

        Args:
            state: the job's in the queue.
        """
        is_new = state != self.state
        if is_new:
            self.state, self.since = state, time.monotonic()
        was_ended = state in ENDED and time.monotonic() - self.since > PATIENCE
        if was_ended or self.job.task(0).paths.result_pickle.exists():
            self.outcome = self.result()
            finished = self.outcome.status == JobStatus.COMPLETED
            print(f"{self.name}: {'finished' if finished else f'failed: {self.outcome._return_value}'}", flush=True)
        elif is_new and state not in ENDED:
            print(f"{self.name}: {state.lower()}", flush=True)

    def result(self) -> JobReturn:
        """What the job's processes have left, with an error of any of them as the job's."""
        paths = [self.job.task(i).paths for i in range(self.job.num_tasks)]
        left = [pickle.loads(path.result_pickle.read_bytes()) for path in paths if path.result_pickle.exists()]
        # submitit keeps the traceback's text, of which our own errors need the message alone.
        errors = [text.rpartition(f"{UserError.__module__}.UserError: ")[2] for kind, text in left if kind == "error"]
        if not errors and paths[0].result_pickle.exists():
            done: JobReturn = left[0][1]
            return done
        if not errors:
            log = paths[0].stderr.read_text().splitlines() if paths[0].stderr.exists() else []
            errors = ["\n".join([f"Slurm says it is {self.state}; its log {paths[0].stderr} ends with", *log[-5:]])]
        failed = JobReturn(status=JobStatus.FAILED)
        failed.return_value = UserError("\n".join(dict.fromkeys(errors)).strip())
        return failed


def wait(jobs: Sequence[WaitedFor], interval: float = 2.0) -> list[JobReturn]:
    """The outcome of each job, once all have one."""
    while True:
        states = queue()
        for job in jobs:
            if states is not None and job.outcome is None:
                job.look(states.get(job.job.job_id, FORGOTTEN))
        outcomes = [job.outcome for job in jobs if job.outcome is not None]
        if len(outcomes) == len(jobs):
            return outcomes
        time.sleep(interval)


def queue() -> dict[str, str] | None:
    """The state of each job of the user's that Slurm knows; None where Slurm does not answer, as when it restarts."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else dict(line.split("|") for line in done.stdout.split())
