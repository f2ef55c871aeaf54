"""Two processes of DDP on one GPU. `python one_card.py cuda|cpu FOLDER` trains and writes FOLDER/checkpoints/last.ckpt.

NCCL refuses two processes on one card, so gloo connects them. All else is as with two cards.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import Accelerator, CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy
from small import Rows, fit, small_model

from ddpm.training.callbacks import LastCheckpoint


class OneCard(CUDAAccelerator):
    """Uses the first card for all devices."""

    @staticmethod
    def parse_devices(devices):
        return list(range(devices))

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device("cuda", 0)] * len(devices)


def train(accelerator: str | Accelerator, folder: Path, **options: Any) -> L.Trainer:
    last = LastCheckpoint(folder, every_steps=2, every_minutes=60)
    options |= {"logger": Rows(), "log_every_n_steps": 1, "limit_val_batches": 1.0, "val_check_interval": 2}
    return fit(small_model(seed=3), 4, last, accelerator=accelerator, **options)


if __name__ == "__main__":
    device, folder = sys.argv[1:]
    accelerator = OneCard() if device == "cuda" else device
    trainer = train(accelerator, Path(folder), devices=2, strategy=DDPStrategy(process_group_backend="gloo"))
    assert trainer.world_size == torch.distributed.get_world_size() == 2
    assert trainer.strategy.root_device.type == device
