"""denoise.html: one page without other files that shows every timestep of the chains of several images."""

import base64
import math
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from rich.progress import Progress
from torch import Tensor

from ddpm.commands.chains import evenly
from ddpm.commands.display import console
from ddpm.data import ImageData, to_model_range, to_uint8
from ddpm.diffusion import Ancestral, GaussianDiffusion, vlb_terms
from ddpm.diffusion.process import Network, RandnLike
from ddpm.seeding import ImageNoise, Stream

NUM_IMAGES = 6
MAX_BYTES = 3_000_000
MAX_VALUES = 13_000_000
"""pixels of all recorded pictures; bounds the memory"""
NOISE_UNIT = 1 / 8
"""the noise is rounded to multiples of this, in standard deviations"""
PIXEL_UNIT = 1 / 32
"""predicted images are rounded to multiples of this; their pixels lie in [-1, 1]"""


def write_page(
    path: Path,
    data: ImageData,
    image_index: int,
    diffusion: GaussianDiffusion,
    network: Network | None,
    seed: int,
    device: torch.device,
    is_conditional: bool = False,
) -> None:
    """Write the page for test image `image_index` and the next ones with other labels.

    The first image's chains are those of the pictures of `ddpm denoise`. If the page would be larger than 3 MB, it has
    fewer images, then fewer timesteps; only the page of one very large picture is larger.

    Args:
        network: adds the learned chain; None leaves it out.
        is_conditional: whether the network takes the labels of the images.
    """
    images, labels = data.split("test")
    num_images, num_timesteps = planned_size(diffusion.num_steps, images[0].numel())
    indices = pick_images(labels, image_index, num_images)
    captions = [f"image {index}, label {int(labels[index])}" for index in indices]
    timesteps = evenly(diffusion.num_steps, num_timesteps)
    if network is not None and is_conditional:
        network = partial(network, labels=labels[indices].to(device))
    recorded = Recording(to_model_range(images[indices]).to(device), diffusion, network, seed, timesteps)
    title = f"{type(data).__name__}, T = {diffusion.num_steps}, seed {seed}"
    while len(page := render(title, recorded.content(captions, num_timesteps))) > MAX_BYTES:
        if len(captions) > 1:
            captions.pop()
        elif num_timesteps > 1:
            num_timesteps = math.ceil(num_timesteps / 2)
        else:
            break  # a single picture may be larger
    path.write_text(page, encoding="utf-8")


