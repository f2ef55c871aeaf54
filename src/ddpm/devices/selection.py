"""Checks the device, the number of devices, precision and strategy, and converts them to arguments of Lightning."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.accelerators import ACCELERATOR_REGISTRY
from lightning.fabric.utilities.exceptions import MisconfigurationException

from .precision import resolve_precision

GPUS = ("cuda", "xpu", "mps")
"""accelerators in the order in which "auto" and "gpu" try them"""
STRATEGIES = ("auto", "ddp", "fsdp")


def lightning_arguments(
    accelerator: str = "auto",
    devices: int | str | Sequence[int] = 1,
    num_nodes: int = 1,
    precision: str = "auto",
    strategy: str = "auto",
) -> dict[str, Any]:
    """Return arguments for Lightning's `Trainer` or `Fabric`, checked against the machine.

    Args:
        accelerator: name of Lightning's accelerator. "auto" is the first available of CUDA, XPU, MPS and CPU; "gpu" is
            the first available of CUDA, XPU and MPS.
        devices: number of devices, device indices, or "auto" for all devices. On the CPU, the number of processes.
        precision: see `resolve_precision`.
        strategy: "auto" is DDP for several processes. "fsdp" shards the model and works only with `Trainer`.

    Raises:
        ValueError: a device is not available, or the device does not support the precision or the strategy.
    """
    accelerator = resolve_accelerator(accelerator)
    devices = devices if isinstance(devices, (int, str)) else list(devices)
    processes = num_nodes * count_devices(accelerator, devices)
    precision = resolve_precision(precision, accelerator)
    if strategy == "fsdp" and precision == "16-mixed":
        raise ValueError("strategy=fsdp does not support precision=16-mixed: use bf16-mixed or 32-true.")
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "precision": precision,
        "strategy": resolve_strategy(strategy, accelerator, processes),
    }


def resolve_accelerator(accelerator: str) -> str:
    """Return Lightning's name of an available accelerator. Names other than "auto" and "gpu" are returned unchanged.

    Raises:
        ValueError: the accelerator is unknown, or not available on this machine.
    """
    candidates = {"auto": (*GPUS, "cpu"), "gpu": GPUS}.get(accelerator, (accelerator,))
    if unknown := set(candidates) - set(ACCELERATOR_REGISTRY):
        names = ", ".join(sorted(ACCELERATOR_REGISTRY))
        raise ValueError(f"accelerator={unknown.pop()} is none of auto, gpu, {names}.")
    for name in candidates:
        if ACCELERATOR_REGISTRY[name]["accelerator"].is_available():
            return name
    hint = " XPUs need Intel's driver and the torch build for XPU (see pytorch.org's \"Get started\")."
    raise ValueError(
        f"accelerator={accelerator} is not available: torch {torch.__version__} finds no such device here."
        f"{hint if accelerator == 'xpu' else ''} Use accelerator=auto to select an available device."
    )


def count_devices(accelerator: str, devices: int | str | list[int]) -> int:
    """Return the number of devices that `devices` selects. On the CPU, return the number of processes.

    Raises:
        ValueError: `devices` selects no device, or a device that is not available.
    """
    kind = ACCELERATOR_REGISTRY[accelerator]["accelerator"]
    available = kind.auto_device_count()
    if devices == "auto":
        return available
    try:
        return len(kind.get_parallel_devices(kind.parse_devices(devices)))
    except (MisconfigurationException, ValueError, TypeError) as error:
        has = "on the CPU, set a number of processes" if accelerator == "cpu" else f"this machine has {available}"
        raise ValueError(f"devices={devices} does not fit accelerator={accelerator}: {has}.") from error


def resolve_strategy(strategy: str, accelerator: str, processes: int) -> str:
    """Return the name of the strategy in Lightning's registry.

    Raises:
        ValueError: the strategy is unknown, or the accelerator does not support it.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy} is none of {', '.join(STRATEGIES)}.")
    if accelerator == "mps" and (strategy != "auto" or processes > 1):
        raise ValueError("accelerator=mps supports only one device in one process: use strategy=auto and devices=1.")
    if strategy == "fsdp":
        return "fsdp2"
    if accelerator == "xpu":
        return "single_xpu" if strategy == "auto" and processes == 1 else "ddp_xpu"
    return strategy
