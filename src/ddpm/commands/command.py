"""The contract of a command. The command NAME is the module `ddpm.commands.NAME` and the config `conf/NAME.yaml`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from omegaconf import DictConfig


class Plan(NamedTuple):
    """What a job would do."""

    directory: Path
    """of the results"""
    what: str
    """in words"""
    is_done: bool = False
    """whether nothing is left to do"""
    steps: int | None = None
    """total optimizer steps, if the job trains"""


class Command(Protocol):
    """What the module of every command has."""

    def plan(self, cfg: DictConfig) -> Plan:
        """Check the config and return what `run` would do. Writes no results, but may download data or a model.

        Raises:
            UserError: the job would be refused.
        """

    def run(self, cfg: DictConfig) -> Any:
        """Do the work. A search minimizes the returned number.

        Raises:
            UserError: a mistake of the user.
        """


class SweepCommand(Command, Protocol):
    """A command that also shows the jobs of a sweep together."""

    def after_sweep(self, cfg: DictConfig, plans: Sequence[Plan]) -> None:
        """Show the results of all jobs, after the last one."""
