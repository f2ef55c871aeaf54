"""Support of Intel XPUs, which Lightning lacks: an accelerator, and strategies for one device and for several.

`register()` adds them for both `Trainer` and `Fabric`:

    Trainer(accelerator="xpu", strategy="single_xpu", devices=1, precision="bf16-mixed")
    Fabric(accelerator="xpu", strategy="ddp_xpu", devices=4)

The strategy must be named. Otherwise Lightning selects the CPU for one device, and for several devices a strategy that
opens a CUDA stream.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies import DDPStrategy as FabricDDPStrategy
from lightning.fabric.strategies import SingleDeviceStrategy as FabricSingleDeviceStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry

from .precision import FabricAutocast, TrainerAutocast


class XPUAccelerator(Accelerator):
    """The Intel GPUs that torch finds. `torch.manual_seed` also seeds their generators."""

    def setup_device(self, device: torch.device) -> None:
        if device.type != "xpu":
            raise MisconfigurationException(f"the device should be an XPU, got {device}.")
        torch.xpu.set_device(device)

    def teardown(self) -> None:
        torch.xpu.empty_cache()

    def get_device_stats(self, device: torch.device | str | int) -> dict[str, Any]:
        """Return the counters of the allocator (bytes, blocks), for Lightning's DeviceStatsMonitor."""
        return torch.xpu.memory_stats(device)

    @classmethod
    def parse_devices(cls, devices: int | str | Sequence[int]) -> list[int]:
        """Return indices from a number of devices (-1 for all), a list, or a string of either: "2", "0,2".

        Raises:
            MisconfigurationException: no device, a device twice, or one that is not available.
        """
        count = cls.auto_device_count()
        if isinstance(devices, str):
            devices = [int(index) for index in devices.split(",") if index] if "," in devices else int(devices)
        if isinstance(devices, int):
            devices = range(count if devices == -1 else devices)
        indices = list(devices)
        if not indices or len(set(indices)) < len(indices) or not set(indices) <= set(range(count)):
            raise MisconfigurationException(f"XPUs {indices} were asked for, of {count}.")
        return indices

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("xpu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return torch.xpu.device_count()

    @staticmethod
    def is_available() -> bool:
        return torch.xpu.is_available()

    @staticmethod
    def name() -> str:
        return "xpu"


class _OneDevice:
    parallel_devices: list[torch.device] | None = None
    """the device that `devices` names; Lightning sets this attribute on strategies that have it"""

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return self.parallel_devices[0]


class SingleXPUStrategy(_OneDevice, TrainerAutocast, SingleDeviceStrategy):
    """For `Trainer`, in one process."""


class FabricSingleXPUStrategy(_OneDevice, FabricAutocast, FabricSingleDeviceStrategy):
    """For `Fabric`, in one process."""


# A strategy that names no device ids opens no CUDA stream, and DDP takes the device of the weights.


class DDPXPUStrategy(TrainerAutocast, DDPStrategy):
    """For `Trainer`, with one process for each device. The process group is torch's default for XPUs, xccl."""

    def determine_ddp_device_ids(self) -> None:
        return None


class FabricDDPXPUStrategy(FabricAutocast, FabricDDPStrategy):
    """For `Fabric`, with one process for each device."""

    def _determine_ddp_device_ids(self) -> None:  # private in Fabric, which has no public counterpart
        return None


def register() -> None:
    """Register the accelerator "xpu" and the strategies "single_xpu" and "ddp_xpu" in Lightning."""
    for accelerators in (AcceleratorRegistry, ACCELERATOR_REGISTRY):
        accelerators.register("xpu", XPUAccelerator, description="Intel XPU")
    for strategies, single, several in (
        (StrategyRegistry, SingleXPUStrategy, DDPXPUStrategy),
        (STRATEGY_REGISTRY, FabricSingleXPUStrategy, FabricDDPXPUStrategy),
    ):
        strategies.register("single_xpu", single, description="one Intel XPU")
        strategies.register("ddp_xpu", several, description="DDP on Intel XPUs")
