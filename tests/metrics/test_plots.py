import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import pictures
from ddpm.data.pictures import save_animation
from ddpm.metrics import plots
from ddpm.metrics.estimates import Curve


def test_grid_puts_images_row_by_row():
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    pixels = np.asarray(pictures.image_grid(images, columns=3))
    cell = 96 + 2
    assert pixels.shape == (2 * cell + 2, 3 * cell + 2, 3)
    assert pixels[50::cell, 50::cell, 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    assert pictures.image_grid(torch.zeros(100, 1, 28, 28)).size == (862, 862)
    assert pictures.image_grid(torch.zeros(10_000, 1, 28, 28)).size == (3002, 3002)
    assert pictures.image_grid(torch.zeros(4, 3, 256, 256)).size == (518, 518)


@pytest.mark.parametrize("channels", [1, 3])
def test_chains_show_the_images(tmp_path, channels):
    white, grey = torch.ones(channels, 8, 8), torch.zeros(channels, 8, 8)
    figure = plots.chains({"first": [white, grey], "second": [None, -2 * white]}, ["a", "b"])
    shown = [[image.get_array() for image in axes.images] for axes in figure.axes]
    assert [image[0].min() if image else None for image in shown] == [255, 128, None, 0]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "", ""]
    figure.savefig(tmp_path / "chains.png")
    assert colours(tmp_path / "chains.png") > 3


def curve(edges, mean):
    mean = torch.tensor(mean)
    return Curve(torch.tensor(edges), mean, mean.abs() / 10, torch.full((len(mean),), 20))


def test_divergences_add_up_to_the_bound(tmp_path):
    curves = {"model, test": curve([1, 5, 10, 21], [0.1, 0.01, 0.0]), "model, train": curve([1, 21], [0.04])}
    figure = plots.divergences(curves, None, reconstruction=0.2, total=0.68)
    upper, lower = figure.axes
    assert lower.lines[0].get_xydata()[-1] == pytest.approx([20, 0.2 + 4 * 0.1 + 5 * 0.01])
    assert lower.lines[1].get_ydata() == pytest.approx([0.68, 0.68])
    assert "bound 0.680" in lower.texts[0].get_text()
    assert [line.get_linestyle() for line in upper.lines] == ["-", "--", ":"]
    figure.savefig(tmp_path / "kl.png")
    assert colours(tmp_path / "kl.png") > 3


def test_divergences_show_zeros_and_the_gap(tmp_path):
    curves = {
        "model, test": curve([1, 5, 21], [0.1, 0.01]),
        "best, test": curve([1, 5, 21], [7.0, 0.01]),
        "best, train": curve([1, 5, 21], [0.0, 1e-9]),
    }
    figure = plots.divergences(curves, curve([1, 21], [-3.0]), reconstruction=0.2, total=0.68)
    upper, between, _ = figure.axes
    bottom, top = upper.get_ylim()
    assert bottom < 0  # so that a line at 0 is seen
    assert top > 7
    model, best, best_train, oracle = upper.lines
    assert best.get_color() == best_train.get_color() != model.get_color()
    assert best_train.get_ydata().tolist() == pytest.approx([0, 1e-9])
    assert set(oracle.get_ydata()) == {0}
    assert between.lines[0].get_ydata().tolist() == [-3]
    figure.savefig(tmp_path / "kl.png")
    assert colours(tmp_path / "kl.png") > 3


def test_errors_leave_out_nan(tmp_path):
    figure = plots.errors(torch.arange(-1, 2), {"known": torch.ones(3), "not": torch.tensor([torch.nan, 1, 2])})
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["known", "not"]
    figure.savefig(tmp_path / "error.png")
    assert colours(tmp_path / "error.png") > 3


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_every_frame(tmp_path, channels):
    path = tmp_path / "a.gif"
    brightening = [torch.full((channels, 14, 14), level) for level in (-1.0, 0.0, 1.0)]
    save_animation(path, {"up": brightening, "down": brightening[::-1]}, ["one", "two", "three"])
    with Image.open(path) as animation:
        assert animation.n_frames == 3
        for i, level in enumerate((0, 128, 255)):
            animation.seek(i)
            frame = np.asarray(animation.convert("L"))
            assert abs(int(frame[80, 66]) - level) <= 8  # within the 16 colours
            assert abs(int(frame[80, 188]) - (255 - level)) <= 8


def colours(path):
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))


def test_evaluations_that_differ_in_more_than_the_cost_are_different_lines():
    base = {"sampler": "ddim", "spacing": "trailing", "variance": "small", "weights": "EMA", "guidance": "cfg"}
    base |= {"guidance_scale": 2.0, "guidance_interval": None, "sampler_steps": 10, "network_evaluations": 20}
    base |= {"seconds_per_1000_images": 1.0, "quality/fd_test_ratio": 2.0, "quality/fd_test_ratio_se": 0.1}
    changes = [{}, {"guidance": "autoguidance by best.ckpt"}, {"guidance_interval": [0, 9]}, {"spacing": "uniform"}]
    changes += [{"weights": "EMA of length 0.1"}, {"variance": "large"}, {"network_evaluations": 40}]
    rows = [base | change for change in changes]
    for plot in (plots.quality_cost, plots.quality_scale):
        names = [text.get_text() for text in plot(rows).legends[0].get_texts()]
        assert len(names) == len(rows) - 1  # the last differs in the cost alone
        assert "ddim, trailing, small, EMA, cfg, interval [0, 9]" in names
