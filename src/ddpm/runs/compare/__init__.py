"""Many runs side by side: the settings in which they differ, tables, plots, a page. Imports no torch."""

from ddpm.runs.compare.comparison import METRICS, Comparison, Estimate, SeedGroup, compare
from ddpm.runs.compare.figure import draw_comparison
from ddpm.runs.compare.page import html_page, markdown_page, states
from ddpm.runs.compare.tables import (
    TextTable,
    right_columns,
    runs_table,
    settings_table,
    write_runs_csv,
    write_settings_csv,
)
from ddpm.runs.compare.varying import varying_settings

__all__ = [
    "METRICS",
    "Comparison",
    "Estimate",
    "SeedGroup",
    "TextTable",
    "compare",
    "draw_comparison",
    "html_page",
    "markdown_page",
    "right_columns",
    "runs_table",
    "settings_table",
    "states",
    "varying_settings",
    "write_runs_csv",
    "write_settings_csv",
]
