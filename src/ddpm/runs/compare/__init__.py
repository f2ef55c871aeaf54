"""Many runs beside each other: the settings in which they differ, tables, plots, a page. Imports without torch."""

from ddpm.runs.compare.comparison import METRICS, Comparison, Estimate, Point, compare
from ddpm.runs.compare.figure import draw_comparison
from ddpm.runs.compare.page import html_page, markdown_page, states
from ddpm.runs.compare.settings import varying_settings
from ddpm.runs.compare.tables import NUMBERS, TextTable, points_table, runs_table, write_points_csv, write_runs_csv

__all__ = [
    "METRICS",
    "NUMBERS",
    "Comparison",
    "Estimate",
    "Point",
    "TextTable",
    "compare",
    "draw_comparison",
    "html_page",
    "markdown_page",
    "points_table",
    "runs_table",
    "states",
    "varying_settings",
    "write_points_csv",
    "write_runs_csv",
]
