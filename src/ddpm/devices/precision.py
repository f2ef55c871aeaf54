"""Selects the numeric precision for a device."""

import platform
from typing import Any

import torch
from lightning.fabric.plugins import MixedPrecision as FabricMixedPrecision
from lightning.fabric.strategies import Strategy as FabricStrategy
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import Strategy

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def resolve_precision(precision: str, accelerator: str) -> str:
    """Return Lightning's name of the precision for an accelerator. Names other than "auto" are returned unchanged.

    "auto" is bfloat16 autocast on devices that compute convolutions faster in bfloat16: CUDA GPUs since Ampere, XPUs,
    and CPUs with AMX or AVX-512 BF16. On all other devices, "auto" is float32.

    Args:
        accelerator: "cpu", "cuda", "xpu" or "mps", available on this machine.

    Raises:
        ValueError: the precision is not in `PRECISIONS`, or the device does not support it.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(f"precision={precision} is none of auto, {', '.join(PRECISIONS)}.")
    if precision == "16-mixed" and accelerator in ("cpu", "xpu"):
        # On XPUs: torch's GradScaler inverts its scale in float64, which XPUs of the A series do not support.
        raise ValueError(f"accelerator={accelerator} does not support precision=16-mixed: use bf16-mixed or 32-true.")
    if accelerator == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16-mixed" and not fast:
            raise ValueError("precision=bf16-mixed needs a GPU with bfloat16 (Ampere or later): use 32-true.")
    elif accelerator == "cpu":
        # The capability is lower if ATEN_CPU_CAPABILITY limits the instructions.
        fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and (
            torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        )
    else:
        fast = accelerator == "xpu"
    if precision == "auto":
        return "bf16-mixed" if fast else "32-true"
    return precision


def device_name(device: torch.device) -> str:
    """Return the name of the device, for provenance.json and error messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xpu":
        return torch.xpu.get_device_name(device)
    return f"{device.type}: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


class TrainerAutocast(Strategy):
    """Mixin that makes autocast use the accelerator's device type. Lightning uses CUDA for types it does not know."""

    @Strategy.precision_plugin.setter  # type: ignore[attr-defined]
    def precision_plugin(self, plugin: Any) -> None:
        if isinstance(plugin, MixedPrecision) and self.accelerator and plugin.device != self.accelerator.name():
            plugin = MixedPrecision(plugin.precision, self.accelerator.name())  # type: ignore[arg-type]
        Strategy.precision_plugin.fset(self, plugin)  # type: ignore[attr-defined]


class FabricAutocast(FabricStrategy):
    """`TrainerAutocast` for strategies of Fabric."""

    @FabricStrategy.precision.setter  # type: ignore[attr-defined]
    def precision(self, plugin: Any) -> None:
        if isinstance(plugin, FabricMixedPrecision) and self.accelerator and plugin.device != self.accelerator.name():
            plugin = FabricMixedPrecision(plugin.precision, self.accelerator.name())  # type: ignore[arg-type]
        FabricStrategy.precision.fset(self, plugin)  # type: ignore[attr-defined]
