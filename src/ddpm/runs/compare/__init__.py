"""Many runs side by side: the settings in which they differ, tables, plots, a page. Imports no torch."""

from ddpm.runs.compare.comparison import METRICS, Comparison, Estimate, SeedGroup, compare
from ddpm.runs.compare.figure import draw_comparison
from ddpm.runs.compare.page import html_page, markdown_page, states
from ddpm.runs.compare.settings import varying_settings
from ddpm.runs.compare.tables import NUMBERS, TextTable, runs_table, settings_table, write_runs_csv, write_settings_csv

__all__ = [
    "METRICS",
    "NUMBERS",
    "Comparison",
    "Estimate",
    "SeedGroup",
    "TextTable",
    "compare",
    "draw_comparison",
    "html_page",
    "markdown_page",
    "runs_table",
    "settings_table",
    "states",
    "varying_settings",
    "write_runs_csv",
    "write_settings_csv",
]
