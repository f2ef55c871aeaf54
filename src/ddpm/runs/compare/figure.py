"""A comparison as one figure. Imports no torch."""

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ddpm.runs.collect import Curve, RunRecord, Samples, Value
from ddpm.runs.compare.comparison import COMPLETE, Comparison, SeedGroup
from ddpm.runs.compare.ticks import plain_ticks
from ddpm.runs.compare.varying import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

CURVES = ("val/bpd", "val/loss")
MAX_PICTURES = 24
MAX_SETTINGS = 8  # panels of settings
MAX_COLORS = 24  # colors in the legend
COLUMNS = 2  # panels in a row
PICTURES = 6  # pictures in a row
MAX_TICKS = 6  # ticks of a setting; beyond that, words are rotated and matplotlib places the numbers


class PlotData(NamedTuple):
    """The data of all panels."""

    compared: Comparison
    curves: Mapping[Path, Mapping[str, Curve]]
    colors: list[str]
    """one color per group"""

    def runs(self) -> list[tuple[str, RunRecord]]:
        """Return the runs of all groups with their colors."""
        return [
            (color, run) for color, group in zip(self.colors, self.compared.groups, strict=True) for run in group.runs
        ]


Panel = Callable[["Axes", PlotData], None]


def draw_comparison(
    compared: Comparison,
    curves: Mapping[Path, Mapping[str, Curve]],
    samples: Mapping[Path, Sequence[Samples]] | None = None,
    dark: bool = False,
) -> bytes | None:
    """Return a PNG: the curves of all runs, the quality against each setting and against time, and the samples.

    All seeds of a group have one color. None if there is nothing to show.

    Args:
        curves, samples: by the run's directory.
        dark: draw on a transparent background for a dark page.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    pictures = [(run, of_run) for run in compared.runs for of_run in (samples or {}).get(run.directory, ())]
    shown = pictures[:MAX_PICTURES]
    panels = _panels(compared, curves)
    if not panels and not shown:
        return None
    panel_rows, picture_rows = -(-len(panels) // COLUMNS), -(-len(shown) // PICTURES)
    heights = [3.1 * panel_rows + 0.25 * _legend_rows(compared)] * bool(panels) + [1.95 * picture_rows] * bool(shown)
    with matplotlib.style.context("dark_background" if dark else "default"):
        figure = Figure(figsize=(10, sum(heights)), dpi=150, layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if panels:
            _draw_panels(parts[0], panels, PlotData(compared, curves, _colors(len(compared.groups))), panel_rows)
        if shown:
            _draw_samples(parts[-1], compared, shown, len(pictures), picture_rows)
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names may have letters of any script
            figure.savefig(png, transparent=dark)
    return png.getvalue()


def _panels(compared: Comparison, curves: Mapping[Path, Mapping[str, Curve]]) -> list[Panel]:
    all_curves = [curves.get(run.directory, {}) for group in compared.groups for run in group.runs]
    panels: list[Panel] = [
        partial(_curve_panel, metric=metric) for metric in CURVES if any(metric in of_run for of_run in all_curves)
    ]
    if compared.quality is not None and compared.groups:
        panels += [partial(_setting_panel, key=key) for key in compared.varying[:MAX_SETTINGS]]
        panels += [_time_panel] * (len(compared.runs) > 1)
    return panels


def _draw_panels(part: "SubFigure", panels: list[Panel], plot: PlotData, rows: int) -> None:
    axes = part.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis, plot)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2, linewidth=0.5)
        axis.tick_params(labelsize=8)
        plain_ticks(axis.yaxis)
    for axis in axes[len(panels) :]:
        axis.remove()
    if note := _left_out(plot.compared):
        part.suptitle(note, fontsize=9, x=0.01, ha="left")
    if 1 < len(plot.compared.groups) <= MAX_COLORS:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=color, marker="o", markersize=4, linewidth=1.5, label=_label(group))
            for color, group in zip(plot.colors, plot.compared.groups, strict=True)
        ]
        part.legend(
            handles=handles, loc="outside upper left", ncols=_legend_columns(plot.compared), fontsize=8, frameon=False
        )


def _curve_panel(axis: "Axes", plot: PlotData, metric: str) -> None:
    values: list[float] = []
    for color, run in plot.runs():
        if curve := plot.curves.get(run.directory, {}).get(metric):
            axis.plot(*curve, color=color, linewidth=1.2, alpha=0.8, marker="." * (len(curve.steps) < 30) or None)
            values += filter(math.isfinite, curve.values)
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axis.set_yscale("log")
    plain_ticks(axis.xaxis)
    axis.set_xlabel("step", fontsize=9)
    axis.set_title(metric, fontsize=10, loc="left")


def _setting_panel(axis: "Axes", plot: PlotData, key: str) -> None:
    """Draw a dot per finished run, mean and standard error per group. Values that are no numbers are evenly spaced."""
    compared, quality = plot.compared, str(plot.compared.quality)
    values = list(dict.fromkeys(group.settings[key] for group in compared.groups))
    numbers = [value for value in values if isinstance(value, (int, float))]
    are_numbers = len(numbers) == len(values)
    place: dict[Value, float] = {value: i for i, value in enumerate(values)}
    if are_numbers:
        place = {number: number for number in numbers}
        if min(numbers) > 0 and max(numbers) >= 8 * min(numbers):
            axis.set_xscale("log")
        if len(numbers) <= MAX_TICKS:
            axis.set_xticks(numbers, map(format_value, numbers))
            axis.set_xticks([], minor=True)
        else:
            plain_ticks(axis.xaxis)
    else:
        words = [_literal(textwrap.fill(format_value(value), 22, max_lines=3)) for value in values]
        axis.set_xticks(range(len(values)), words if len(values) <= MAX_COLORS else [""] * len(values))
        axis.set_xlim(-0.5, len(values) - 0.5)
        if len(values) > MAX_TICKS:
            axis.tick_params(axis="x", labelrotation=90)
    for color, group in zip(plot.colors, compared.groups, strict=True):
        for run in group.finished or group.runs:
            if quality in run.metrics:
                _dot(axis, place[group.settings[key]], run.metrics[quality], color, run, alpha=0.6)
        estimate = group.estimate(quality)
        if estimate is not None and estimate.se is not None:  # one seed has no error
            axis.errorbar(
                place[group.settings[key]], estimate.mean, estimate.se,
                color=color, marker="_", markersize=14, markeredgewidth=1.5, capsize=3, linewidth=1.2,
            )  # fmt: skip
    axis.set_xlabel(_literal(key), fontsize=9)
    has_errors = any(len(group.finished) > 1 for group in compared.groups)
    axis.set_title(f"{quality}, mean ± standard error" if has_errors else quality, fontsize=10, loc="left")


def _time_panel(axis: "Axes", plot: PlotData) -> None:
    quality = str(plot.compared.quality)
    seconds = [run.seconds for _, run in plot.runs() if run.seconds]
    unit, name = (3600, "hours") if max(seconds, default=0) > 7200 else (60, "minutes")
    for color, run in plot.runs():
        if quality in run.metrics and run.seconds:
            _dot(axis, run.seconds / unit, run.metrics[quality], color, run)
    plain_ticks(axis.xaxis)
    axis.set_xlabel(f"training time [{name}]; hollow: not finished", fontsize=9)
    axis.set_title(f"{quality} against time", fontsize=10, loc="left")


def _dot(axis: "Axes", x: float, y: float, color: str, run: RunRecord, alpha: float = 1) -> None:
    face = color if run.state in COMPLETE else "none"
    axis.plot(x, y, "o", color=color, markerfacecolor=face, markersize=5, alpha=alpha)


def _draw_samples(
    part: "SubFigure", compared: Comparison, shown: Sequence[tuple[RunRecord, Samples]], total: int, rows: int
) -> None:
    left_out = f", of {len(shown)} of {total} runs" if total > len(shown) else ""
    part.suptitle(f"{compared.samples_title.lower()}{left_out}", fontsize=10, x=0.01, ha="left")
    axes = part.subplots(rows, PICTURES, squeeze=False).flatten()
    for axis, (run, samples) in zip(axes, shown, strict=False):
        with Image.open(io.BytesIO(samples.png)) as picture:
            axis.imshow(picture.convert("RGB"), interpolation="nearest")
        caption = [*compared.caption(run), f"step {samples.step:,}"]
        axis.set_title(_literal("\n".join(textwrap.fill(line, 28) for line in caption[-5:])), fontsize=6.5)
    for axis in axes:
        axis.set_axis_off()


def _colors(groups: int) -> list[str]:
    if groups <= 10:
        return [f"C{i}" for i in range(groups)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["turbo"](0.05 + 0.9 * i / (groups - 1))) for i in range(groups)]


def _label(group: SeedGroup) -> str:
    return _literal(textwrap.shorten(", ".join(group.labels), 120, placeholder=" …"))


def _literal(words: str) -> str:
    """Escape words so that matplotlib reads no formula in them, and replace what it has no picture of."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in words).replace(
        "$", r"\$"
    )


def _legend_columns(compared: Comparison) -> int:
    longest = max((len(_label(group)) for group in compared.groups), default=1)
    return max(1, min(4, 130 // (longest + 8)))


def _legend_rows(compared: Comparison) -> int:
    groups = len(compared.groups)
    return -(-groups // _legend_columns(compared)) if 1 < groups <= MAX_COLORS else 0


def _left_out(compared: Comparison) -> str:
    """Return what the figure leaves out, in words."""
    notes = []
    if len(compared.varying) > MAX_SETTINGS:
        notes.append(f"{MAX_SETTINGS} of {len(compared.varying)} settings have a panel")
    if len(compared.groups) > MAX_COLORS:
        notes.append(f"{len(compared.groups)} colors, too many for a legend")
    return "; ".join(notes)
