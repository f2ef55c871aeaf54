"""A study: the trials of one search and their results, in a database."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import optuna
from filelock import FileLock
from omegaconf import DictConfig
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ddpm.config import build
from ddpm.errors import UserError
from ddpm.launch.search.optuna_internals import resume_trial
from ddpm.launch.search.space import Space
from ddpm.runs import identity_overrides, run_directory
from ddpm.secrets import mask

LENGTH_OF_TRAINING = {"trainer.max_steps", "trainer.max_epochs"}
"""These settings do not make another run, but another study: they change the metric."""

DATABASE_ERRORS = (SQLAlchemyError, ImportError, RuntimeError, optuna.exceptions.OptunaError)


@dataclass(frozen=True)
class Study:
    """A study of Optuna, opened anew for each access.

    An open study does not show what other processes have written about trials that it has asked for itself.
    """

    name: str
    folder: Path
    """the folder that holds the directories of the runs"""
    settings: DictConfig
    """`hydra.sweeper`, as in conf/hydra/sweeper/optuna.yaml"""

    @classmethod
    def of(cls, space: Space, config: DictConfig) -> Self:
        """The study of a search. Searches with the same space, metric and training share it.

        Args:
            config: the config of the sweep, with Hydra's part.

        Raises:
            UserError: a setting is out of its range.
        """
        if config.name is not None:
            raise UserError("a search names its runs by their settings: leave name out.")
        settings, experiment = config.hydra.sweeper, config.hydra.runtime.choices.get("experiment")
        fixed = identity_overrides(space.fixed, set(config.not_identity) - LENGTH_OF_TRAINING)
        varied = {key: distribution_to_json(varied) for key, varied in sorted(space.varied.items())}
        exact = json.dumps([experiment, fixed, varied, settings.metric, settings.direction])
        digest = hashlib.sha256(exact.encode()).hexdigest()[:10]
        folder = run_directory("train", config.paths.outputs, (), experiment).parent
        study = cls(f"{'_'.join(sorted(space.keys))}.{digest}", folder, settings)
        study.build_sampler(0)
        build(settings.pruner)
        return study

    @property
    def url(self) -> str:
        """The URL of the database."""
        return str(self.settings.storage or f"sqlite:///{self.folder / 'search.db'}")

    @property
    def shown_url(self) -> str:
        """The URL with its secrets masked."""
        return mask(self.url)

    def open(self) -> optuna.Study:
        """Open the study, or create it.

        Raises:
            UserError: the database cannot be used.
        """
        options = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {}  # seconds, for a lock
        with self.database_errors():
            return optuna.create_study(
                storage=optuna.storages.RDBStorage(self.url, engine_kwargs=options),
                study_name=self.name,
                direction=self.settings.direction,
                pruner=build(self.settings.pruner),
                sampler=optuna.samplers.RandomSampler(),  # replaced in `ask`
                load_if_exists=True,
            )

    def exists(self) -> bool:
        """Whether the study has been created. Does not create the database.

        Raises:
            UserError: the database cannot be used.
        """
        with self.database_errors():
            url = make_url(self.url)
            if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
                return False
            engine = create_engine(url)
            has_studies = inspect(engine).has_table("studies")
            engine.dispose()
            return has_studies and self.name in optuna.study.get_all_study_names(self.url)

    @contextmanager
    def database_errors(self) -> Iterator[None]:
        """Raise errors of the database as a UserError."""
        try:
            yield
        except DATABASE_ERRORS as error:
            raise UserError(f"the database of the study, hydra.sweeper.storage={self.shown_url}: {error}") from error

    def trials(self) -> list[FrozenTrial]:
        """All trials; an empty list if the study does not exist."""
        return self.open().get_trials() if self.exists() else []

    def ask(self, space: Space) -> FrozenTrial:
        """Start a new trial at a point that the sampler chooses."""
        study = self.open()
        study.sampler = self.build_sampler(len(study.get_trials(deepcopy=False)))
        number = study.ask(fixed_distributions=dict(space.varied)).number
        return study.get_trials(deepcopy=False)[number]

    def build_sampler(self, num_trials: int) -> optuna.samplers.BaseSampler:
        """The sampler for the next trial after `num_trials`.

        Its seed depends on the number of trials: with one fixed seed, each process would choose the first points again.
        """
        seed = self.settings.sampler.get("seed")
        sampler: optuna.samplers.BaseSampler = build(
            self.settings.sampler, **({} if seed is None else {"seed": seed + num_trials})
        )
        return sampler

    def tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        """Record how a trial ended; `value` is the metric of a complete trial."""
        self.open().tell(number, value, state)

    def report(self, number: int, step: int, value: float) -> bool:
        """Report the metric of a running trial after a step. Returns whether the pruner gives the trial up."""
        study = self.open()
        trial = resume_trial(study, number)
        reported = study.get_trials(deepcopy=False)[number].intermediate_values
        if step not in reported:  # a trial that continues from a checkpoint makes some steps again
            trial.report(value, step)
        return trial.should_prune()

    def lock(self, what: str = "study") -> FileLock:
        """A lock for asking for trials ("study"), or for working on the run with the name `what`."""
        digest = hashlib.sha256(what.encode()).hexdigest()[:10]
        return FileLock(self.folder / ".search" / f"{self.name}.{digest}.lock")