def planned_size(num_steps: int, pixels: int) -> tuple[int, int]:
    """Return the numbers of images and of timesteps that keep the recording below MAX_VALUES."""

    def values(num_images: int) -> int:
        return pixels * (4 + 2 * num_images)  # of one timestep: four layers of noise, two of each image

    num_images = max([2, *(n for n in range(1, NUM_IMAGES + 1) if num_steps * values(n) <= MAX_VALUES)])
    return num_images, min(num_steps, max(2, MAX_VALUES // values(num_images)))


def pick_images(labels: Tensor, first: int, number: int) -> list[int]:
    """Return the indices of image `first` and of the images after it, those with new labels before the others."""
    following = [(first + i) % len(labels) for i in range(len(labels))]
    by_label: dict[int, int] = {}
    for index in following:
        by_label.setdefault(int(labels[index]), index)
    new_labels = list(by_label.values())
    return list(dict.fromkeys([*new_labels, *following[:number]]))[:number]


class Layer:
    """Pictures of the recorded timesteps, rounded to multiples of a unit: int8 [S, pixels] and units [S]."""

    def __init__(self, num_timesteps: int, pixels: int):
        self.rows = torch.zeros(num_timesteps, pixels, dtype=torch.int8)
        self.units = torch.zeros(num_timesteps)

    def put(self, row: int | None, picture: Tensor, unit: float) -> None:
        """Record a picture; None is a timestep that is not recorded."""
        if row is None:
            return
        self.rows[row] = (picture.flatten() / unit).round().clamp(-127, 127).to(torch.int8)
        self.units[row] = unit

    def content(self, rows: list[int]) -> dict[str, Any]:
        """Return the units and the rows, each as its difference to the row before, which compresses well."""
        kept = self.rows[rows]
        kept[1:] -= kept[:-1].clone()  # modulo 256; the browser adds the same way
        packed = zlib.compress(kept.numpy().tobytes(), level=9)
        return {"units": numbers(self.units[rows]), "rows": base64.b64encode(packed).decode()}


class Recording:
    """All chains of some images, in a form that the browser puts together again.

    The images share their noise, and every chain is linear in it: x_t is a part without noise plus a part that is the
    same for all images. So the page has the noise of a chain once, and for each image only what the network predicts,
    which changes little from step to step.

    Args:
        x0: [N, C, H, W] in [-1, 1], on the device of `diffusion`.
        timesteps: those that are recorded, ascending.
    """

    @torch.no_grad()
    def __init__(
        self, x0: Tensor, diffusion: GaussianDiffusion, network: Network | None, seed: int, timesteps: Sequence[int]
    ):
        self.x0, self.diffusion, self.timesteps = x0, diffusion, timesteps
        self.row = {t: row for row, t in enumerate(timesteps)}
        self.rmse: dict[str, Tensor] = {}
        """RMSE to x_0 by chain, [N, S]"""
        self.noise: dict[str, Layer] = {}
        """noise of x_t by chain"""
        self.predicted: dict[str, list[Layer]] = {}
        """a layer for each image: by "learned" x_t without its noise, by "predicted_x0" what the network predicts"""
        self.kl: Tensor | None = None
        """KL of the step from the forward chain's x_t, in bits/dim, [N, S]; NaN at t = 0"""

        # Of an image with x_0 = 0, every x_t is noise.
        self.known = torch.cat([torch.zeros_like(x0[:1]), x0])
        x_T = self._record_known("forward", self._forward(shared_noise(seed, 1)))
        posterior = GaussianDiffusion(diffusion.betas, "x0", clip_x0=False).to(x0.device)
        self._record_known("oracle", reverse(x_T, posterior, lambda x_t, t: self.known, shared_noise(seed, 2)))
        mistake: RandnLike = torch.ones_like  # the chapter's code adds the standard deviation itself
        self._record_known("no_fresh_noise", reverse(x_T, posterior, lambda x_t, t: self.known, mistake))
        if network is not None:
            with Progress(console=console, transient=True) as progress:
                self._record_learned(x_T, network, seed, progress)
                self._record_kl(network, seed, progress)

    def _forward(self, randn_like: RandnLike) -> "Chain":
        x_t = self.known
        for t, beta in enumerate(self.diffusion.betas.tolist()):
            x_t = math.sqrt(1 - beta) * x_t + math.sqrt(beta) * randn_like(x_t)
            yield t, x_t, self.known

    def _record_known(self, name: str, chain: "Chain") -> Tensor:
        """Record a chain of `self.known` and return its last images."""
        layer = self.noise[name] = self._layer()
        for t, x_t, _ in chain:
            self._see(name, t, x_t[1:])
            # The chapter's mistake reaches ten times the range of a pixel.
            layer.put(self.row.get(t), x_t[0], max(self._noise_unit(t), x_t[0].abs().max().item() / 127))
        return x_t

    def _record_learned(self, x_T: Tensor, network: Network, seed: int, progress: Progress) -> None:
        chain = reverse(x_T[1:], self.diffusion, network, shared_noise(seed, 2))
        # The noise of the learned chain, which has the model's variance: a chain whose predicted x_0 is always 0.
        same = self.diffusion.subsequence(torch.arange(self.diffusion.num_steps))
        noise = reverse(x_T[:1], same, lambda x_t, t: torch.zeros_like(x_t), shared_noise(seed, 2))
        names = ("learned", "predicted_x0")
        layers = {name: [self._layer() for _ in self.x0] for name in names}
        self.predicted, self.noise["learned"] = layers, self._layer()
        task = progress.add_task("learned chains", total=self.diffusion.num_steps)
        for (t, x_t, predicted), (_, noise_t, _) in zip(chain, noise, strict=True):
            row = self.row.get(t)
            self.noise["learned"].put(row, noise_t, self._noise_unit(t))
            for name, pictures, smooth in zip(names, (x_t, predicted), (x_t - noise_t, predicted), strict=True):
                self._see(name, t, pictures)
                for layer, picture in zip(layers[name], smooth, strict=True):
                    layer.put(row, picture, PIXEL_UNIT)
            progress.advance(task)

    def _record_kl(self, network: Network, seed: int, progress: Progress) -> None:
        noise = (x_t[:1] / self._sigma(t) for t, x_t, _ in self._forward(shared_noise(seed, 1)) if t in self.row)
        task = progress.add_task("KL of each step", total=len(self.timesteps))

        def of_the_forward_chain(like: Tensor) -> Tensor:
            progress.advance(task)
            return next(noise).expand_as(like)

        after_first = torch.tensor(self.timesteps[1:], dtype=torch.int64)
        terms = vlb_terms(network, self.diffusion, self.x0, after_first, of_the_forward_chain)
        self.kl = torch.cat([torch.full((len(self.x0), 1), math.nan), terms.kl.cpu()], dim=1)

    def _layer(self) -> Layer:
        return Layer(len(self.timesteps), self.x0[0].numel())

    def _see(self, name: str, t: int, pictures: Tensor) -> None:
        if t in self.row:
            empty = torch.zeros(len(self.x0), len(self.timesteps))
            rmse = (pictures - self.x0).square().mean(dim=(1, 2, 3)).sqrt()
            self.rmse.setdefault(name, empty)[:, self.row[t]] = rmse.cpu()

    def _sigma(self, t: int) -> float:
        return math.sqrt(1 - self.diffusion.alpha_bars[t].item())

    def _noise_unit(self, t: int) -> float:
        return self._sigma(t) * NOISE_UNIT

    def content(self, captions: Sequence[str], num_timesteps: int) -> dict[str, Any]:
        """Return what the page shows, as plain data: the first images, one for each caption, at fewer timesteps."""
        rows = evenly(len(self.timesteps), num_timesteps)
        t = torch.tensor(self.timesteps)[rows]
        alpha_bars = self.diffusion.alpha_bars[t]
        no_images = torch.zeros(len(t), 1, 1, 1, device=self.x0.device)
        _, posterior_variance = self.diffusion.q_posterior(no_images, no_images, t.to(self.x0.device))
        own_variance = "learned" in self.noise and self.diffusion.variance != "small"
        return {
            "shape": list(self.x0.shape[1:]),
            "timesteps": t.tolist(),
            "signal": numbers(alpha_bars.sqrt()),
            "schedule": {
                "alpha_bar": numbers(alpha_bars),
                "posterior_variance": numbers(posterior_variance.flatten()),
                "snr": numbers(alpha_bars / (1 - alpha_bars)),
            },
            # Without a variance of its own, the learned chain has the oracle's noise.
            "learned_noise": "learned" if own_variance else "oracle",
            "noise": {
                name: layer.content(rows) for name, layer in self.noise.items() if name != "learned" or own_variance
            },
            "images": [
                {
                    "caption": caption,
                    "pixels": base64.b64encode(to_uint8(self.x0[i]).cpu().numpy().tobytes()).decode(),
                    "predicted": {name: layers[i].content(rows) for name, layers in self.predicted.items()},
                    "rmse": {name: numbers(rmse[i, rows]) for name, rmse in self.rmse.items()},
                    "kl": None if self.kl is None else numbers(self.kl[i, rows]),
                }
                for i, caption in enumerate(captions)
            ],
        }


Chain = Iterator[tuple[int, Tensor, Tensor]]
"""t, x_t and the x_0 from which the next step follows, for each timestep"""


def reverse(x_T: Tensor, diffusion: GaussianDiffusion, network: Network, randn_like: RandnLike) -> Chain:
    """Yield each timestep of the reverse chain from x_T, with the predicted x_0; the image after t = 0 is left out."""
    for step in Ancestral().iterate(network, diffusion, x_T, randn_like):
        yield step.t, step.x_t, step.x0


def shared_noise(seed: int, key: int) -> RandnLike:
    """Return a `randn_like` that gives all images of a batch the same noise."""
    noise = ImageNoise(Stream.SAMPLING, seed, key, indices=[0])
    return lambda like: noise(like[:1]).expand_as(like)


def numbers(values: Tensor) -> list[float | None]:
    """Return the values with four significant digits; None where they are not finite, as JSON has no NaN."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def render(title: str, content: dict[str, Any]) -> str:
    """Return the HTML page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    template = environment.from_string(
        resources.files("ddpm.commands").joinpath("denoise_page.html").read_text("utf-8")
    )
    return template.render(title=title, content=content)
