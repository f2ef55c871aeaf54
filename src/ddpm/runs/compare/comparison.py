"""Runs sorted, and grouped so that the runs of a group differ only by their seeds."""

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddpm.runs.collect import RunRecord, Value
from ddpm.runs.compare.varying import format_value, varying_settings

METRICS = ("val/bpd", "val/loss", "train/loss", "images/s")
"""metrics of every training, in the order of the columns; those of callbacks follow"""
NOT_SHOWN = re.compile(r"step|epoch|lr-.*|train/grad_norm|(train|val)/loss_q\d")
"""metrics of every training that have no column"""
COMPLETE = ("finished", "stopped")
"""states of the runs that enter the means; a callback, such as EarlyStopping, ends a run as "stopped" """


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    se: float | None
    """standard error of the mean, None for a single run"""
    n: int
    """number of runs"""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Return the estimate from one value per seed, None without values."""
        if not values:
            return None
        n = len(values)
        return cls(statistics.fmean(values), statistics.stdev(values) / n**0.5 if n > 1 else None, n)


@dataclass(frozen=True)
class SeedGroup:
    """Runs with the same settings, apart from the seed."""

    settings: Mapping[str, Value]
    """the settings that vary between the groups, without the seed"""
    runs: Sequence[RunRecord]

    @property
    def labels(self) -> list[str]:
        """The settings as a user types them."""
        return [f"{key}={format_value(value)}" for key, value in self.settings.items()]

    @property
    def seeds(self) -> list[RunRecord]:
        """One run per seed. Of several runs with one seed, the one with the most steps."""
        furthest = {run.settings.get("seed"): run for run in sorted(self.runs, key=lambda run: run.step or 0)}
        return [run for run in self.runs if any(run is other for other in furthest.values())]

    @property
    def finished(self) -> list[RunRecord]:
        """The runs of `seeds` that are complete. Only these enter the means."""
        return [run for run in self.seeds if run.state in COMPLETE]

    def estimate(self, metric: str) -> Estimate | None:
        """Return the estimate over the finished runs that have a finite value, None if no run has one."""
        return Estimate.of([run.metrics[metric] for run in self.finished if metric in run.metrics])


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    root: Path
    """the directory that contains all runs"""
    runs: Sequence[RunRecord]
    """sorted by settings, then seeds; runs whose config cannot be read come last"""
    varying: Sequence[str]
    """the settings that vary, without the seed"""
    groups: Sequence[SeedGroup]
    metrics: Sequence[str]
    """those that at least one run has: METRICS, then the metrics of callbacks"""

    def name(self, run: RunRecord) -> str:
        """Return the run's directory relative to the root."""
        return os.path.relpath(run.directory.absolute(), self.root.absolute())

    def group_of(self, run: RunRecord) -> SeedGroup | None:
        """Return the group of a run, None if the run's config cannot be read."""
        return next((group for group in self.groups if any(run is other for other in group.runs)), None)

    def caption(self, run: RunRecord) -> list[str]:
        """Return a short description of a run, in lines; none if it is the only one."""
        if len(self.runs) == 1:
            return []
        group = self.group_of(run)
        if group is None or not (group.settings or len(group.runs) > 1):
            return [self.name(run)]
        return [*group.labels, f"seed {format_value(run.settings.get('seed'))}"]

    @property
    def samples_title(self) -> str:
        return "Samples through training" if len(self.runs) == 1 else "Newest samples"

    @property
    def counted(self) -> str:
        """What the tables' numbers are, in words."""
        several = any(len(group.finished) > 1 for group in self.groups)
        return "mean ± standard error over the seeds of finished runs" if several else "of finished runs, one seed each"

    @property
    def quality(self) -> str | None:
        """The metric that ranks the runs; lower is better. None if no run has such a metric."""
        return next((metric for metric in METRICS[:3] if metric in self.metrics), None)

    @property
    def best(self) -> SeedGroup | None:
        """The group with the lowest mean, None unless two groups or more have one."""
        if self.quality is None:
            return None
        means = [estimate.mean if (estimate := group.estimate(self.quality)) else math.inf for group in self.groups]
        known = len(means) - means.count(math.inf)
        return self.groups[means.index(min(means))] if known > 1 else None

    @property
    def best_run(self) -> RunRecord | None:
        """The run with the lowest value among those with a checkpoint."""
        known = [run for run in self.runs if run.checkpoint and self.quality in run.metrics]
        return min(known, key=lambda run: run.metrics[str(self.quality)], default=None)


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Sort and group the runs, of which there must be at least one."""
    readable = [run for run in runs if run.settings]
    columns = varying_settings([run.settings for run in readable])
    columns.pop("seed", None)
    grouped: dict[tuple[Value, ...], list[RunRecord]] = {}
    for i in sorted(range(len(readable)), key=lambda i: str(readable[i].directory)):
        grouped.setdefault(tuple(column[i] for column in columns.values()), []).append(readable[i])
    groups = [
        SeedGroup(
            dict(zip(columns, values, strict=True)), sorted(group, key=lambda run: _order(run.settings.get("seed")))
        )
        for values, group in sorted(grouped.items(), key=lambda item: [_order(value) for value in item[0]])
    ]
    root = Path(os.path.commonpath([run.directory.absolute().parent for run in runs]))
    return Comparison(
        root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root,
        [run for group in groups for run in group.runs] + [run for run in runs if not run.settings],
        list(columns),
        groups,
        _columns(runs),
    )


def _columns(runs: Sequence[RunRecord]) -> list[str]:
    found = {metric for run in runs for metric in run.metrics}
    own = sorted(metric for metric in found.difference(METRICS) if not NOT_SHOWN.fullmatch(metric))
    return [metric for metric in METRICS if metric in found] + own


def _order(value: Value) -> tuple[int, float, str]:
    """Return a sort key: numbers, then texts, then None."""
    if isinstance(value, str):
        return 1, 0, value
    return (2, 0, "") if value is None else (0, value, "")
