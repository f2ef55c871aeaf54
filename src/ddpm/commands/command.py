"""What every command is: `plan` and `run`, and after a sweep, if it has one, `after_sweep`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from omegaconf import DictConfig


class Plan(NamedTuple):
    """What a job would do."""

    directory: Path
    """of its results"""
    what: str
    """in words"""
    is_done: bool = False
    """nothing is left to do"""
    steps: int | None = None
    """optimizer steps that it makes in all, if it trains"""


class Command(Protocol):
    """A module `ddpm.commands.NAME`; its config is `conf/NAME.yaml`."""

    def plan(self, cfg: DictConfig) -> Plan:
        """Check the config and say what `run` would do. Writes nothing.

        Raises:
            UserError: the job would be refused.
        """

    def run(self, cfg: DictConfig) -> Any:
        """Do the work.

        Raises:
            UserError: a mistake of the user.
        """


@runtime_checkable
class ComparesJobs(Protocol):
    """A command that shows the jobs of a sweep side by side."""

    def after_sweep(self, cfg: DictConfig, plans: Sequence[Plan]) -> None:
        """Called once, after the last job."""
