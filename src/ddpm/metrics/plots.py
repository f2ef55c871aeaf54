"""All matplotlib figures. `ddpm.data.pictures` makes pictures of the images alone."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddpm.data.pictures import pixels
from ddpm.runs.compare.ticks import plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ddpm.metrics.estimates import Curve

GREY = "0.45"


def divergences(curves: Mapping[str, "Curve"], gap: "Curve | None", reconstruction: float, total: float) -> "Figure":
    """Plot the bound over the timesteps, in bits/dim: the KL of one step, the test-train gap, the cumulative sum.

    Args:
        curves: the KL of one step by "denoiser, split". A curve of the train split is dashed. The first curve is the
            one that is summed.
        gap: relative difference of the KL of one step between test and train, in percent.
        reconstruction, total: the reconstruction term and the bound, in bits/dim.
    """
    heights = [4, 2] if gap is None else [4, 1.6, 2]
    figure = _figure(7, sum(heights))
    steps, *between, sums = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    own = next(iter(curves.values()))
    denoisers = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    for name, curve in curves.items():
        colour = f"C{denoisers.index(name.partition(',')[0])}"
        _band(steps, curve, color=colour, linestyle="--" if name.endswith("train") else "-", label=name)
    # The axis is logarithmic, but must show 0, well below the model: the oracle has a KL of 0, and so has a denoiser
    # that has found the image in the training set.
    lowest = own.mean[own.mean > 0].min().item() if (own.mean > 0).any() else 1.0
    smallest = 10 ** math.floor(math.log10(lowest) - 1)
    steps.set_yscale("symlog", linthresh=smallest)
    steps.axhline(0, color="black", linewidth=1, linestyle=":", label="oracle, given the true $x_0$: 0")
    steps.set_ylim(bottom=-smallest / 2)
    steps.set_ylabel("KL of one step [bits/dim]")
    steps.legend(frameon=False, fontsize=8, title="mean ± standard error", title_fontsize=8, loc="upper right")

    if gap is not None:
        _band(between[0], gap, color="C0")
        between[0].axhline(0, color=GREY, linewidth=0.8, linestyle=":")
        between[0].set_ylabel("test − train [%]")

    so_far = reconstruction + torch.cat([own.mean.new_zeros(1), (own.mean * own.edges.diff()).cumsum(0)])
    sums.plot(own.edges - 1, so_far, color="C0", linewidth=1.2)
    sums.axhline(total, color=GREY, linewidth=0.8, linestyle="--")
    sums.annotate(
        f"bound {total:.3f}, of it reconstruction {reconstruction:.3f}",
        (1, 0), (-6, 6), "axes fraction", "offset points",
        ha="right", va="bottom", fontsize=8, color=GREY,
    )  # fmt: skip
    sums.set_ylim(bottom=0)
    sums.set_ylabel("sum up to t [bits/dim]")
    sums.set_xlabel("timestep t")
    sums.set_xscale("log")
    sums.set_xlim(1, own.edges[-1].item())
    plain_ticks(sums.xaxis)
    return figure


def _band(axes: "Axes", curve: "Curve", **style: Any) -> None:
    """Plot a curve and a band of one standard error."""
    centres = (curve.edges[:-1] + curve.edges[1:] - 1) / 2
    axes.plot(centres, curve.mean, linewidth=1.2, **style)
    low, high = curve.mean - curve.se, curve.mean + curve.se
    axes.fill_between(centres, low, high, color=style["color"], alpha=0.25, linewidth=0)


def chains(rows: Mapping[str, Sequence[Tensor | None]], titles: Sequence[str]) -> "Figure":
    """Plot rows of images [C, H, W] in [-1, 1], with row captions and column titles; None leaves a place empty."""
    figure = _figure(0.45 + 1.03 * len(titles), 0.35 + 1.03 * len(rows), padding=0.02)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (caption, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(caption, fontsize=8)
        for axis, image in zip(row, images, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(image is not None)
            axis.spines[:].set(color="0.8", linewidth=0.5)
            if image is not None:
                axis.imshow(pixels(image).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    return figure


def errors(timesteps: Tensor, curves: Mapping[str, Tensor]) -> "Figure":
    """Plot root mean squared errors to x_0 over `timesteps` [N], one curve [N] for each caption."""
    figure = _figure(7, 4)
    axes = figure.subplots()
    for caption, curve in curves.items():
        axes.plot(timesteps, curve, linewidth=1.3, label=caption)
    axes.set_xlabel("timestep t of $x_t$")
    axes.set_ylabel("RMSE to $x_0$ [pixels in −1 … 1]")
    axes.set_xlim(timesteps[0].item(), timesteps[-1].item())
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _figure(width: float, height: float, padding: float = 0.05) -> "Figure":
    """Return an empty figure without a window; sizes are in inches."""
    from matplotlib.figure import Figure  # the import takes half a second, and training does not need it
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=padding, h_pad=padding, wspace=0, hspace=0)
    return Figure(figsize=(width, height), dpi=150, layout=layout)


def _draw_lines(axes: "Axes", lines: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str) -> None:
    """Draw one line for each caption through the points that have the key `y`, with error bars, and a line at 1."""
    for caption, points in lines.items():
        known = [point for point in points if point.get(y) is not None]
        xs, ys, errors = ([point[key] for point in known] for key in (x, y, f"{y}_se"))
        axes.errorbar(xs, ys, errors, marker="o", markersize=4, linewidth=1.2, label=caption)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--")


def closest_pairs(pairs: Mapping[str, tuple[Tensor, Tensor, Tensor]], thresholds: Mapping[str, float]) -> "Figure":
    """Plot samples above their nearest training images, with the distances between them. Near-copies are marked.

    Args:
        pairs: for each space of distances: samples [k, C, H, W] and training images [k, C, H, W] in [-1, 1], and the
            distances [k].
        thresholds: for each space, the distance below which a sample is a near-copy.
    """
    columns = max(len(distances) for _, _, distances in pairs.values())
    figure = _figure(0.6 + 1.0 * columns, 2.55 * len(pairs), padding=0.02)
    for part, (space, (samples, train, distances)) in zip(
        figure.subfigures(len(pairs), 1, squeeze=False)[:, 0], pairs.items(), strict=True
    ):
        threshold = thresholds[space]
        part.suptitle(f"nearest by {space}; a near-copy is below {threshold:.3g}", fontsize=9)
        axes = part.subplots(2, columns, squeeze=False)
        for row, caption, images in zip(axes, ("sample", "training"), (samples, train), strict=True):
            row[0].set_ylabel(caption, fontsize=8)
            for axis in row:
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            for axis, image in zip(row, images, strict=False):
                axis.imshow(pixels(image).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        for axis, distance in zip(axes[0], distances.tolist(), strict=False):
            copied = distance < threshold
            axis.set_title(f"{distance:.3g}", fontsize=8, color="C3" if copied else GREY)
    return figure


def class_shares(samples: Tensor, real: Tensor) -> "Figure":
    """Plot the share of each class among samples and among real images, both [classes]."""
    figure = _figure(6, 2.6)
    axes = figure.subplots()
    classes = range(len(real))
    for shift, shares, colour, label in ((-0.2, real, "0.75", "training images"), (0.2, samples, "C0", "samples")):
        axes.bar([index + shift for index in classes], (100 * shares).tolist(), width=0.4, color=colour, label=label)
    axes.set_xticks(classes)
    axes.set_xlabel("class, as the classifier sees it")
    axes.set_ylabel("share [%]")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def quality_cost(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the Fréchet distance divided by its floor against network evaluations and time; lines join equal settings.

    Args:
        rows: the contents of `metrics.json` of each evaluation.
    """
    figure = _figure(9, 4)
    lines = _lines(rows, {"guidance_scale": "scale"})
    costs = {"network_evaluations": "network evaluations", "seconds_per_1000_images": "seconds per 1,000 images"}
    for axes, (cost, label) in zip(figure.subplots(1, 2, sharey=True), costs.items(), strict=True):
        _draw_lines(axes, lines, cost, "quality/fd_test_ratio")
        axes.set(xscale="log", yscale="log", xlabel=label)
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
    figure.axes[0].set_ylabel("Fréchet distance / that of real images")
    _legend_above(figure)
    return figure


