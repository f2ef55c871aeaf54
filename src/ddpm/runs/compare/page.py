"""A comparison as one page: HTML without other files, and Markdown."""

import html
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ddpm.runs.collect import Samples
from ddpm.runs.compare.comparison import Comparison
from ddpm.runs.compare.tables import TextTable, right_columns, runs_table, settings_table
from ddpm.runs.status import now


def html_page(
    title: str,
    compared: Comparison,
    plots: Mapping[str, bytes],
    samples: Mapping[Path, Sequence[Samples]],
) -> str:
    """Return the HTML page. Names and errors are escaped, so they cannot act as HTML.

    Args:
        plots: the figure as PNG, with the keys "light" and "dark"; empty if there is nothing to plot.
        samples: pictures by the run's directory.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = lambda png: f"data:image/png;base64,{b64encode(png).decode()}"
    template = environment.from_string(resources.files("ddpm.runs.compare").joinpath("page.html").read_text("utf-8"))
    return template.render(
        title=title,
        compared=compared,
        states=states(compared),
        settings=settings_table(compared),
        runs=runs_table(compared),
        right_columns=right_columns,
        plots=plots,
        samples=samples,
        time=now(),
    )


def markdown_page(title: str, compared: Comparison) -> str:
    """Return the tables and the errors as Markdown."""
    parts = [
        f"# {_inline(title)}",
        f"{_inline(states(compared))} in {_code(compared.root)}, {now()}",
        f"## Settings: {compared.counted}",
        _markdown_table(settings_table(compared)),
        "## Runs",
        f"Checkpoints are in {_code(compared.root / 'RUN' / 'checkpoints')}.",
        _markdown_table(runs_table(compared)),
    ]
    if errors := {compared.name(run): run.error for run in compared.runs if run.error}:
        parts += ["## Errors", *(f"- {_inline(name)}: {_inline(error)}" for name, error in errors.items())]
    if compared.best_run is not None:
        parts += [f"Lowest {compared.quality}: {_code(compared.best_run.checkpoint)}"]
    return "\n\n".join(parts) + "\n"


def states(compared: Comparison) -> str:
    """Return the number of runs in each state, in words."""
    counts = Counter(run.state for run in compared.runs)
    runs = f"{len(compared.runs)} run{'s' * (len(compared.runs) > 1)}"
    return f"{runs} ({', '.join(f'{n} {state}' for state, n in counts.most_common())})"


def _markdown_table(table: TextTable) -> str:
    right = right_columns(table)
    lines = [table.header, ["---:" if i in right else "---" for i in range(len(table.header))], *table.rows]
    return "\n".join(f"| {' | '.join(map(_inline, line))} |" for line in lines)


def _inline(words: str) -> str:
    """Escape words for one line of Markdown, also in a table cell."""
    escaped = re.sub(r"([\\\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", html.escape(words, quote=False))
    return " ".join(escaped.split())


def _code(text: object) -> str:
    """Return a text as code in a line of Markdown. The fence is longer than any row of backticks in the text."""
    words = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    return f"{fence} {words} {fence}" if "`" in words else f"{fence}{words}{fence}"
