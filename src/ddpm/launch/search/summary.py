"""The state of a study, as printed at the end of a search and in a dry run."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from ddpm.commands import display
from ddpm.config import override
from ddpm.launch.jobs import job_name
from ddpm.launch.search.space import Space
from ddpm.launch.search.study import Study


def show_study(
    study: Study, space: Space, trials: Sequence[FrozenTrial], directory: Callable[[FrozenTrial], Path]
) -> None:
    """Print how many trials ended in which way, the best trial, and commands that continue from it."""
    settings = study.settings
    states = Counter(trial.state for trial in trials)
    done = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
    counts = {
        f"of {settings.n_trials} trials done": done,
        "of them stopped early": states[TrialState.PRUNED],
        "begun": states[TrialState.RUNNING],
        "to go": max(settings.n_trials - done - states[TrialState.RUNNING], 0),
        "failed": states[TrialState.FAIL],
    }
    shown = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what.endswith("done"))
    display.console.print(f"Study {study.name} in {study.shown_url}: {shown}")
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return
    sign = 1 if settings.direction == "minimize" else -1
    best = min(complete, key=lambda trial: sign * trial.values[0])
    job, run = space.job(best.params), directory(best)
    display.console.print(f"The best is {job_name(job, space.keys)}: {settings.metric} {best.value:.4g}")
    of_the_search = ("sweep", "dry_run")  # overrides that the plain command does not need
    typed = [override for override in job if override.split("=")[0].lstrip("+") not in of_the_search]
    display.results(run, [], [f"ddpm train {shlex.join(typed)}", f"ddpm sample {override('ckpt', run)}"])
