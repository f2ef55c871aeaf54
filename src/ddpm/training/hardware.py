"""The `trainer` settings that say where a command computes, for Lightning."""

import logging
import os
import warnings
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from ddpm import devices
from ddpm.errors import UserError
from ddpm.runs import slurm

KEYS = ("accelerator", "devices", "num_nodes", "precision", "strategy")


def lightning_arguments(trainer: DictConfig) -> dict[str, Any]:
    """What Trainer and Fabric are given, with "auto" resolved.

    Raises:
        UserError: a device that is not there, more than there are, a precision or a strategy that it lacks, or nodes
            that would not find each other.
    """
    told = slurm.is_task() or "RANK" in os.environ or {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys()
    if trainer.num_nodes > 1 and not told:
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
    """How many work together, on all nodes.

    Raises:
        UserError: as `lightning_arguments`.
    """
    if runs_elsewhere():  # on nodes that need not be like this one
        if not isinstance(trainer.devices, int):
            raise UserError(f"trainer.devices={trainer.devices}: Slurm must be told a number.")
        return int(trainer.num_nodes * trainer.devices)
    arguments = lightning_arguments(trainer)
    return int(arguments["num_nodes"] * devices.count_devices(arguments["accelerator"], arguments["devices"]))


def cluster_environment() -> list[Any]:
    """Who starts the processes, for `plugins` of Trainer and Fabric. Empty where Lightning finds out by itself.

    In a Slurm job without srun, Lightning would wait for processes that nobody starts.
    """
    if TorchElasticEnvironment.detect() or "SLURM_NTASKS" not in os.environ:
        return []
    return [SLURMEnvironment(auto_requeue=False) if slurm.is_task() else LightningEnvironment()]


def check_tasks(trainer: DictConfig) -> None:
    """Raise a UserError if Slurm was asked for several tasks, and this process was started without srun for fewer."""
    tasks = slurm.number_of_tasks()
    if tasks == 1 or slurm.is_task() or TorchElasticEnvironment.detect():
        return
    if (processes := number_of_processes(trainer)) != tasks:
        raise UserError(
            f"the Slurm job has {tasks} tasks (SLURM_NTASKS), and without srun {processes} would train: start it with "
            f"`srun`, or set trainer.devices={tasks} (on one node), or unset SLURM_NTASKS."
        )


def is_first_process() -> bool:
    """Whether this process is the first of those that work together, which alone writes; before they have met."""
    # Of a node that Lightning itself has not started processes on yet, its rank_zero_only knows nothing.
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank_zero_only.rank == 0 and int(node) == 0  # type: ignore[attr-defined]


def runs_elsewhere() -> bool:
    """Whether the job is to be queued in Slurm, and this process only checks it: the nodes have other devices."""
    return not slurm.is_task() and HydraConfig.initialized() and "slurm" in HydraConfig.get().launcher["_target_"]


def quieten_lightning() -> None:
    """Leave out its tips, device lists and greetings of ranks: the commands say what they use themselves."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "The `srun` command is available")  # a cluster's login node trains too
