"""One launch of a search: it takes trials of the study and trains them, until there are enough."""

import importlib
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from ddpm.commands import display
from ddpm.commands.command import Plan
from ddpm.errors import UserError
from ddpm.launch.jobs import job_name
from ddpm.launch.search.space import Space
from ddpm.launch.search.study import Study
from ddpm.launch.sweeps import check_job, check_jobs, telling
from ddpm.runs import TRIAL, Run, run_directory
from ddpm.runs.files import make_folder
from ddpm.runs.run import is_locked
from ddpm.runs.status import INTERRUPTED


def run_search(
    config: DictConfig, overrides: Sequence[Override], loader: ConfigLoader, launcher: Launcher
) -> list[JobReturn]:
    """Check the space, work on the study until it has `n_trials`, and show how all came out.

    Args:
        config: the sweep's own, with Hydra's part.
        overrides: of the sweep, with several values where Optuna is to choose.

    Raises:
        UserError: a corner of the space cannot be, and nothing was started; or trials failed, after all had their turn.
        SystemExit: a trial was interrupted; it goes on by the same command.
    """
    if config.hydra.job.config_name != "train":
        raise UserError("a search is of `ddpm train`: leave hydra/sweeper=optuna out.")
    search = Search(config, overrides, loader)
    check_jobs(config, search.space.corners(), search.space.keys, loader, search.task)
    if config.get("dry_run"):
        search.show_plan()
        return []
    make_folder(search.study.folder / ".search")
    returns: list[JobReturn] = []
    while (batch := search.work_on_a_batch(launcher, len(returns))) is not None:
        returns += batch
    search.show()
    if search.failed:
        raise UserError(
            f"{len(search.failed)} trials failed; the same command tries as many new ones:\n"
            + "\n".join(f"  trial {number}: {reason}" for number, reason in search.failed.items())
        )
    return returns


class Claim(NamedTuple):
    """A trial that this process works on, and no other."""

    number: int
    job: list[str]
    plan: Plan


