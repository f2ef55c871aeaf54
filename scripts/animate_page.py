#!/usr/bin/env python
"""Record the page of `ddpm denoise` in a headless Chromium as a small animated picture (WebP or GIF).

    python scripts/animate_page.py outputs/denoise/quickstart/base/denoise.html outputs/gallery/denoise_page.webp

Needs Chromium or Chrome, and playwright (`pip install playwright`).
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FRAMES = 14
WIDTH = 656  # pixels: five pictures of 112, so that a pixel of a digit is 4 x 4 pixels
STYLE = """
body { padding: .5rem 1rem; }
h1, p, #images, .words { display: none !important; }
.grid { grid-template-columns: repeat(5, 112px); }
.plots { grid-template-columns: repeat(4, 1fr); }
.plots .plot:nth-child(4) { display: none; }
svg { height: 4.5rem; }
:focus-visible { outline: 0 !important; }
figure > canvas { border: 0; border-radius: 0; }
"""


def record(page: Path) -> list[Image.Image]:
    """Return the page at FRAMES timesteps, from the noise to the image, closer together near the image."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, browsers)), None)
    frames = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable)
        tab = browser.new_page(viewport={"width": WIDTH, "height": 400}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("body[data-ready]")
        tab.add_style_tag(content=STYLE)
        last = int(tab.get_attribute("#slider", "max") or 0)
        for i in reversed(range(FRAMES)):
            tab.fill("#slider", str(round(last * (i / (FRAMES - 1)) ** 1.5)))
            frames.append(Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB"))
        browser.close()
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()

    frames = record(arguments.page)
    palette = frames[len(frames) // 2].quantize(96)  # few colours: the noise of more would not compress
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB") for frame in frames]
    durations = [200] * (FRAMES - 1) + [2500]
    options = {"lossless": True, "quality": 100, "method": 6} if arguments.picture.suffix == ".webp" else {}
    frames[0].save(arguments.picture, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