WAYS = {"spacing": "", "variance": "", "weights": "", "guidance": "", "guidance_interval": "interval"}
"""in what evaluations of a checkpoint may differ besides the sampler: words of the legend, by key of metrics.json"""


def _lines(rows: Sequence[Mapping[str, Any]], more: Mapping[str, str]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of each line by its name in the legend, which states what is not equal in all rows."""
    ways = {**WAYS, **more}
    differ = [key for key in ways if len({repr(row.get(key)) for row in rows}) > 1]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        words = [f"{ways[key]} {row.get(key)}".strip() for key in differ if row.get(key) is not None]
        lines.setdefault(", ".join([row["sampler"], *words]), []).append(row)
    return lines


def _legend_above(figure: "Figure") -> None:
    """Write the legend above the plots: the path of a weaker model is too long for a place inside."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=7, loc="outside upper left")


def quality_scale(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the Fréchet distance divided by its floor, and the label accuracy, against guidance's scale.

    Args:
        rows: the contents of `metrics.json` of each evaluation.
    """
    figure = _figure(9, 4)
    lines = _lines(sorted(rows, key=lambda row: row["guidance_scale"]), {"sampler_steps": "steps"})
    shown = {
        "quality/fd_test_ratio": "Fréchet distance / that of real images",
        "quality/as_asked": "label accuracy",
    }
    for axes, (key, label) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        _draw_lines(axes, lines, "guidance_scale", key)
        axes.set(xlabel="scale of guidance", ylabel=label)
    _legend_above(figure)
    return figure
