"""A comparison as one figure. Imports no torch."""

import io
import math
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ddpm.runs.collect import Curve, RunRecord, Samples, Value
from ddpm.runs.compare.comparison import Comparison, Point
from ddpm.runs.compare.settings import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

CURVES = ("val/bpd", "val/loss")
MAX_PICTURES = 24
MAX_SETTINGS = 8  # with a panel of their own
MAX_COLOURS = 24  # that a legend can tell apart
COLUMNS = 2  # of panels
PICTURES = 6  # in a row
MAX_TICKS = 6  # of a setting: more words are turned, more numbers are left to the axis


class Drawn(NamedTuple):
    """What all panels draw from."""

    compared: Comparison
    curves: Mapping[Path, Mapping[str, Curve]]
    colours: list[str]
    """of the points"""

    def runs(self) -> list[tuple[str, RunRecord]]:
        """The runs of all points with their colours."""
        return [
            (colour, run)
            for colour, point in zip(self.colours, self.compared.points, strict=True)
            for run in point.runs
        ]


Panel = Callable[["Axes", Drawn], None]


def draw_comparison(
    compared: Comparison,
    curves: Mapping[Path, Mapping[str, Curve]],
    samples: Mapping[Path, Samples] | None = None,
    dark: bool = False,
) -> bytes | None:
    """The runs' curves over each other, their quality against each setting and against time, and their samples: a PNG.

    A colour stands for the settings, for all seeds. None if there is nothing to show.

    Args:
        curves, samples: by the run's directory.
        dark: transparent, for a dark page; else for a light one.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    shown = [run for run in compared.runs if run.directory in (samples or {})][:MAX_PICTURES]
    panels = _panels(compared, curves)
    if not panels and not shown:
        return None
    panel_rows, picture_rows = -(-len(panels) // COLUMNS), -(-len(shown) // PICTURES)
    heights = [3.1 * panel_rows + 0.25 * _legend_rows(compared)] * bool(panels) + [1.95 * picture_rows] * bool(shown)
    with matplotlib.style.context("dark_background" if dark else "default"):
        figure = Figure(figsize=(10, sum(heights)), dpi=150, layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if panels:
            _draw_panels(parts[0], panels, Drawn(compared, curves, _colours(len(compared.points))), panel_rows)
        if shown:
            _draw_samples(parts[-1], compared, {run.directory: run for run in shown}, samples or {}, picture_rows)
        png = io.BytesIO()
        figure.savefig(png, transparent=dark)
    return png.getvalue()


def _panels(compared: Comparison, curves: Mapping[Path, Mapping[str, Curve]]) -> list[Panel]:
    drawn = [curves.get(run.directory, {}) for point in compared.points for run in point.runs]
    panels: list[Panel] = [
        partial(_curve_panel, metric=metric) for metric in CURVES if any(metric in of_run for of_run in drawn)
    ]
    if compared.quality is not None and compared.points:
        panels += [partial(_setting_panel, key=key) for key in compared.varying[:MAX_SETTINGS]]
        panels.append(_time_panel)
    return panels


def _draw_panels(part: "SubFigure", panels: list[Panel], drawn: Drawn, rows: int) -> None:
    axes = part.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis, drawn)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2, linewidth=0.5)
        axis.tick_params(labelsize=8)
    for axis in axes[len(panels) :]:
        axis.remove()
    if note := _left_out(drawn.compared):
        part.suptitle(note, fontsize=9, x=0.01, ha="left")
    if 1 < len(drawn.compared.points) <= MAX_COLOURS:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=colour, marker="o", markersize=4, linewidth=1.5, label=_label(point))
            for colour, point in zip(drawn.colours, drawn.compared.points, strict=True)
        ]
        part.legend(
            handles=handles, loc="outside upper left", ncols=_legend_columns(drawn.compared), fontsize=8, frameon=False
        )


def _curve_panel(axis: "Axes", drawn: Drawn, metric: str) -> None:
    values: list[float] = []
    for colour, run in drawn.runs():
        if curve := drawn.curves.get(run.directory, {}).get(metric):
            axis.plot(*curve, color=colour, linewidth=1.2, alpha=0.8, marker="." * (len(curve.steps) < 30) or None)
            values += filter(math.isfinite, curve.values)
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axis.set_yscale("log")
    axis.set_xlabel("step", fontsize=9)
    axis.set_title(metric, fontsize=10, loc="left")


def _setting_panel(axis: "Axes", drawn: Drawn, key: str) -> None:
    """A dot for each run that counts, mean and standard error for each point; values that are no numbers, in order."""
    compared, quality = drawn.compared, str(drawn.compared.quality)
    values = list(dict.fromkeys(point.settings[key] for point in compared.points))
    numbers = [value for value in values if isinstance(value, (int, float))]
    are_numbers = len(numbers) == len(values)
    place: dict[Value, float] = {value: i for i, value in enumerate(values)}
    if are_numbers:
        place = {number: number for number in numbers}
        if min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
            axis.set_xscale("log")
        if len(numbers) <= MAX_TICKS:
            axis.set_xticks(numbers, map(text, numbers))
            axis.set_xticks([], minor=True)
    else:
        words = [_literal(textwrap.fill(text(value), 22, max_lines=3)) for value in values]
        axis.set_xticks(range(len(values)), words if len(values) <= MAX_COLOURS else [""] * len(values))
        axis.set_xlim(-0.5, len(values) - 0.5)
        if len(values) > MAX_TICKS:
            axis.tick_params(axis="x", labelrotation=90)
    for colour, point in zip(drawn.colours, compared.points, strict=True):
        for run in point.finished or point.runs:
            if quality in run.metrics:
                _dot(axis, place[point.settings[key]], run.metrics[quality], colour, run, alpha=0.6)
        if estimate := point.estimate(quality):
            axis.errorbar(
                place[point.settings[key]], estimate.mean, estimate.se or 0,
                color=colour, marker="_", markersize=14, markeredgewidth=1.5, capsize=3, linewidth=1.2,
            )  # fmt: skip
    axis.set_xlabel(_literal(key), fontsize=9)
    axis.set_title(f"{quality}, mean ± standard error", fontsize=10, loc="left")


def _time_panel(axis: "Axes", drawn: Drawn) -> None:
    quality = str(drawn.compared.quality)
    seconds = [run.seconds for _, run in drawn.runs() if run.seconds]
    unit, name = (3600, "hours") if max(seconds, default=0) > 7200 else (60, "minutes")
    for colour, run in drawn.runs():
        if quality in run.metrics and run.seconds:
            _dot(axis, run.seconds / unit, run.metrics[quality], colour, run)
    axis.set_xlabel(f"time of training [{name}]; hollow: not finished", fontsize=9)
    axis.set_title(f"{quality} against time", fontsize=10, loc="left")


def _dot(axis: "Axes", x: float, y: float, colour: str, run: RunRecord, alpha: float = 1) -> None:
    face = colour if run.state == "finished" else "none"
    axis.plot(x, y, "o", color=colour, markerfacecolor=face, markersize=5, alpha=alpha)


def _draw_samples(
    part: "SubFigure", compared: Comparison, shown: Mapping[Path, RunRecord], samples: Mapping[Path, Samples], rows: int
) -> None:
    there = sum(run.directory in samples for run in compared.runs)
    left_out = f", of {len(shown)} of {there} runs" if there > len(shown) else ""
    part.suptitle(f"newest samples{left_out}", fontsize=10, x=0.01, ha="left")
    axes = part.subplots(rows, PICTURES, squeeze=False).flatten()
    for axis, (directory, run) in zip(axes, shown.items(), strict=False):
        with Image.open(io.BytesIO(samples[directory].png)) as picture:
            axis.imshow(picture.convert("RGB"), interpolation="nearest")
        caption = [*compared.caption(run), f"step {samples[directory].step}"]
        axis.set_title(_literal("\n".join(textwrap.fill(line, 28) for line in caption[-5:])), fontsize=6.5)
    for axis in axes:
        axis.set_axis_off()


def _colours(points: int) -> list[str]:
    if points <= 10:
        return [f"C{i}" for i in range(points)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](0.05 + 0.9 * i / (points - 1))) for i in range(points)]


def _label(point: Point) -> str:
    return _literal(textwrap.shorten(", ".join(point.labels), 120, placeholder=" …"))


def _literal(words: str) -> str:
    """Not a formula, whatever is in it."""
    return words.replace("$", r"\$")


def _legend_columns(compared: Comparison) -> int:
    longest = max((len(_label(point)) for point in compared.points), default=1)
    return max(1, min(4, 130 // (longest + 8)))


def _legend_rows(compared: Comparison) -> int:
    points = len(compared.points)
    return -(-points // _legend_columns(compared)) if 1 < points <= MAX_COLOURS else 0


def _left_out(compared: Comparison) -> str:
    """What there is too much of to be shown."""
    notes = []
    if len(compared.varying) > MAX_SETTINGS:
        notes.append(f"{MAX_SETTINGS} of {len(compared.varying)} settings have a panel")
    if len(compared.points) > MAX_COLOURS:
        notes.append(f"{len(compared.points)} colours, too many for a legend")
    return "; ".join(notes)
