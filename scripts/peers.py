#!/usr/bin/env python
"""Train another library's diffusion model on MNIST for some minutes, and draw samples with its own sampler.

    scripts/reproduce field                                                    # both libraries, judged by ddpm evaluate
    python scripts/peers.py library=diffusers minutes=25 steps=100 to=DIR      # pip install -e '.[peers]'

Writes DIR/samples.npz, metrics.json and provenance.json. The loss, the average of the weights and the sampler are the
library's. The loop around them is that of its Trainer or example, with its settings: batch, optimizer, clipping.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from ddpm.commands.evaluate.entry import mnist
from ddpm.config import build, conf_dir
from ddpm.data import to_uint8
from ddpm.runs import write_json, write_provenance

SAMPLES_AT_ONCE = 250


@dataclass
class Peer:
    loss: Callable[[Tensor], Tensor]
    """of images [B, 1, 28, 28] in [-1, 1]"""
    weights: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: Callable[[], object]
    """updates the average of the weights; called after each step"""
    sample: Callable[[int], Tensor]
    """returns images [N, 1, 28, 28] in [-1, 1]"""
    batch: int = 16
    schedule: Any = None
    """of the learning rate"""


def denoising_diffusion_pytorch(steps: int, batch: int, lr: float) -> Peer:
    """The README's model at the size of `unet_small`, and the defaults of its Trainer, without mirrored digits."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    model = GaussianDiffusion(
        Unet(dim=32, dim_mults=(1, 2, 4), channels=1), image_size=28, timesteps=1000, sampling_timesteps=steps
    )
    ema = EMA(model, beta=0.995, update_every=10)
    weights = list(model.parameters())
    return Peer(
        lambda images: model((images + 1) / 2),
        weights,
        torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.99)),
        ema.update,
        lambda n: ema.ema_model.sample(batch_size=n) * 2 - 1,
        batch,
    )


def diffusers(steps: int, batch: int, lr: float) -> Peer:
    """The example train_unconditional.py with --use_ema, at the size of `unet_small`; sampled by DDIM."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_constant_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    model = UNet2DModel(
        28, 1, 1,
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    noises = DDPMScheduler(num_train_timesteps=1000)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)

    def loss(images: Tensor) -> Tensor:
        eps, t = torch.randn_like(images), torch.randint(1000, (len(images),))
        return (model(noises.add_noise(images, eps, t), t).sample - eps).square().mean()

    def sample(n: int) -> Tensor:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        sampler = DDIMScheduler.from_config(noises.config)
        sampler.set_timesteps(steps)
        x = torch.randn(n, 1, 28, 28)
        for t in sampler.timesteps:
            x = sampler.step(model(x, t).sample, t, x).prev_sample
        ema.restore(model.parameters())
        return x.clamp(-1, 1)

    # The example's cosine needs the number of steps, which is not known here: the warm-up alone.
    schedule = get_constant_schedule_with_warmup(optimizer, num_warmup_steps=500)
    return Peer(loss, weights, optimizer, lambda: ema.step(model.parameters()), sample, batch, schedule)


PEERS = {"denoising-diffusion-pytorch": denoising_diffusion_pytorch, "diffusers": diffusers}


def train(peer: Peer, images: Tensor, minutes: float) -> tuple[int, float]:
    """Train for some minutes, and return the number of steps and the seconds."""
    steps, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 60 * minutes:
        chosen = images[torch.randint(len(images), (peer.batch,))]
        loss = peer.loss(chosen.float().div(127.5).sub(1))
        loss.backward()
        nn.utils.clip_grad_norm_(peer.weights, 1.0)
        peer.optimizer.step()
        if peer.schedule is not None:
            peer.schedule.step()
        peer.optimizer.zero_grad()
        peer.average()
        steps += 1
    return steps, seconds


def main(argv: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in argv)
    library, to = settings.pop("library"), Path(settings.pop("to"))
    minutes, steps, number = (
        float(settings.pop("minutes")),
        int(settings.pop("steps")),
        int(settings.pop("samples", "2000")),
    )
    batch, lr = int(settings.pop("batch", "16")), float(settings.pop("lr", "1e-4"))
    if settings:
        sys.exit(f"peers.py: unknown settings {', '.join(settings)}")
    torch.manual_seed(0)
    peer = PEERS[library](steps, batch, lr)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        images = build(mnist(compose("evaluate"))).ready().split("train").images
    done, seconds = train(peer, images, minutes)
    start = time.perf_counter()
    with torch.no_grad():
        parts = [to_uint8(peer.sample(min(SAMPLES_AT_ONCE, number - i))) for i in range(0, number, SAMPLES_AT_ONCE)]
    drawing = time.perf_counter() - start
    to.mkdir(parents=True, exist_ok=True)
    np.savez(to / "samples.npz", torch.cat(parts).numpy())
    write_provenance(to, "cpu")
    facts = {"step": done, "seconds": seconds, "images_per_second": done * batch / seconds}
    facts |= {"network_evaluations": steps, "seconds_per_1000_images": 1000 * drawing / number}
    write_json(to / "metrics.json", facts)


if __name__ == "__main__":
    main(sys.argv[1:])
