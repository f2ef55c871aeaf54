"""Convert the `trainer` settings for devices and processes to arguments of Lightning."""

import logging
import os
import warnings
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from ddpm import devices
from ddpm.errors import UserError
from ddpm.runs import slurm

KEYS = ("accelerator", "devices", "num_nodes", "precision", "strategy")


def lightning_arguments(trainer: DictConfig) -> dict[str, Any]:
    """Return the arguments of Trainer and Fabric, with "auto" resolved.

    Raises:
        UserError: the device does not exist, has fewer units than asked for, or does not support the precision or the
            strategy; or the nodes do not know each other's address.
    """
    knows_address = (
        slurm.is_task() or "RANK" in os.environ or {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys()
    )
    if trainer.num_nodes > 1 and not knows_address:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: start the same command on each node, with MASTER_ADDR and "
            "MASTER_PORT of the first one and NODE_RANK=0, 1 … in the environment, or with torchrun, or use "
            "hydra/launcher=slurm."
        )
    try:
        return devices.lightning_arguments(**{key: trainer[key] for key in KEYS if key in trainer})
    except ValueError as error:
        raise UserError(f"trainer: {error}") from error


def number_of_processes(trainer: DictConfig) -> int:
    """Return the number of processes on all nodes.

    Raises:
        UserError: see `lightning_arguments`.
    """
    if runs_elsewhere():  # those nodes may have other devices
        if not isinstance(trainer.devices, int):
            raise UserError(f"trainer.devices={trainer.devices}: Slurm needs a number.")
        return int(trainer.num_nodes * trainer.devices)
    arguments = lightning_arguments(trainer)
    return int(arguments["num_nodes"] * devices.count_devices(arguments["accelerator"], arguments["devices"]))


def cluster_environment() -> list[Any]:
    """Return the plugin for Trainer and Fabric that names the starter of the processes. Empty if Lightning detects it.

    In a Slurm job without srun, Lightning alone would wait for processes that nobody starts.
    """
    if TorchElasticEnvironment.detect() or "SLURM_NTASKS" not in os.environ:
        return []
    return [SLURMEnvironment(auto_requeue=False) if slurm.is_task() else LightningEnvironment()]


def check_tasks(trainer: DictConfig) -> None:
    """Raise a UserError if this process was started without srun, and the Slurm job has another number of tasks."""
    tasks = slurm.number_of_tasks()
    if tasks == 1 or slurm.is_task() or TorchElasticEnvironment.detect():
        return
    if (processes := number_of_processes(trainer)) != tasks:
        raise UserError(
            f"the Slurm job has {tasks} tasks (SLURM_NTASKS), and without srun {processes} would train: start it with "
            f"`srun`, or set trainer.devices={tasks} (on one node), or unset SLURM_NTASKS."
        )


def is_first_process() -> bool:
    """Return whether this is the first process of the run. Only that one writes. Works before the group is formed."""
    # rank_zero_only knows the rank on this node, but not yet the node.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank_zero_only.rank == 0 and int(node) == 0  # type: ignore[attr-defined]


def runs_elsewhere() -> bool:
    """Return whether this process only checks a job that Slurm will run, perhaps on other devices."""
    return not slurm.is_task() and HydraConfig.initialized() and "slurm" in HydraConfig.get().launcher["_target_"]


def prepare_process() -> None:
    """Let tensors reuse freed memory, and hide Lightning's tips and device lists: our commands print what they use."""
    devices.reuse_freed_memory()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The `srun` command is available")  # users also train on a login node
