"""Every figure and picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "0.45"


def image_grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """A picture of images [N, C, H, W] in [-1, 1], row by row; about square when `columns` is None."""
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    columns = columns or max(1, round(len(images) ** 0.5))
    return to_pil_image(make_grid(_to_uint8(images), nrow=columns, padding=2, pad_value=128))


def divergences(edges: Tensor, mean: Tensor, se: Tensor, reconstruction: float, total: float) -> "Figure":
    """The bound along the chain, in bits/dim: each step's KL above, and what has come together up to a step below.

    Args:
        edges: of the bins of timesteps, [bins + 1]; a bin holds edges[i] ≤ t < edges[i+1].
        mean, se: of one step's KL in each bin, [bins].
        total: the bound.
    """
    figure = _figure(7, 5)
    steps, sums = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    centres = (edges[:-1] + edges[1:] - 1) / 2
    low = torch.where(mean > se, mean - se, mean / 10)  # a logarithmic axis has no place for 0
    steps.fill_between(centres, low, mean + se, color="C0", alpha=0.25, linewidth=0)
    steps.plot(centres, mean, color="C0", linewidth=1.2, marker=".", markersize=3)
    steps.set_yscale("log")
    steps.set_ylabel("KL of one step [bits/dim]")
    steps.set_title("mean ± standard error", fontsize=8, color=GREY, loc="right")

    so_far = reconstruction + torch.cat([mean.new_zeros(1), (mean * edges.diff()).cumsum(0)])
    sums.plot(edges - 1, so_far, color="C0", linewidth=1.2)
    sums.axhline(total, color=GREY, linewidth=0.8, linestyle="--")
    sums.annotate(
        f"bound {total:.3f}, of it reconstruction {reconstruction:.3f}",
        (1, total), (-4, -6), ("axes fraction", "data"), "offset points",
        ha="right", va="top", fontsize=8, color=GREY,
    )  # fmt: skip
    sums.set_ylim(bottom=0)
    sums.set_ylabel("sum up to t [bits/dim]")
    sums.set_xlabel("timestep t")
    sums.set_xlim(0, edges[-1].item() - 1)
    return figure


def chains(rows: Mapping[str, Sequence[Tensor | None]], titles: Sequence[str]) -> "Figure":
    """Images [C, H, W] in [-1, 1] in rows with a caption each, under common titles; None leaves a place empty."""
    figure = _figure(0.45 + 1.03 * len(titles), 0.35 + 1.03 * len(rows), padding=0.02)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (caption, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(caption, fontsize=8)
        for axis, image in zip(row, images, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(image is not None)
            axis.spines[:].set(color="0.8", linewidth=0.5)
            if image is not None:
                axis.imshow(_pixels(image).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    return figure


def errors(timesteps: Tensor, curves: Mapping[str, Tensor]) -> "Figure":
    """Root mean squared errors to x_0 over `timesteps` [N], a curve [N] for each caption."""
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


def save_animation(
    path: Path, panels: Mapping[str, Sequence[Tensor]], captions: Sequence[str], milliseconds: int = 100
) -> None:
    """A GIF of panels side by side, each a sequence of images [C, H, W] in [-1, 1] under its name.

    `captions` has a line for each frame. The last frame stays for two seconds.
    """
    frames = [
        _frame(dict(zip(panels, images, strict=True)), caption)
        for *images, caption in zip(*panels.values(), captions, strict=True)
    ]
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _frame(panels: Mapping[str, Tensor], caption: str, width: int = 112, gap: int = 10) -> Image.Image:
    """One frame, in few colours: the noise of more would not compress."""
    scale = max(1, width // next(iter(panels.values())).shape[-1])
    pictures = {name: _enlarged(image, scale) for name, image in panels.items()}
    shown_width, height = next(iter(pictures.values())).size
    frame = Image.new("RGB", ((shown_width + gap) * len(pictures) + gap, height + 50), "white")
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(size=12)
    for i, (name, picture) in enumerate(pictures.items()):
        left = gap + i * (shown_width + gap)
        frame.paste(picture, (left, 24))
        draw.text((left + shown_width / 2, 12), name, "black", font, anchor="mm")
    draw.text((frame.width / 2, height + 37), caption, "dimgrey", font, anchor="mm")
    grey = all(picture.mode == "L" for picture in pictures.values())
    return frame.quantize(16 if grey else 128, dither=Image.Dither.NONE)


def _enlarged(image: Tensor, scale: int) -> Image.Image:
    picture = Image.fromarray(_pixels(image).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _to_uint8(images: Tensor) -> Tensor:
    return ((images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()


def _pixels(image: Tensor) -> Tensor:
    """[C, H, W] in [-1, 1] to uint8 [H, W] (grey) or [H, W, 3]."""
    pixels = _to_uint8(image)
    return pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)


def _figure(width: float, height: float, padding: float = 0.05) -> "Figure":
    """An empty figure, sizes in inches, that belongs to no window."""
    from matplotlib.figure import Figure  # half a second, which training does not need
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=padding, h_pad=padding, wspace=0, hspace=0)
    return Figure(figsize=(width, height), dpi=150, layout=layout)
