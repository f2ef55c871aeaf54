"""A study: the points that Optuna has chosen for one search, and what came of them, in a database."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ddpm.config import build
from ddpm.errors import UserError
from ddpm.launch.search.space import Space
from ddpm.runs import TRIAL, identity_overrides, run_directory

MAKES_ANOTHER_STUDY = {"trainer.max_steps", "trainer.max_epochs"}
"""makes no other run, but another metric of it"""


@dataclass(frozen=True)
class Study:
    """A study and the settings of Hydra's sweeper for it."""

    name: str
    folder: Path
    """of the runs"""
    settings: DictConfig

    @classmethod
    def of(cls, space: Space, config: DictConfig) -> Self:
        """The study of all searches that ask for the same.

        Args:
            config: the sweep's own, with Hydra's part.

        Raises:
            UserError: a setting is out of its range.
        """
        settings, experiment = config.hydra.sweeper, config.hydra.runtime.choices.get("experiment")
        asked = identity_overrides(space.fixed, set(config.not_identity) - MAKES_ANOTHER_STUDY)
        varied = {key: distribution_to_json(among) for key, among in sorted(space.varied.items())}
        exact = json.dumps([experiment, asked, varied, settings.metric, settings.direction])
        digest = hashlib.sha256(exact.encode()).hexdigest()[:10]
        study = cls(f"{'_'.join(sorted(space.keys))}.{digest}", folder_of(config, experiment), settings)
        for name in ("n_trials", "n_jobs"):
            if settings[name] < 1:
                raise UserError(f"hydra.sweeper.{name}={settings[name]} must be at least 1.")
        if settings.direction not in ("minimize", "maximize"):
            raise UserError(f"hydra.sweeper.direction={settings.direction} is neither minimize nor maximize.")
        if settings.sampler._target_ == "optuna.samplers.GridSampler":
            raise UserError("a grid needs no search: leave hydra/sweeper out.")
        study.sampler(0)
        build(settings.pruner)
        return study

    @property
    def url(self) -> str:
        """Of the database."""
        return str(self.settings.storage or f"sqlite:///{self.folder / 'search.db'}")

    @property
    def place(self) -> str:
        """The database, to be shown."""
        return re.sub(r":[^:@/]+@", ":***@", self.url)  # without the password

    def open(self) -> optuna.Study:
        """The study as it stands, begun if need be. For news it must be opened again: Optuna does not look twice at
        a trial that it has begun itself, but ours are trained in other processes.

        Raises:
            UserError: the database does not answer.
        """
        options = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {}  # seconds, for a lock
        with self.users_errors():
            return optuna.create_study(
                storage=optuna.storages.RDBStorage(self.url, engine_kwargs=options),
                study_name=self.name,
                direction=self.settings.direction,
                pruner=build(self.settings.pruner),
                sampler=optuna.samplers.RandomSampler(),  # `ask` takes the one that is set
                load_if_exists=True,
            )

    def exists(self) -> bool:
        """Whether it has begun.

        Raises:
            UserError: the database does not answer.
        """
        with self.users_errors():
            url = make_url(self.url)
            if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
                return False  # to ask would make it
            if not inspect(create_engine(url)).has_table("studies"):
                return False
            return self.name in {study.study_name for study in optuna.get_all_study_summaries(self.url)}

    @contextmanager
    def users_errors(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"the database of the study, hydra.sweeper.storage={self.place}: {error}") from error

    def trials(self) -> list[FrozenTrial]:
        """As they stand; none where the study has not begun."""
        return self.open().get_trials() if self.exists() else []

    def ask(self, space: Space) -> FrozenTrial:
        """A new trial at a point of Optuna's choice."""
        study = self.open()
        study.sampler = self.sampler(len(study.get_trials(deepcopy=False)))
        number = study.ask(fixed_distributions=dict(space.varied)).number
        return study.get_trials(deepcopy=False)[number]

    def sampler(self, trials: int) -> optuna.samplers.BaseSampler:
        """What chooses the next point, after so many. One seed, after a restart or in another process, would choose
        the first points again, so it goes on with their number."""
        seed = (self.settings.sampler.seed or 0) + trials
        sampler: optuna.samplers.BaseSampler = build(self.settings.sampler, seed=seed)
        return sampler

    def tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        """How a trial ended; `value` of a complete one."""
        self.open().tell(number, value, state)

    def report(self, number: int, step: int, value: float) -> bool:
        """Report a running trial's value after a step, once; whether it is hopeless, says the pruner."""
        study = self.open()
        before = study.get_trials(deepcopy=False)[number]
        trial = optuna.Trial(study, before._trial_id)
        if step not in before.intermediate_values:  # else it goes on from a checkpoint before that
            trial.report(value, step)
        return trial.should_prune()

    def lock(self, what: str = "study") -> FileLock:
        """For whoever asks for points ("study"), and whoever works on one."""
        digest = hashlib.sha256(what.encode()).hexdigest()[:10]
        return FileLock(self.folder / ".search" / f"{self.name}.{digest}.lock")


class RunningTrial:
    """The trial that this job is."""

    def __init__(self, study: Study, number: int):
        self.study, self.number = study, number

    @classmethod
    def of_this_job(cls, config: DictConfig) -> Self:
        name, _, number = os.environ[TRIAL].rpartition(":")
        hydra = HydraConfig.get()
        folder = folder_of(config, hydra.runtime.choices.get("experiment"))
        return cls(Study(name, folder, hydra.sweeper), int(number))

    def is_hopeless(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Report the study's metric after a step; whether the training is to stop."""
        metric = self.study.settings.metric
        if metric not in metrics:
            return False
        try:
            return self.study.report(self.number, step, float(metrics[metric]))
        except (UserError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            warnings.warn(f"trial {self.number} goes on, but could not be reported: {error}", stacklevel=2)
            return False


def folder_of(config: DictConfig, experiment: str | None) -> Path:
    """Of an experiment's runs."""
    return run_directory("train", config.paths.outputs, (), experiment).parent
