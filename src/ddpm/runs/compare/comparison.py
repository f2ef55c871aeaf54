"""Runs in order, and in groups that differ by their seeds alone."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddpm.runs.collect import RunRecord, Value
from ddpm.runs.compare.settings import text, varying_settings

METRICS = ("val/bpd", "val/loss", "train/loss", "images/s")


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    se: float | None
    """its standard error, None of a single run"""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        if not values:
            return None
        n = len(values)
        return cls(statistics.fmean(values), statistics.stdev(values) / n**0.5 if n > 1 else None, n)


@dataclass(frozen=True)
class Point:
    """Runs of the same settings."""

    settings: Mapping[str, Value]
    """those that vary between the points, without the seed"""
    runs: Sequence[RunRecord]

    @property
    def labels(self) -> list[str]:
        """Its settings, as a user types them."""
        return [f"{key}={text(value)}" for key, value in self.settings.items()]

    @property
    def seeds(self) -> list[RunRecord]:
        """One run a seed: of copies of a run, the one that has come furthest."""
        furthest = {run.settings.get("seed"): run for run in sorted(self.runs, key=lambda run: run.step or 0)}
        return [run for run in self.runs if any(run is other for other in furthest.values())]

    @property
    def finished(self) -> list[RunRecord]:
        """Those of the seeds that count: a run on its way is not yet what it will be."""
        return [run for run in self.seeds if run.state == "finished"]

    def estimate(self, metric: str) -> Estimate | None:
        """Over the finished runs, one a seed, that have a finite value; None where none has."""
        return Estimate.of([run.metrics[metric] for run in self.finished if metric in run.metrics])


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other."""

    root: Path
    """the directory that all are in"""
    runs: Sequence[RunRecord]
    """in the order of their settings, then seeds; last those whose config cannot be read"""
    varying: Sequence[str]
    """the settings that vary, without the seed"""
    points: Sequence[Point]
    metrics: Sequence[str]
    """of METRICS, those that any run has"""

    def name(self, run: RunRecord) -> str:
        """The run's directory, below the root."""
        return os.path.relpath(run.directory.absolute(), self.root.absolute())

    def point_of(self, run: RunRecord) -> Point | None:
        """None of a run whose config cannot be read."""
        return next((point for point in self.points if any(run is other for other in point.runs)), None)

    def caption(self, run: RunRecord) -> list[str]:
        """A run in few words, line by line."""
        point = self.point_of(run)
        if point is None or not (point.settings or len(point.runs) > 1):
            return [self.name(run)]
        return [*point.labels, f"seed {text(run.settings.get('seed'))}"]

    @property
    def quality(self) -> str | None:
        """The metric that says how good a run is: the lower the better. None where no run has one."""
        return next((metric for metric in METRICS[:3] if metric in self.metrics), None)

    @property
    def best(self) -> Point | None:
        """The point with the lowest mean, where there are several to choose from."""
        if self.quality is None:
            return None
        means = [estimate.mean if (estimate := point.estimate(self.quality)) else math.inf for point in self.points]
        known = len(means) - means.count(math.inf)
        return self.points[means.index(min(means))] if known > 1 else None

    @property
    def best_run(self) -> RunRecord | None:
        """The run with the lowest number, among those that have a checkpoint."""
        known = [run for run in self.runs if run.checkpoint and self.quality in run.metrics]
        return min(known, key=lambda run: run.metrics[str(self.quality)], default=None)


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Runs, at least one, in order and in points."""
    readable = [run for run in runs if run.settings]
    columns = varying_settings([run.settings for run in readable])
    columns.pop("seed", None)
    grouped: dict[tuple[Value, ...], list[RunRecord]] = {}
    for i in sorted(range(len(readable)), key=lambda i: str(readable[i].directory)):
        grouped.setdefault(tuple(column[i] for column in columns.values()), []).append(readable[i])
    points = [
        Point(dict(zip(columns, values, strict=True)), sorted(group, key=lambda run: _order(run.settings.get("seed"))))
        for values, group in sorted(grouped.items(), key=lambda item: [_order(value) for value in item[0]])
    ]
    root = Path(os.path.commonpath([run.directory.absolute().parent for run in runs]))
    return Comparison(
        root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root,
        [run for point in points for run in point.runs] + [run for run in runs if not run.settings],
        list(columns),
        points,
        [metric for metric in METRICS if any(metric in run.metrics for run in runs)],
    )


def _order(value: Value) -> tuple[int, float, str]:
    """Numbers before texts before nothing."""
    if isinstance(value, str):
        return 1, 0, value
    return (2, 0, "") if value is None else (0, value, "")
