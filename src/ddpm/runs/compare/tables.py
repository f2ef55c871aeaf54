"""The two tables of a comparison, one row per group and one row per run: as text, and as CSV with all digits."""

import math
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from ddpm.runs.collect import RunRecord, Value
from ddpm.runs.compare.comparison import Comparison, Estimate
from ddpm.runs.compare.varying import format_value
from ddpm.runs.files import write_csv


class TextTable(NamedTuple):
    """A table whose cells are formatted."""

    header: list[str]
    rows: list[list[str]]


def right_columns(table: TextTable) -> set[int]:
    """Return the indices of the columns of numbers, which are aligned to the right."""
    columns = zip(*table.rows, strict=True)
    return {
        i
        for i, cells in enumerate(columns)
        if all(re.match(r"-?\d[\d:.–]*(e-?\d+)?( |$)|[–?]$", cell) for cell in cells)
    }


def settings_table(compared: Comparison) -> TextTable:
    """Return one row per group: settings, number of seeds, steps, and mean ± standard error of each metric."""
    rows = [
        [
            *map(format_value, group.settings.values()),
            _share(len(group.finished), len(group.seeds)),
            _steps(group.finished),
            *(_estimate(group.estimate(metric), len(group.finished)) for metric in compared.metrics),
        ]
        for group in compared.groups
    ]
    return TextTable([*compared.varying, "seeds", "step", *compared.metrics], rows)


def runs_table(compared: Comparison) -> TextTable:
    """Return one row per run: settings, state, and the newest value of each metric."""
    header = [*compared.varying, "seed", "state", "step", "time", *compared.metrics, "run", "best checkpoint"]
    rows = [
        [
            *(map(format_value, _settings(compared, run)) if run.settings else "?" * (len(compared.varying) + 1)),
            run.state,
            format_value(run.step),
            _duration(run.seconds),
            *(_number(run.metrics.get(metric)) for metric in compared.metrics),
            compared.name(run),
            run.checkpoint.name if run.checkpoint else "–",
        ]
        for run in compared.runs
    ]
    return TextTable(header, rows)


def write_settings_csv(path: Path, compared: Comparison) -> None:
    """Write one row per group: settings, finished and total seeds, and for each metric mean, standard error and n."""
    columns = [f"{metric}{part}" for metric in compared.metrics for part in ("", "_se", "_n")]
    rows = []
    for group in compared.groups:
        row: list[Value] = [*group.settings.values(), len(group.finished), len(group.seeds)]
        for metric in compared.metrics:
            row += group.estimate(metric) or (None, None, 0)
        rows.append(row)
    write_csv(path, [*compared.varying, "finished", "seeds", *columns], rows)


def write_runs_csv(path: Path, compared: Comparison) -> None:
    """Write one row per run, with the time in seconds."""
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
    write_csv(path, header, rows)


def _settings(compared: Comparison, run: RunRecord) -> list[Value]:
    """Return the varying settings of a run and its seed."""
    group = compared.group_of(run)
    values = group.settings.values() if group else [None] * len(compared.varying)
    return [*values, run.settings.get("seed")]


def _share(part: int, whole: int) -> str:
    return str(whole) if part == whole else f"{part} of {whole}"


def _steps(runs: Sequence[RunRecord]) -> str:
    steps = sorted({run.step for run in runs if run.step is not None})
    return "–".join(map(str, steps[:1] + steps[1:][-1:])) or "–"


def _estimate(estimate: Estimate | None, runs: int) -> str:
    """Format mean ± standard error: two digits of the error, at most six of the mean, and n if not all runs count."""
    if estimate is None:
        return "–"
    mean, se, n = estimate
    fewer = f" (n={n})" if n < runs else ""
    if not se:
        return f"{_number(mean)}{' ± 0' if se == 0 else ''}{fewer}"
    decimals = max(0, min(1 - _exponent(se), 5 - _exponent(mean)))
    return f"{mean:.{decimals}f} ± {se:.{decimals}f}{fewer}"


def _exponent(value: float) -> int:
    """Return the power of ten of the first digit."""
    return math.floor(math.log10(abs(value))) if value else 0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _duration(seconds: float | None) -> str:
    """Format seconds as h:mm:ss."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))
