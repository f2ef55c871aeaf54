"""Run a search: take trials of the study, train them, record their results, until there are `n_trials`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, cast

from filelock import Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from ddpm.commands import display
from ddpm.commands.command import Plan, SweepCommand
from ddpm.errors import UserError
from ddpm.launch.jobs import job_name, load_command
from ddpm.launch.search.space import Space
from ddpm.launch.search.study import Study
from ddpm.launch.search.summary import show_study
from ddpm.launch.sweeps import check_jobs, plan_job, swept_keys_override
from ddpm.runs import Run, overrides_with_effect, run_directory
from ddpm.runs.files import make_folder
from ddpm.runs.run import is_locked
from ddpm.runs.status import INTERRUPTED


def run_search(
    config: DictConfig, overrides: Sequence[Override], loader: ConfigLoader, launcher: Launcher
) -> list[JobReturn]:
    """Train trials until the study has `n_trials`, and show all results.

    Args:
        config: the config of the sweep, with Hydra's part.
        overrides: the overrides of the sweep; Optuna chooses values of those that have several.

    Raises:
        UserError: a corner of the space is impossible, and nothing was started; or trials failed, after all had their
            turn; or the metric is not one of the run's.
        SystemExit: a trial was interrupted; the same command continues it.
    """
    if config.hydra.job.config_name != "train":
        raise UserError("only `ddpm train` can be searched: remove hydra/sweeper=optuna.")
    search = Search(config, overrides, loader)
    check_jobs(config, search.space.corners(), search.space.keys, loader, search.command)
    if config.get("dry_run"):
        search.show_plan()
        return []

    make_folder(search.study.folder / ".search")
    returns: list[JobReturn] = []
    while True:
        with ExitStack() as locks:
            batch = search.claim_trials(locks)
            if not batch:
                break
            todo = [claim for claim in batch if not claim.plan.is_done]
            jobs = [[*claim.job, *trial_overrides(search, claim)] for claim in todo]
            results = launcher.launch(jobs, initial_job_idx=len(returns)) if jobs else []
            returns += results
            failed = {c.number for c, r in zip(todo, results, strict=True) if r.status != JobStatus.COMPLETED}
            interrupted = [not search.record_result(claim, claim.number in failed) for claim in batch]
        if any(interrupted):
            sys.exit(INTERRUPTED)

    search.show_results()
    if search.failed:
        raise UserError(
            f"{len(search.failed)} trials failed; the same command tries as many new ones:\n"
            + "\n".join(f"  trial {number}: {reason}" for number, reason in search.failed.items())
        )
    return returns


class Claim(NamedTuple):
    """A trial that this process works on, while it holds the lock of the trial's run."""

    number: int
    job: list[str]
    plan: Plan


