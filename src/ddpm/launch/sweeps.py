"""Run a grid sweep: check all jobs before the first job starts, launch them, and compare the results at the end.

This module does not import torch; some of the commands do.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from rich.progress import track

from ddpm.commands import display
from ddpm.commands.command import Command, Plan
from ddpm.errors import UserError
from ddpm.launch.hydra_internals import as_current_job
from ddpm.launch.jobs import check_values, job_name, load_command
from ddpm.launch.mistakes import explain
from ddpm.runs import SWEPT_KEYS, Run
from ddpm.runs.run import is_locked


def run_sweep(
    config: DictConfig, overrides: Sequence[Override], loader: ConfigLoader, launcher: Launcher
) -> list[JobReturn]:
    """Check all jobs of a grid, launch the unfinished jobs, show all results, and return the launched jobs' returns.

    Args:
        config: the config of the sweep, including the `hydra` node.
        overrides: the overrides of the sweep. Each combination of their values is one job.

    Raises:
        UserError: some jobs are impossible (then no job has started), or some jobs failed (then all jobs have been
            tried). Jobs held by another process are not failures.
    """
    command = load_command(config.hydra.job.config_name)
    swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
    jobs = grid(overrides)
    if not jobs:
        empty = [str(override.input_line) for override in overrides if override.is_sweep_override()]
        raise UserError(f"{' '.join(empty)}: a range or a glob gives no value, so the sweep has no jobs.")
    plans = check_jobs(config, jobs, swept, loader, command)
    if config.get("dry_run"):
        display.plans(zip((job_name(job, swept) for job in jobs), plans, strict=True))
        return []

    todo = [(job, plan) for job, plan in zip(jobs, plans, strict=True) if not plan.is_done]
    if len(todo) < len(jobs):
        display.console.print(f"{len(jobs) - len(todo)} of {len(jobs)} jobs were finished before")
    returns: list[JobReturn] = []
    batch_size = config.hydra.sweeper.max_batch_size or max(len(todo), 1)
    for start in range(0, len(todo), batch_size):
        batch = [[*job, swept_keys_override(swept)] for job, _ in todo[start : start + batch_size]]
        returns += launcher.launch(batch, initial_job_idx=start)

    if hasattr(command, "after_sweep"):
        command.after_sweep(config, plans)
    not_completed = [
        (job_name(job, swept), plan)
        for (job, plan), result in zip(todo, returns, strict=True)
        if result.status != JobStatus.COMPLETED
    ]
    if elsewhere := [name for name, plan in not_completed if is_done_elsewhere(plan)]:
        display.console.print(f"Skipped, because another process trains or has trained them: {'; '.join(elsewhere)}")
    if failed := [name for name, _ in not_completed if name not in elsewhere]:
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")
    return returns


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job, for all combinations of the values. The last override of a key wins.

    Raises:
        UserError: an override is an interval, not a list of values.
    """
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: a grid needs a list of values. For an interval, use a "
                            "search: hydra/sweeper=optuna.")  # fmt: skip
    return [list(job) for job in itertools.product(*choices.values())]


def swept_keys_override(swept: Sequence[str]) -> str:
    """Return the override that sets the environment variable `SWEPT_KEYS` of a job."""
    return f"hydra.job.env_set.{SWEPT_KEYS}='{','.join(swept)}'"


def is_done_elsewhere(plan: Plan) -> bool:
    """Return whether another process trains the job's run or has finished the run."""
    finished = plan.steps is not None and Run.read(plan.directory).is_finished(plan.steps)
    return finished or is_locked(plan.directory)


def check_jobs(
    config: DictConfig, jobs: Sequence[Sequence[str]], swept: Sequence[str], loader: ConfigLoader, command: Command
) -> list[Plan]:
    """Compose and check each job, and return the plan of each job.

    Raises:
        UserError: some jobs do not compose, cannot be built, or are the same run. The message names all these jobs.
    """
    plans: list[Plan] = []
    problems: list[str] = []
    names: dict[Path, list[str]] = defaultdict(list)
    for job in track(jobs, "checking the jobs", console=display.console, transient=True, disable=len(jobs) < 2):
        try:
            plans.append(plan_job(config, job, loader, command))
        except (UserError, HydraException) as error:
            reason = explain(error, config.hydra.job.config_name, job) if isinstance(error, HydraException) else error
            problems.append(f"  {job_name(job, swept)}: {reason}")
        else:
            names[plans[-1].directory].append(job_name(job, swept))
    problems += [
        f"  {' and '.join(same)} are the same run, {directory}: the jobs differ only in settings that do not "
        "change a run's directory"
        for directory, same in names.items()
        if len(same) > 1
    ]
    if problems:
        raise UserError("\n".join(["nothing was started, because some jobs are impossible:", *problems]))
    return plans


def plan_job(config: DictConfig, job: Sequence[str], loader: ConfigLoader, command: Command) -> Plan:
    """Compose and check one job of a sweep, and return its plan.

    Raises:
        UserError, HydraException: the job's config does not compose, or its objects cannot be built.
    """
    with as_current_job(loader.load_sweep_config(config, list(job))) as task_config:
        check_values(config.hydra.job.config_name, task_config)
        return command.plan(task_config)
