"""`ddpm report`: the runs of a sweep, or of any directories, side by side."""

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.measure import Measurement
from rich.progress import track
from rich.table import Table

from ddpm.commands import display
from ddpm.commands.command import Plan
from ddpm.config import override, user_path
from ddpm.errors import UserError
from ddpm.runs import results_name
from ddpm.runs.collect import find_runs, read_curves, read_run, samples_over_time
from ddpm.runs.compare import (
    METRICS,
    Comparison,
    TextTable,
    compare,
    draw_comparison,
    html_page,
    markdown_page,
    right_columns,
    runs_table,
    settings_table,
    states,
    write_runs_csv,
    write_settings_csv,
)
from ddpm.runs.compare.figure import CURVES, PICTURES
from ddpm.runs.files import make_folder, replace_file


def run(cfg: DictConfig) -> None:
    """Print the tables of all runs at or below `runs`, and write them with plots as CSV, Markdown, PNG and HTML.

    Raises:
        UserError: there are no runs.
    """
    places = places_of(cfg)
    compared = compare([read_run(directory) for directory in find_runs(places)])
    directory = report_directory(cfg)
    make_folder(directory)
    files = write(directory, compared, title(places))
    show_comparison(compared)
    display.results(directory, files, next_commands(compared))


def plan(cfg: DictConfig) -> Plan:
    """Return what `run` would do.

    Raises:
        UserError: there are no runs.
    """
    return Plan(report_directory(cfg), f"compare {len(find_runs(places_of(cfg)))} runs")


def show(directories: Sequence[Path]) -> None:
    """Print the tables of these runs. A run that has not started has the state "absent"."""
    if directories:
        show_comparison(compare([read_run(directory) for directory in directories]))


def places_of(cfg: DictConfig) -> list[Path]:
    """Return the directories that `runs=` names: one, or a list."""
    named: list[Any] = list(cfg.runs) if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    if not named or not all(named):
        raise UserError("runs is empty: give a directory, for example runs=outputs/train")
    return [user_path(str(place)) for place in named]


def title(places: Sequence[Path]) -> str:
    """Return the title of the report: the names of the folders, without the folders above them."""
    names = list(dict.fromkeys(place.resolve().name or "/" for place in places))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"Runs of {', '.join(names[:3])}{more}"


def report_directory(cfg: DictConfig) -> Path:
    """Return `outputs/report/<name of the runs' folder>`."""
    name, mark = results_name(places_of(cfg), cfg.paths.outputs)
    return user_path(cfg.paths.outputs) / "report" / name.with_name(name.name + mark)


def write(directory: Path, compared: Comparison, title: str) -> list[str]:
    """Write all files of the report, and return a line about each."""
    console = display.console
    shown = track(compared.runs, "reading the curves", console=console, transient=True, disable=not console.is_terminal)
    curves = {run.directory: read_curves(run.directory, CURVES) for run in shown}
    number = PICTURES if len(compared.runs) == 1 else 1
    samples = {run.directory: samples_over_time(run.directory, number) for run in compared.runs}
    light, dark = draw_comparison(compared, curves), draw_comparison(compared, curves, dark=True)
    picture = draw_comparison(compared, curves, samples)

    page = html_page(title, compared, {"light": light, "dark": dark} if light and dark else {}, samples)
    replace_file(directory / "report.html", page.encode(errors="replace"))
    replace_file(directory / "report.md", markdown_page(title, compared).encode(errors="replace"))
    write_runs_csv(directory / "runs.csv", compared)
    write_settings_csv(directory / "settings.csv", compared)
    if picture is None:
        (directory / "report.png").unlink(missing_ok=True)  # of an earlier report
    else:
        replace_file(directory / "report.png", picture)
    return [
        "report.html: everything on one page, for a browser",
        *(["report.png: curves, settings, samples"] if picture else []),
        "report.md: the tables",
        "settings.csv, runs.csv: one row for each setting, and for each run",
    ]


def show_comparison(compared: Comparison) -> None:
    """Print the table of the settings, the table of the runs, and the path and error of each run."""
    if any(group.finished for group in compared.groups):
        print_table(settings_table(compared), compared.counted.capitalize())
    header, rows = runs_table(compared)
    only_in_files = {*METRICS, "best checkpoint", "run"} - {compared.quality}
    kept = [i for i, name in enumerate(header) if name not in only_in_files]
    numbered = [[str(n), *(row[i] for i in kept)] for n, row in enumerate(rows, start=1)]
    table = TextTable(["#", *(header[i] for i in kept)], numbered)
    print_table(table, f"{states(compared)} in {compared.root}")
    for n, run in enumerate(compared.runs, start=1):
        display.console.print(f"{n:3}  {run.checkpoint or run.directory}")
        if run.error:
            display.console.print(textwrap.indent(run.error, " " * 5), style="red")


def print_table(table: TextTable, title: str) -> None:
    """Print a table."""
    console = display.console
    shown = Table(title=title, title_justify="left")
    right = right_columns(table)
    for i, name in enumerate(table.header):
        shown.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    if not console.is_terminal:  # a log has no width: one row is one line
        shown.width = Measurement.get(console, console.options.update_width(1000), shown).maximum
    console.print(shown)


def next_commands(compared: Comparison) -> list[str]:
    """Return useful next commands."""
    best = compared.best_run
    ckpt = override("ckpt", best.checkpoint) if best else ""
    return [
        *([f"ddpm evaluate {ckpt}", f"ddpm sample {ckpt}"] if best else []),
        f"tensorboard --logdir {shlex.quote(str(compared.root))}",
    ]
