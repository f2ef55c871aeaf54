"""A sweep: many jobs of one command, checked before the first one starts, compared after the last one.

Imports no torch; the commands that are checked do.
"""

import importlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from rich.progress import track

from ddpm.commands import display
from ddpm.commands.command import Plan
from ddpm.errors import UserError
from ddpm.launch.jobs import as_current_job, check_values, job_name
from ddpm.runs import SWEPT_KEYS, Run
from ddpm.runs.run import is_locked


def run_sweep(
    config: DictConfig,
    swept: Sequence[str],
    batches: Sequence[Sequence[Sequence[str]]],
    loader: ConfigLoader,
    launcher: Launcher,
) -> list[JobReturn]:
    """Check all jobs, launch those that have something to do, and show how all came out.

    Args:
        config: the sweep's own, with Hydra's part.
        swept: the keys with several values.
        batches: the overrides of each job, in groups that are launched together.

    Raises:
        UserError: a job cannot be, and nothing was started; or some failed, after all had their turn. What another
            process was training when its turn came has not.
    """
    task = importlib.import_module(f"ddpm.commands.{config.hydra.job.config_name}")
    jobs = list(chain.from_iterable(batches))
    plans = check_jobs(config, jobs, swept, loader, task)
    if config.get("dry_run"):
        display.plans(zip((job_name(job, swept) for job in jobs), plans, strict=True))
        return []

    if done := sum(plan.is_done for plan in plans):
        display.console.print(f"{done} of {len(jobs)} jobs were finished before")
    returns: list[JobReturn] = []
    broken: list[tuple[str, Plan]] = []
    remaining = iter(plans)
    for batch in batches:
        todo = [(job, plan) for job, plan in zip(batch, remaining, strict=False) if not plan.is_done]
        told = [[*job, telling(swept)] for job, _ in todo]
        results = launcher.launch(told, initial_job_idx=len(returns)) if told else []
        broken += [
            (job_name(job, swept), plan)
            for (job, plan), r in zip(todo, results, strict=True)
            if r.status != JobStatus.COMPLETED
        ]
        returns += results

    if hasattr(task, "after_sweep"):
        task.after_sweep(config, plans)
    if left := [name for name, plan in broken if is_in_other_hands(plan)]:
        display.console.print(f"Left to other processes, which had them first: {'; '.join(left)}")
    if failed := [name for name, _ in broken if name not in left]:
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")
    return returns


def is_in_other_hands(plan: Plan) -> bool:
    """Whether a job that this sweep could not do is, or was, done by another, of the same sweep started twice say."""
    finished = plan.steps is not None and Run.read(plan.directory).is_finished(plan.steps)
    return finished or is_locked(plan.directory)


def telling(swept: Sequence[str]) -> str:
    """The override by which a job knows which keys vary."""
    return f"hydra.job.env_set.{SWEPT_KEYS}='{','.join(swept)}'"


def check_jobs(
    config: DictConfig, jobs: Sequence[Sequence[str]], swept: Sequence[str], loader: ConfigLoader, task: ModuleType
) -> list[Plan]:
    """What would become of each job.

    Raises:
        UserError: names every job whose config does not compose or cannot be built, and jobs that are the same run.
    """
    plans: list[Plan] = []
    problems: list[str] = []
    same: dict[Path, list[str]] = defaultdict(list)
    for job in track(jobs, "checking the jobs", console=display.console, transient=True, disable=len(jobs) < 2):
        try:
            plans.append(check_job(config, job, loader, task))
        except (UserError, HydraException) as error:
            problems.append(f"  {job_name(job, swept)}: {error}")
        else:
            same[plans[-1].directory].append(job_name(job, swept))
    problems += [
        f"  {' and '.join(names)} are the same run, {directory}: what they differ in does not make another"
        for directory, names in same.items()
        if len(names) > 1
    ]
    if problems:
        raise UserError("\n".join(["nothing was started, since not every job can be:", *problems]))
    return plans


def check_job(config: DictConfig, job: Sequence[str], loader: ConfigLoader, task: ModuleType) -> Plan:
    """What would become of a job.

    Raises:
        UserError, HydraException: its config does not compose, or cannot be built.
    """
    with as_current_job(loader.load_sweep_config(config, list(job))) as task_config:
        check_values(config.hydra.job.config_name, task_config)
        plan: Plan = task.plan(task_config)
        return plan
