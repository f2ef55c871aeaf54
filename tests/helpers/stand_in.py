"""Two CPUs registered as XPUs, so that our code for XPUs runs on a machine without one.

`python stand_in.py CHECKPOINT` trains in two processes and writes the checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY
from lightning.pytorch.accelerators import AcceleratorRegistry
from small import fit, small_model

from ddpm.devices import lightning_arguments
from ddpm.devices.xpu import DDPXPUStrategy, XPUAccelerator


class StandIn(XPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def teardown(self) -> None:
        pass

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("cpu")] * len(devices)

    @staticmethod
    def auto_device_count() -> int:
        return 2

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "cpu"  # the device type of autocast


REGISTRIES = (AcceleratorRegistry, ACCELERATOR_REGISTRY)
ENTRY = {"accelerator": StandIn, "accelerator_name": "xpu", "description": "", "init_params": {}}


def train(max_steps: int, resume: Path | None = None, **hardware: Any) -> L.Trainer:
    return fit(small_model(seed=3), max_steps, resume=resume, **lightning_arguments(**hardware))


def register(entry: dict[str, Any]) -> None:
    for registry in REGISTRIES:
        registry["xpu"] = entry


if __name__ == "__main__":
    register(ENTRY)
    trainer = train(4, accelerator="xpu", devices=2, precision="32-true")
    assert type(trainer.strategy) is DDPXPUStrategy
    assert trainer.world_size == torch.distributed.get_world_size() == 2
    assert torch.distributed.get_backend() == "gloo"
    trainer.save_checkpoint(sys.argv[1])