class Search:
    """One process's work on a study, beside that of others."""

    def __init__(self, config: DictConfig, overrides: Sequence[Override], loader: ConfigLoader):
        self.config, self.loader = config, loader
        self.task = importlib.import_module("ddpm.commands.train")
        self.space = Space.of(overrides)
        self.study = Study.of(self.space, config)
        self.settings = config.hydra.sweeper
        self.failed: dict[int, str] = {}
        """why, by number; the trials of this process alone"""

    def work_on_a_batch(self, launcher: Launcher, launched: int) -> list[JobReturn] | None:
        """Train some trials; None where nothing is left to do.

        Raises:
            UserError: the metric is none that a run has; other trials would not have it either.
            SystemExit: one was interrupted.
        """
        with ExitStack() as held:
            with self.study.lock():
                batch = self.claim(held)
            if not batch:
                return None
            todo = [claim for claim in batch if not claim.plan.is_done]
            returns = list(launcher.launch([self.told(claim) for claim in todo], launched)) if todo else []
            broken = {claim.number for claim, r in zip(todo, returns, strict=True) if r.status != JobStatus.COMPLETED}
            ended = [self.settle(claim, claim.number in broken) for claim in batch]
            if not all(ended):
                sys.exit(INTERRUPTED)
            return returns

    def claim(self, held: ExitStack) -> list[Claim]:
        """Trials to work on, at most `n_jobs`; their locks are in `held`."""
        batch: list[Claim] = []
        for trial in self.candidates():
            lock = self.study.lock(self.directory(trial).name)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            held.callback(lock.release)
            if (claim := self.look_into(trial)) is None:
                lock.release()
                continue
            batch.append(claim)
            if len(batch) == self.settings.n_jobs:
                break
        return batch

    def candidates(self) -> Iterator[FrozenTrial]:
        """The trials that have not ended, then new ones up to `n_trials`.

        Those that fail are not replaced by this process, but by the next launch: what made one fail may make all.
        """
        yield from (trial for trial in self.trials() if trial.state == TrialState.RUNNING)
        while sum(trial.state != TrialState.FAIL for trial in self.trials()) < self.settings.n_trials - len(
            self.failed
        ):
            yield self.study.ask(self.space)

    def trials(self) -> list[FrozenTrial]:
        """Those of the study that have a point: whoever asked for another was killed before it had one."""
        return [trial for trial in self.study.trials() if trial.params.keys() == self.space.varied.keys()]

    def look_into(self, trial: FrozenTrial) -> Claim | None:
        """What is to be done for a trial; None if nothing can be.

        Its run may train in another process, which has outlived its search or is of another one; then it is left. Or
        its settings do not go together, of which it is told.
        """
        job, directory = self.space.job(trial.params), self.directory(trial)
        if is_locked(directory):
            return None
        try:
            plan = check_job(self.config, job, self.loader, self.task)
        except (UserError, HydraException) as error:
            self.fail(trial.number, job, str(error))
            return None
        status = Run.read(directory).status
        if status.state == "pruned" and status.step in trial.intermediate_values:  # and nobody lived to tell it
            plan = plan._replace(is_done=True)
        return Claim(trial.number, job, plan)

    def told(self, claim: Claim) -> list[str]:
        """The overrides of a trial's job."""
        return [*claim.job, telling(self.space.keys), f"hydra.job.env_set.{TRIAL}='{self.study.name}:{claim.number}'"]

    def settle(self, claim: Claim, broken: bool) -> bool:
        """Tell the study how a trial ended; False if it was interrupted, and has not ended."""
        run = Run.read(claim.plan.directory)
        state, metrics, metric = run.status.state, run.read_metrics(), self.settings.metric
        steps = claim.plan.steps
        assert steps is not None  # it trains
        if broken and not run.is_finished(steps):
            if is_locked(claim.plan.directory):  # another process was the first there
                return True
            if state == "interrupted":
                return False
            self.fail(claim.number, claim.job, run.status.error or f"see above, and {run.directory}")
        elif state == "pruned":
            self.study.tell(claim.number, TrialState.PRUNED)
        elif metric not in metrics:
            self.fail(claim.number, claim.job, f"no {metric}")
            raise UserError(f"hydra.sweeper.metric={metric} is not among what a run measures: {', '.join(metrics)}.")
        elif metrics["step"] > steps:
            self.fail(claim.number, claim.job, f"its run has made {metrics['step']} steps, more than this search's do")
        elif metrics[metric] is None:  # NaN: as bad as can be
            self.study.tell(claim.number, TrialState.PRUNED)
        else:
            self.study.tell(claim.number, TrialState.COMPLETE, metrics[metric])
        return True

    def fail(self, number: int, job: Sequence[str], reason: str) -> None:
        self.failed[number] = f"{job_name(job, self.space.keys)}: {reason}"
        self.study.tell(number, TrialState.FAIL)

    def show_plan(self) -> None:
        """Print how the study stands, and what would become of the trials that have begun."""
        trials = self.trials()
        jobs = [self.space.job(trial.params) for trial in trials if trial.state == TrialState.RUNNING]
        if jobs:
            plans = [check_job(self.config, job, self.loader, self.task) for job in jobs]
            display.plans(zip((job_name(job, self.space.keys) for job in jobs), plans, strict=True))
        self.show_study(trials)

    def show(self) -> None:
        """Print the table of all trials' runs, and how the study stands."""
        trials = self.trials()
        directories = dict.fromkeys(map(self.directory, trials))
        self.task.after_sweep(self.config, [Plan(directory, "") for directory in directories])
        self.show_study(trials)

    def show_study(self, trials: Sequence[FrozenTrial]) -> None:
        """Print how many trials have ended in which way, the best, and what to do with it."""
        counts = Counter(trial.state for trial in trials)
        done = counts[TrialState.COMPLETE] + counts[TrialState.PRUNED]
        to_go = max(self.settings.n_trials - done - counts[TrialState.RUNNING], 0)
        numbers = {
            f"of {self.settings.n_trials} trials done": done,
            "of them stopped early": counts[TrialState.PRUNED],
            "begun": counts[TrialState.RUNNING],
            "to go": to_go,
            "failed": counts[TrialState.FAIL],
        }
        shown = ", ".join(f"{number} {what}" for what, number in numbers.items() if number or what.endswith("done"))
        display.console.print(f"Study {self.study.name} in {self.study.place}: {shown}")
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        if complete:
            sign = 1 if self.settings.direction == "minimize" else -1
            best = min(complete, key=lambda trial: sign * trial.values[0])
            point = job_name(self.space.job(best.params), self.space.keys)
            display.console.print(f"The best is {point}: {self.settings.metric} {best.value:.4g}")
            directory = self.directory(best)
            typed = [o for o in self.space.job(best.params) if o.split("=")[0].lstrip("+") not in ("sweep", "dry_run")]
            commands = [f"ddpm train {shlex.join(typed)}", f"ddpm sample ckpt={shlex.quote(str(directory))}"]
            display.results(directory, [], commands)

    def directory(self, trial: FrozenTrial) -> Path:
        """Of the run at a trial's point."""
        experiment = self.config.hydra.runtime.choices.get("experiment")
        job = self.space.job(trial.params)
        return run_directory("train", self.config.paths.outputs, job, experiment, self.config.not_identity)
