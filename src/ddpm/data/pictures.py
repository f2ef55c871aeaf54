"""Makes pictures from images: grids, tables, animations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm.data.images import to_uint8

MIN_CELL, MAX_GRID = 96, 2000
"""pixels: an image in a grid is enlarged up to the first, and the grid's width stays below the second"""


def image_grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Return a picture of images [N, C, H, W], uint8 or in [-1, 1], row by row; about square if `columns` is None."""
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    columns = columns or max(1, round(len(images) ** 0.5))
    pixels = to_uint8(images).cpu()
    scale = max(1, min(MIN_CELL // pixels.shape[-1], MAX_GRID // (columns * pixels.shape[-1])))
    pixels = pixels.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return to_pil_image(make_grid(pixels, nrow=columns, padding=2, pad_value=128))


def image_table(groups: Sequence[tuple[Sequence[str], Tensor]], captions: Sequence[str]) -> Image.Image:
    """Return a picture of rows of images, each with a caption, and with gaps between groups of columns.

    Args:
        groups: titles of the columns, and images [rows, columns, C, H, W] in [-1, 1].
    """
    scale = max(1, 64 // groups[0][1].shape[-1])
    height, width = (side * scale for side in groups[0][1].shape[-2:])
    font, space, gap = ImageFont.load_default(size=13), 3, 14
    left, top = 16 + max(round(font.getlength(caption)) for caption in captions), 24
    columns = sum(len(titles) for titles, _ in groups)
    size = left + columns * (width + space) + (len(groups) - 1) * gap, top + len(captions) * (height + space)
    table = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(table)
    for row, caption in enumerate(captions):
        draw.text((left - 8, top + row * (height + space) + height / 2), caption, "black", font, anchor="rm")
    x = left
    for titles, images in groups:
        for column, title in enumerate(titles):
            draw.text((x + width / 2, top / 2), title, "black", font, anchor="mm")
            for row, image in enumerate(images[:, column]):
                table.paste(_enlarged(image, scale), (x, top + row * (height + space)))
            x += width + space
        x += gap
    return table


def save_animation(
    path: Path, panels: Mapping[str, Sequence[Tensor]], captions: Sequence[str], milliseconds: int = 100
) -> None:
    """Write a GIF of panels side by side. The last frame stays for two seconds.

    Args:
        panels: sequences of images [C, H, W] in [-1, 1], by the name above the panel.
        captions: one line for each frame.
    """
    frames = [
        _frame(dict(zip(panels, images, strict=True)), caption)
        for *images, caption in zip(*panels.values(), captions, strict=True)
    ]
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _frame(panels: Mapping[str, Tensor], caption: str, width: int = 112, gap: int = 10) -> Image.Image:
    """Return one frame, in few colours because noise in many colours does not compress."""
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
    picture = Image.fromarray(pixels(image).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def pixels(image: Tensor) -> Tensor:
    """Convert [C, H, W] in [-1, 1] to uint8 [H, W] (grey) or [H, W, 3]."""
    pixels = to_uint8(image).cpu()
    return pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