class Search:
    """The work of one process on a study. Other processes may work on the same study."""

    def __init__(self, config: DictConfig, overrides: Sequence[Override], loader: ConfigLoader):
        self.config, self.loader = config, loader
        self.command = cast(SweepCommand, load_command("train"))
        self.space = Space.of(overrides)
        self.study = Study.of(self.space, config)
        self.settings = config.hydra.sweeper
        self.failed: dict[int, str] = {}
        """reasons by number, of the trials that failed in this process"""

    def claim_trials(self, locks: ExitStack) -> list[Claim]:
        """Claim at most `n_jobs` trials; none if nothing is left to do. `locks` keeps the locks of their runs."""
        batch: list[Claim] = []
        with self.study.lock():
            for trial in self.candidates():
                lock = self.study.lock(self.directory(trial).name)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue  # another process works on this run
                if claim := self.check_trial(trial):
                    batch.append(claim)
                    locks.callback(lock.release)
                else:
                    lock.release()
                if len(batch) == self.settings.n_jobs:
                    break
        return batch

    def candidates(self) -> Iterator[FrozenTrial]:
        """The trials that have not ended, then new ones until the study has `n_trials`.

        A failed trial is replaced by the next launch, not by this one: its cause may make every trial fail.
        """
        yield from (trial for trial in self.trials() if trial.state == TrialState.RUNNING)
        while self.count_not_failed() + len(self.failed) < self.settings.n_trials:
            yield self.study.ask(self.space)

    def trials(self) -> list[FrozenTrial]:
        """All trials with a complete point. A process that was killed while it asked leaves a trial without one."""
        return [trial for trial in self.study.trials() if trial.params.keys() == self.space.varied.keys()]

    def count_not_failed(self) -> int:
        return sum(trial.state != TrialState.FAIL for trial in self.trials())

    def check_trial(self, trial: FrozenTrial) -> Claim | None:
        """Plan the run of a trial. None if its settings are impossible (then it fails) or another process trains it."""
        job, directory = self.space.job(trial.params), self.directory(trial)
        if is_locked(directory):
            return None
        try:
            plan = plan_job(self.config, job, self.loader, self.command)
        except (UserError, HydraException) as error:
            self.fail(trial.number, job, str(error))
            return None
        status = Run.read(directory).status
        if status.state == "pruned" and status.step in trial.intermediate_values:
            plan = plan._replace(is_done=True)  # this trial was pruned, and its search killed before it recorded that
        return Claim(trial.number, job, plan)

    def record_result(self, claim: Claim, job_failed: bool) -> bool:
        """Record in the study how the run of a trial ended. Returns False if the run was interrupted.

        Raises:
            UserError: the run has no such metric; other trials would not have it either.
        """
        run = Run.read(claim.plan.directory)
        metrics, metric, steps = run.read_metrics(), self.settings.metric, claim.plan.steps
        assert steps is not None  # training has a number of steps
        if job_failed and not run.is_finished(steps):
            if is_locked(claim.plan.directory):  # another process has started this run
                return True
            if run.status.state == "interrupted":
                return False
            self.fail(claim.number, claim.job, run.status.error or f"see above, and {run.directory}")
        elif run.status.state == "pruned":
            self.study.tell(claim.number, TrialState.PRUNED)
        elif metric not in metrics:
            self.fail(claim.number, claim.job, f"no {metric}")
            raise UserError(f"hydra.sweeper.metric={metric} is not a metric of the run; it has {', '.join(metrics)}.")
        elif metrics["step"] > steps:
            self.fail(
                claim.number, claim.job, f"its run has made {metrics['step']} steps, this search asks for {steps}"
            )
        elif metrics[metric] is None:  # NaN is worse than any value
            self.study.tell(claim.number, TrialState.PRUNED)
        else:
            self.study.tell(claim.number, TrialState.COMPLETE, metrics[metric])
        return True

    def fail(self, number: int, job: Sequence[str], reason: str) -> None:
        """Record a trial as failed."""
        self.failed[number] = f"{job_name(job, self.space.keys)}: {reason}"
        self.study.tell(number, TrialState.FAIL)

    def directory(self, trial: FrozenTrial) -> Path:
        """The directory of the trial's run."""
        experiment = self.config.hydra.runtime.choices.get("experiment")
        not_identity = self.config.not_identity
        job = overrides_with_effect("train", self.space.job(trial.params), not_identity)
        return run_directory("train", self.config.paths.outputs, job, experiment, not_identity)

    def show_plan(self) -> None:
        """Print what would happen to the trials that have not ended, and the state of the study."""
        trials = self.trials()
        jobs = [self.space.job(trial.params) for trial in trials if trial.state == TrialState.RUNNING]
        if jobs:
            plans = [plan_job(self.config, job, self.loader, self.command) for job in jobs]
            display.plans(zip((job_name(job, self.space.keys) for job in jobs), plans, strict=True))
        show_study(self.study, self.space, trials, self.directory)

    def show_results(self) -> None:
        """Print the table of all runs, and the state of the study."""
        trials = self.trials()
        directories = dict.fromkeys(map(self.directory, trials))
        self.command.after_sweep(self.config, [Plan(directory, "") for directory in directories])
        show_study(self.study, self.space, trials, self.directory)


def trial_overrides(search: Search, claim: Claim) -> list[str]:
    """The overrides that make a run a trial: the keys that vary, and the callback that may stop it."""
    callback = (
        f"{{_target_:ddpm.launch.search.pruning.StopHopelessTrial,study:'{search.study.name}',number:{claim.number}}}"
    )
    return [swept_keys_override(search.space.keys), f"+callbacks.pruning={callback}"]
