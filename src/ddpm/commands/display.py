"""Output of the commands: numbers, the results directory, and the commands to run next."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ddpm.commands.command import Plan

# A log file has no width. The default width of a terminal would break the tables.
WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
console = Console(highlight=False, soft_wrap=True, width=WIDTH)


def table(title: str, *columns: str) -> Table:
    """Returns an empty table whose first column is text and whose other columns are numbers."""
    empty = Table(*columns, title=title, title_justify="left")
    for column in empty.columns[1:]:
        column.justify = "right"
    return empty


def metrics_table(title: str, metrics: Mapping[str, float | None]) -> None:
    """Prints one number a row, with four significant digits. None stands for NaN and is printed as a dash."""
    shown = table(title, "metric", "value")
    for name, value in metrics.items():
        shown.add_row(name, "–" if value is None else f"{value:.4g}")
    console.print(shown)


def plans(jobs: Iterable[tuple[str, Plan]]) -> None:
    """Prints what each named job would do, and in which directory."""
    shown = Table("job", "would", title="Dry run: nothing is started", title_justify="left")
    shown.add_column("in", overflow="fold")
    for name, plan in jobs:
        shown.add_row(name, plan.what, str(plan.directory))
    console.print(shown)


def results(directory: Path, files: Sequence[str], next_commands: Sequence[str]) -> None:
    """Prints the results directory, its files, and the commands to run next."""
    console.print(f"\nResults in [bold]{directory}[/bold]")
    for file in files:
        console.print(f"  {file}")
    if next_commands:
        console.print("Next")
    for command in next_commands:
        console.print(f"  {command}")
