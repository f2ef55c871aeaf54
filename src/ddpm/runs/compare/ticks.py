"""Plain numbers on the axes of a figure."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis


def plain_ticks(axis: "Axis") -> None:
    """Label an axis with at most seven plain numbers: no offset, no power of ten, no minor ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() == "log" and low > 0 and high >= 8 * low:
        subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    elif axis.get_scale() in ("log", "linear"):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
