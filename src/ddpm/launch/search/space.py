"""The space of a search: what Optuna chooses, and a chosen point as overrides."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ddpm.errors import UserError


@dataclass(frozen=True)
class Space:
    """The overrides of a search."""

    fixed: Sequence[str]
    """overrides of every run"""
    varied: Mapping[str, BaseDistribution]
    """what Optuna chooses, by key"""

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Self:
        """The space that the overrides describe. The last of several overrides of one key counts.

        Raises:
            UserError: no key has several values, or a key cannot be searched.
        """
        last = {override.get_key_element(): override for override in overrides}
        fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
        varied = {key: distribution(override) for key, override in last.items() if override.is_sweep_override()}
        if not varied:
            raise UserError(
                "there is nothing to search: give keys several values or an interval, for example\n"
                "  'optimizer.lr=tag(log,interval(1e-4,1e-2))' schedule=linear,cosine"
            )
        if any(key.lstrip("+") == "experiment" for key in varied):
            raise UserError("a search stays within one experiment: choose one, and vary its settings.")
        return cls(fixed, varied)

    @property
    def keys(self) -> list[str]:
        return [key.lstrip("+") for key in self.varied]

    def job(self, point: Mapping[str, Any]) -> list[str]:
        """The overrides of the run at a point."""
        return [*self.fixed, *(f"{key}={format_value(point[key], self.varied[key])}" for key in self.varied)]

    def corners(self) -> list[list[str]]:
        """Jobs that together have every choice and both ends of every interval.

        In each job one key differs from the first job.
        """
        ends = {key: values_to_check(distribution) for key, distribution in self.varied.items()}
        first = {key: values[0] for key, values in ends.items()}
        others = [{**first, key: value} for key, values in ends.items() for value in values[1:]]
        return [self.job(point) for point in [first, *others]]


def distribution(override: Override) -> BaseDistribution:
    """The distribution from which Optuna chooses the value of an override.

    `interval(a,b)` is continuous, or integer with integer ends as in `int(interval(1,8))`. `range(a,b,step)` has the
    values that it has in a grid. `tag(log,…)` makes either logarithmic. Choices are strings, as typed.

    Raises:
        UserError: Optuna refuses the distribution.
    """
    value, text = override.value(), f"{override.input_line}: "
    try:
        if isinstance(value, IntervalSweep | RangeSweep):
            return numeric_distribution(value)
        # Hydra's own iterator would shuffle choices that are tagged so; Optuna needs one order.
        listed = isinstance(value, ChoiceSweep)
        choices = map(Transformer.str, value.list) if listed else override.sweep_string_iterator()  # type: ignore[union-attr]
        if listed and value.tags:  # type: ignore[union-attr]
            raise ValueError("a list of choices takes no tags")
        return CategoricalDistribution(list(dict.fromkeys(choices)))
    except (ValueError, HydraException) as error:
        raise UserError(f"{text}{error}") from error


def numeric_distribution(sweep: IntervalSweep | RangeSweep) -> FloatDistribution | IntDistribution:
    """The distribution of an interval or a range. Raises a ValueError for an empty one and for an unknown tag."""
    if unknown := sweep.tags - {"log"}:
        raise ValueError(f"the only tag that a search knows is log, not {', '.join(sorted(unknown))}")
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        low, high, step = sweep.start, sweep.end, None
    else:
        numbers = sorted(sweep.range())
        if not numbers:
            raise ValueError("the range is empty")
        low, high, step = numbers[0], numbers[-1], abs(sweep.step)
        if isinstance(high, float):  # in decimals, so that the step divides the interval
            high = float(Decimal(str(low)) + (len(numbers) - 1) * Decimal(str(step)))
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log, int(step or 1))
    return FloatDistribution(low, high, log, step)


def values_to_check(distribution: BaseDistribution) -> list[Any]:
    """All choices, or the ends of an interval."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return list(dict.fromkeys([distribution.low, distribution.high]))


def format_value(value: Any, distribution: BaseDistribution) -> str:
    """A value as a user would type it.

    A float of an interval is rounded to about a thousandth of the interval, so that the name of its run can be typed.
    The study keeps all digits; two points that round to the same value are the same run.
    """
    if not isinstance(distribution, FloatDistribution):
        return str(value)
    low, high = distribution.low, distribution.high
    width = distribution.step or (value * math.log(high / low) if distribution.log else high - low)
    digits = round(3 - math.log10(width)) if width > 0 else 17
    return repr(min(max(round(value, digits), low), high))
