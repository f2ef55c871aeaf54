"""The `trainer` settings that say where a command computes, for Lightning."""

from typing import Any

from omegaconf import DictConfig

from ddpm import devices, slurm
from ddpm.errors import UserError

KEYS = ("accelerator", "devices", "num_nodes", "precision", "strategy")


def lightning_arguments(trainer: DictConfig) -> dict[str, Any]:
    """What Trainer and Fabric are given, with "auto" resolved.

    Raises:
        UserError: a device that is not there, more than there are, or a precision or a strategy that it lacks.
    """
    try:
        return devices.lightning_arguments(**{key: trainer[key] for key in KEYS if key in trainer})
    except ValueError as error:
        raise UserError(f"trainer: {error}") from error


def number_of_processes(trainer: DictConfig) -> int:
    """How many work together, on all nodes.

    Raises:
        UserError: as `lightning_arguments`.
    """
    if slurm.is_elsewhere():  # on nodes that need not be like this one
        if not isinstance(trainer.devices, int):
            raise UserError(f"trainer.devices={trainer.devices}: Slurm must be told a number.")
        return int(trainer.num_nodes * trainer.devices)
    arguments = lightning_arguments(trainer)
    return int(arguments["num_nodes"] * devices.count_devices(arguments["accelerator"], arguments["devices"]))
