import base64
import json
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.commands import denoise_page
from ddpm.commands.chains import run_chains
from ddpm.commands.denoise_page import pick_images, planned_size, write_page
from ddpm.data import MNISTMini, to_model_range
from ddpm.diffusion import GaussianDiffusion, schedules
from ddpm.diffusion.likelihood import vlb_terms

NUM_STEPS = 100
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def data():
    data = MNISTMini()
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion(schedules.linear(NUM_STEPS))


def network(x_t, t):
    """Takes every image for a grey one."""
    return x_t - 0.3


@pytest.fixture(scope="module")
def page(data, diffusion, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "denoise.html"
    write_page(path, data, 3, diffusion, network, 0, torch.device("cpu"))
    return path


def content_of(page: Path):
    (text,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page.read_text("utf-8"))
    return json.loads(text)


def pictures(content, image, chain) -> np.ndarray:
    """Puts the pictures of a chain together as the page does, [S, 28 · 28]."""

    def unpack(layer):
        rows = np.frombuffer(zlib.decompress(base64.b64decode(layer["rows"])), np.int8).reshape(-1, 28 * 28)
        return np.cumsum(rows, axis=0, dtype=np.int8) * np.array(layer["units"])[:, None]

    if chain in image["predicted"]:
        picture = unpack(image["predicted"][chain])
    else:
        x0 = np.frombuffer(base64.b64decode(image["pixels"]), np.uint8) / 127.5 - 1
        picture = np.array(content["signal"])[:, None] * x0
    noise = content["learned_noise"] if chain == "learned" else chain
    return picture + unpack(content["noise"][noise]) if noise in content["noise"] else picture


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_page_has_the_chains_of_the_command_at_every_timestep(data, page, diffusion, variance, tmp_path):
    if variance == "large":  # the learned chain then has noise of its own
        diffusion = GaussianDiffusion(diffusion.betas, variance="large")
        page = tmp_path / "large.html"
        write_page(page, data, 3, diffusion, network, 0, torch.device("cpu"))
    content = content_of(page)
    assert content["timesteps"] == list(range(NUM_STEPS))
    image = content["images"][0]
    chains = run_chains(to_model_range(data.split("test").images[3:4]), diffusion, network, seed=0)
    for name, chain in chains.items():
        np.testing.assert_allclose(image["rmse"][name], chain.rmse[1:], rtol=2e-3)
        shown = pictures(content, image, name)
        for t, real in chain.images.items():
            if t >= 0:
                tolerance = 0.07 * np.sqrt(1 - diffusion.alpha_bars[t].item()) + 0.02
                np.testing.assert_allclose(shown[t], real.flatten().numpy(), rtol=0, atol=tolerance)


def test_the_mistake_drifts_far_from_the_image(page):
    content = content_of(page)
    image = content["images"][0]
    assert max(image["rmse"]["oracle"]) < 1.5
    assert max(image["rmse"]["no_fresh_noise"]) > 3
    shown = pictures(content, image, "no_fresh_noise")
    x0 = np.frombuffer(base64.b64decode(image["pixels"]), np.uint8) / 127.5 - 1
    rmse = np.sqrt(((shown - x0) ** 2).mean(axis=1))
    np.testing.assert_allclose(rmse, image["rmse"]["no_fresh_noise"], rtol=0.05)


def test_the_kl_is_a_term_of_the_bound(data, page, diffusion):
    """With the noise of the forward chain; any noise gives about the same number where the error is large."""
    x0 = to_model_range(data.split("test").images[3:4])
    kl = content_of(page)["images"][0]["kl"]
    assert kl[0] is None
    expected = vlb_terms(network, diffusion, x0).kl[0].numpy()
    np.testing.assert_allclose(kl[50:], expected[49:], rtol=0.2)


def test_the_images_have_different_labels_if_there_are_several():
    assert pick_images(torch.tensor([7, 2, 2, 1, 7, 0]), 1, 4) == [1, 3, 4, 5]
    assert pick_images(torch.tensor([5, 5, 5]), 2, 2) == [2, 0]
    assert pick_images(torch.tensor([5, 5, 5]), 2, 6) == [2, 0, 1]


def test_large_pictures_get_fewer_images_then_fewer_timesteps(data, diffusion, tmp_path, monkeypatch):
    assert planned_size(1000, 28 * 28) == (6, 1000)
    assert planned_size(1000, 3 * 32 * 32) == (2, 528)
    assert planned_size(20, 3 * 256 * 256)[0] == 2

    monkeypatch.setattr(denoise_page, "MAX_BYTES", 80_000)
    write_page(tmp_path / "small.html", data, 0, diffusion, network, 0, torch.device("cpu"))
    assert (tmp_path / "small.html").stat().st_size <= 80_000
    content = content_of(tmp_path / "small.html")
    assert len(content["images"]) == 1
    assert 2 <= len(content["timesteps"]) < NUM_STEPS
    assert (content["timesteps"][0], content["timesteps"][-1]) == (0, NUM_STEPS - 1)

    monkeypatch.setattr(denoise_page, "MAX_BYTES", 1)  # less than the smallest page
    write_page(tmp_path / "smallest.html", data, 0, diffusion, network, 0, torch.device("cpu"))
    content = content_of(tmp_path / "smallest.html")
    assert [len(content["images"]), len(content["timesteps"])] == [1, 1]


@pytest.fixture
def browser_page(page):
    """The page in a headless Chromium. Messages of the console and requests for other files fail the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        tab = browser.new_page()
        problems: list[str] = []
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: problems.append(request.url) if request.url != page.as_uri() else None)
        tab.goto(page.as_uri())
        tab.wait_for_selector("body[data-ready]")
        yield tab
        browser.close()
    assert problems == []


def test_the_page_in_a_browser(page, browser_page, diffusion):
    tab, content = browser_page, content_of(page)

    def number(name):
        return float(tab.inner_text(f"#{name}").replace("−", "-"))

    def check(t, image):
        assert tab.inner_text("#t") == f"t = {t}"
        assert number("alpha_bar") == pytest.approx(diffusion.alpha_bars[t].item(), rel=6e-3)
        assert number("snr") == pytest.approx(1 / (1 / diffusion.alpha_bars[t].item() - 1), rel=6e-3)
        assert number("posterior_variance") == pytest.approx(content["schedule"]["posterior_variance"][t], rel=6e-3)
        assert number("kl") == pytest.approx(image["kl"][t], rel=6e-3)
        for chain in ("forward", "oracle", "learned", "predicted_x0", "no_fresh_noise"):
            assert number(f"error-{chain}") == pytest.approx(image["rmse"][chain][t], rel=6e-3)
            levels = tab.evaluate(
                "id => [...document.getElementById(id).getContext('2d').getImageData(0, 0, 28, 28).data]",
                f"picture-{chain}",
            )
            expected = ((pictures(content, image, chain)[t] + 1) * 127.5).clip(0, 255)
            np.testing.assert_allclose(levels[::4], expected, rtol=0, atol=1)
            label = tab.get_attribute(f"#picture-{chain}", "aria-label")
            assert f"at t = {t}, {image['caption']}" in label
        marks = tab.eval_on_selector_all("svg line", "lines => lines.map(line => Number(line.getAttribute('x1')))")
        assert marks == pytest.approx([300 * t / (NUM_STEPS - 1)] * 5)

    tab.fill("#slider", "40")
    check(40, content["images"][0])
    tab.keyboard.press("ArrowRight")
    check(41, content["images"][0])
    tab.click("#images button >> nth=2")
    tab.keyboard.press("ArrowLeft")
    check(40, content["images"][2])
    tab.fill("#slider", "5")
    tab.click("#play")
    tab.wait_for_function("document.getElementById('t').textContent === 't = 0'")
    assert tab.inner_text("#play") == "Play"
    tab.keyboard.press(" ")
    tab.wait_for_function("document.getElementById('t').textContent !== 't = 0'")
    tab.keyboard.press(" ")
    assert tab.inner_text("#play") == "Play"
