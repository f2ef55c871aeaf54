#!/usr/bin/env python
"""The shortest programs: ten lines from a trained model to a picture, thirty lines that train on your own tensor.

    python scripts/minimal.py sample outputs/train/quickstart/base   # a run or a checkpoint; writes samples.png
    python scripts/minimal.py train digits.pt                        # uint8 [N, C, H, W]; writes samples.png

Copy the body of either function into a file of your own.
"""


def sample(path: str) -> None:
    import ddpm
    from ddpm.data.pictures import image_grid

    model = ddpm.load(path)
    images = model.sample(16, steps=25, seed=0)  # [16, C, H, W] in [-1, 1]
    image_grid(images).save("samples.png")


def train(path: str, max_steps: int = 1000) -> None:
    import torch
    from lightning import Trainer

    from ddpm.data import ImageData, Split
    from ddpm.data.pictures import image_grid
    from ddpm.diffusion import GaussianDiffusion, schedules
    from ddpm.models import UNet
    from ddpm.training import DDPM

    images = torch.load(path, weights_only=True)  # uint8 [N, C, H, W]; H and W divisible by 4
    num_images, channels, height, width = images.shape

    class Images(ImageData):
        def load(self) -> dict[str, Split]:
            every = Split(images, labels=torch.zeros(num_images, dtype=torch.int64))
            return {"train": every, "validation": every, "test": every}

    data = Images(batch_size=min(64, num_images), image_channels=channels, image_size=[height, width])
    model = DDPM(
        network=UNet(channels, channels=16, multipliers=[1, 2, 4], blocks=1),
        diffusion=GaussianDiffusion(schedules.linear(1000), prediction="epsilon"),
        image_shape=(channels, height, width),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        warmup_steps=100,
        ema_decay=0.99,
    )
    trainer = Trainer(max_steps=max_steps, devices=1, limit_val_batches=0, enable_checkpointing=False, logger=False)
    trainer.fit(model, data)
    image_grid(model.eval().sample(16, steps=25, seed=0)).save("samples.png")


if __name__ == "__main__":
    import sys

    match sys.argv[1:]:
        case ["sample", path]:
            sample(path)
        case ["train", path]:
            train(path)
        case _:
            sys.exit(__doc__)
