"""Output of the commands: numbers, the results directory, and the commands to run next."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddpm.commands.command import Plan


def printable(text: str) -> str:
    """Return a text that a terminal shows as it is: control characters and those that turn the direction are escaped.

    Names of files and errors can hold sequences that move the cursor or rewrite a line.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class PlainConsole(Console):
    """Prints every string as it is: no markup, no emoji names, no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


# A log file has no width. The default width of a terminal would break the tables.
WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
console = PlainConsole(highlight=False, markup=False, emoji=False, soft_wrap=True, width=WIDTH)


def table(title: str, *columns: str) -> Table:
    """Return an empty table whose first column is text and whose other columns are numbers."""
    empty = Table(*columns, title=title, title_justify="left")
    for column in empty.columns[1:]:
        column.justify = "right"
    return empty


def metrics_table(title: str, metrics: Mapping[str, float | None]) -> None:
    """Print one number a row, with four significant digits. None stands for NaN and is printed as a dash."""
    shown = table(title, "metric", "value")
    for name, value in metrics.items():
        shown.add_row(name, "–" if value is None else f"{value:.4g}")
    console.print(shown)


def plans(jobs: Iterable[tuple[str, Plan]]) -> None:
    """Print what each named job would do, and in which directory."""
    shown = Table("job", "would", title="Dry run: nothing is started", title_justify="left")
    shown.add_column("in", overflow="fold")
    for name, plan in jobs:
        shown.add_row(name, plan.what, str(plan.directory))
    console.print(shown)


def results(directory: Path, files: Sequence[str], next_commands: Sequence[str]) -> None:
    """Print the results directory, its files, and the commands to run next.

    A command of ddpm gets the `--config-dir` of this one, without which it would not find the user's own YAMLs.
    """
    console.print(Text.assemble("\nResults in ", (printable(str(directory)), "bold")))
    for file in files:
        console.print(f"  {file}")
    if next_commands:
        console.print("Next")
    for command in next_commands:
        # Directly after the command, so that the user can add overrides: Hydra takes them on one side of a flag.
        console.print(f"  {re.sub('^ddpm [a-z]+', lambda start: start[0] + own_config_dir(), command)}")


def own_config_dir() -> str:
    """Return the flag ` --config-dir DIR` as this command got it, for a shell; empty if it got none."""
    if not HydraConfig.initialized():
        return ""
    sources = HydraConfig.get().runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    return f" --config-dir {shlex.quote(own[0])}" if own else ""
