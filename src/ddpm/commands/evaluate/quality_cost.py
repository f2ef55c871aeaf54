"""After a sweep of `ddpm evaluate`: compares the sample quality of the samplers with their cost."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from ddpm.commands import display
from ddpm.metrics import plots
from ddpm.runs.files import read_json, write_csv

COLUMNS = {
    "sampler": "sampler",
    "spacing": "spacing",
    "variance": "variance",
    "weights": "weights",
    "guidance": "guidance",
    "guidance_scale": "scale",
    "guidance_interval": "interval",
    "network_evaluations": "network evaluations",
    "seconds_per_1000_images": "s / 1,000 images",
    "quality/n": "n",
    "quality/fd_test": "Fréchet distance to test",
    "quality/fd_test_se": "± se",
    "quality/fd_test_ratio": "/ floor",
    "quality/fd_test_ratio_se": "± se",
    "quality/as_asked": "label accuracy",
}
"""titles of the columns by key of metrics.json"""
OPTIONAL = ("guidance", "guidance_scale", "guidance_interval", "quality/as_asked")
"""columns that are left out where no evaluation has a value"""

ALIKE = ("checkpoint", "step", "data", "features", "quality/n")
"""keys that must be equal in evaluations that are compared"""


def compare(directories: Sequence[Path]) -> None:
    """Print one table of these evaluations, and write the table and a plot to their common parent folder.

    Earlier evaluations of the same checkpoint with the same number of samples are included, because an evaluation of
    the whole chain takes long and need not be repeated.
    """
    asked = [
        metrics
        for path in directories
        if {"sampler", "quality/fd_test"} <= (metrics := read_json(path / "metrics.json")).keys()
    ]
    if not asked:
        return
    folder = Path(os.path.commonpath([path.parent for path in directories]))
    found = [read_json(path) for path in sorted(folder.rglob("metrics.json"))]
    wanted = [[row[key] for key in ALIKE] for row in asked]
    rows = [row for row in found if "sampler" in row and [row.get(key) for key in ALIKE] in wanted]
    order = ("sampler", "spacing", "variance", "guidance", "guidance_scale", "network_evaluations")
    rows.sort(key=lambda row: [(row.get(key) is not None, row.get(key)) for key in order])
    shown = [key for key in COLUMNS if key not in OPTIONAL or any(row.get(key) is not None for row in rows)]
    headings = (Column(COLUMNS[key], overflow="fold") for key in shown)  # the path of a weaker model is read to its end
    table = Table(*headings, title="Quality against cost", title_justify="left")
    for row in rows:
        table.add_row(*(_shown(row.get(key)) for key in shown))
    display.console.print(table)
    if len({row["sampler"] for row in asked}) > 1 and len({row["spacing"] for row in asked}) > 1:
        display.console.print("The samplers take different timesteps: sampler.spacing=trailing gives all the same.")

    columns = [*shown, "checkpoint"]
    write_csv(folder / "quality_cost.csv", columns, [[row.get(key) for key in columns] for row in rows])
    plots.quality_cost(rows).savefig(folder / "quality_cost.png")
    files = ["quality_cost.png: the Fréchet distance over its floor, against evaluations and time", "quality_cost.csv"]
    guided = [row for row in rows if row.get("guidance_scale") is not None]
    if len({row["guidance_scale"] for row in guided}) > 1:
        plots.quality_scale(guided).savefig(folder / "guidance_scale.png")
        files.append("guidance_scale.png: the Fréchet distance over its floor, against the scale of guidance")
    display.results(folder, files, [])


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
