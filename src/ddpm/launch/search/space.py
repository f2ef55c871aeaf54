"""The space of a search, and its points as overrides."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from hydra.core.override_parser.types import Override
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    DiscreteUniformDistribution,
    LogUniformDistribution,
)

from ddpm.errors import UserError


@dataclass(frozen=True)
class Space:
    """The points of a search, as overrides of the runs there."""

    fixed: Sequence[str]
    """the overrides of every run"""
    varied: Mapping[str, BaseDistribution]
    """what Optuna chooses, by key"""

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Self:
        """Of two overrides with one key the later counts.

        Raises:
            UserError: there is nothing to choose, or something that cannot be searched.
        """
        last = {override.get_key_element(): override for override in overrides}
        fixed = [str(o.input_line) for o in last.values() if not o.is_sweep_override()]
        try:
            varied = {
                key: create_optuna_distribution_from_override(override)
                for key, override in last.items()
                if override.is_sweep_override()
            }
        except (ValueError, NotImplementedError, AssertionError) as error:
            raise UserError(f"the space of the search: {error}") from error
        if not varied:
            raise UserError(
                "there is nothing to search: give keys several values or an interval, for example\n"
                "  'optimizer.lr=tag(log,interval(1e-4,1e-2))' schedule=linear,cosine"
            )
        if any(key.lstrip("+") == "experiment" for key in varied):
            raise UserError("a search is within one experiment: choose one, and vary its settings.")
        return cls(fixed, varied)

    @property
    def keys(self) -> list[str]:
        return [key.lstrip("+") for key in self.varied]

    def job(self, point: Mapping[str, Any]) -> list[str]:
        """The overrides of the run at a point."""
        return [*self.fixed, *(f"{key}={spelled(point[key], among)}" for key, among in self.varied.items())]

    def corners(self) -> list[list[str]]:
        """Jobs with every choice, and both ends of every interval, of each key; the other keys at their first."""
        ends = {
            key: list(among.choices) if isinstance(among, CategoricalDistribution) else [among.low, among.high]  # type: ignore[attr-defined]
            for key, among in self.varied.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        others = [{**first, key: value} for key, values in ends.items() for value in dict.fromkeys(values[1:])]
        return [self.job(point) for point in [first, *others] if point is first or point != first]


def spelled(value: Any, among: BaseDistribution) -> str:
    """A value as it is typed: of an interval, with as many digits as tell about a thousandth of it.

    So a run's name can be typed; the study keeps all digits, which mean the same run.
    """
    if not isinstance(value, float) or isinstance(among, CategoricalDistribution):
        return str(value)
    low, high = among.low, among.high  # type: ignore[attr-defined]
    width = value * math.log(high / low) if isinstance(among, LogUniformDistribution) else high - low
    width = among.q if isinstance(among, DiscreteUniformDistribution) else width
    digits = round(3 - math.log10(width)) if width > 0 else 17
    return repr(min(max(round(value, digits), low), high))
