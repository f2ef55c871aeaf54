"""The two tables of a comparison, one row a point and one row a run: as text, and as CSV with all digits."""

import csv
import math
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from ddpm.runs.collect import RunRecord, Value
from ddpm.runs.compare.comparison import METRICS, Comparison, Estimate
from ddpm.runs.compare.settings import text

NUMBERS = {"#", "seeds", "seed", "step", "time", *METRICS}
"""the columns to be aligned at the right"""


class TextTable(NamedTuple):
    """A table to be read."""

    header: list[str]
    rows: list[list[str]]


def points_table(compared: Comparison) -> TextTable:
    """Settings × metrics: mean ± standard error over the seeds that are finished."""
    rows = [
        [
            *map(text, point.settings.values()),
            _share(len(point.finished), len(point.seeds)),
            _steps(point.finished),
            *(_estimate(point.estimate(metric), len(point.finished)) for metric in compared.metrics),
        ]
        for point in compared.points
    ]
    return TextTable([*compared.varying, "seeds", "step", *compared.metrics], rows)


def runs_table(compared: Comparison) -> TextTable:
    """What became of each run, and its newest numbers."""
    header = [*compared.varying, "seed", "state", "step", "time", *compared.metrics, "run", "best checkpoint"]
    rows = [
        [
            *(map(text, _settings(compared, run)) if run.settings else "?" * (len(compared.varying) + 1)),
            run.state,
            text(run.step),
            _duration(run.seconds),
            *(_number(run.metrics.get(metric)) for metric in compared.metrics),
            compared.name(run),
            run.checkpoint.name if run.checkpoint else "–",
        ]
        for run in compared.runs
    ]
    return TextTable(header, rows)


def write_points_csv(path: Path, compared: Comparison) -> None:
    """One row a point: its settings; seeds finished and seeds in all; of each metric mean, standard error and n."""
    columns = [f"{metric}{part}" for metric in compared.metrics for part in ("", "_se", "_n")]
    rows = []
    for point in compared.points:
        row: list[Value] = [*point.settings.values(), len(point.finished), len(point.seeds)]
        for metric in compared.metrics:
            row += point.estimate(metric) or (None, None, 0)
        rows.append(row)
    _write_csv(path, [*compared.varying, "finished", "seeds", *columns], rows)


def write_runs_csv(path: Path, compared: Comparison) -> None:
    """One row a run; time in seconds."""
    header = [*compared.varying, "seed", "state", "step", "seconds", *compared.metrics, "run", "checkpoint", "error"]
    rows: list[list[Value]] = [
        [
            *_settings(compared, run),
            run.state,
            run.step,
            run.seconds,
            *map(run.metrics.get, compared.metrics),
            str(run.directory),
            str(run.checkpoint or ""),
            run.error,
        ]
        for run in compared.runs
    ]
    _write_csv(path, header, rows)


def _settings(compared: Comparison, run: RunRecord) -> list[Value]:
    """The run's varying settings and its seed."""
    point = compared.point_of(run)
    values = point.settings.values() if point else [None] * len(compared.varying)
    return [*values, run.settings.get("seed")]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _share(part: int, whole: int) -> str:
    return str(whole) if part == whole else f"{part} of {whole}"


def _steps(runs: Sequence[RunRecord]) -> str:
    steps = sorted({run.step for run in runs if run.step is not None})
    return "–".join(map(str, steps[:1] + steps[1:][-1:])) or "–"


def _estimate(estimate: Estimate | None, runs: int) -> str:
    """Mean and standard error, that with two digits, and at most six of the mean; over how many, where not over all."""
    if estimate is None:
        return "–"
    mean, se, n = estimate
    fewer = f" (n={n})" if n < runs else ""
    if not se:
        return f"{_number(mean)}{' ± 0' if se == 0 else ''}{fewer}"
    decimals = max(0, min(1 - _exponent(se), 5 - _exponent(mean)))
    return f"{mean:.{decimals}f} ± {se:.{decimals}f}{fewer}"


def _exponent(value: float) -> int:
    """Of the first digit, in powers of ten."""
    return math.floor(math.log10(abs(value))) if value else 0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    """h:mm:ss."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))
