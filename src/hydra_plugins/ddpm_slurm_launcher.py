"""Our Slurm launcher for Hydra, which looks for launchers only in the package `hydra_plugins`."""

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]


class SlurmLauncher(Launcher):
    """Puts jobs into Slurm's queue.

    The settings are in conf/hydra/launcher/slurm.yaml. They are read from the config; the types here are for its check.
    """

    config: DictConfig

    def __init__(
        self,
        name: str,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        timeout_min: Count,
        max_num_timeout: CountOrZero,
        signal_delay_s: CountOrZero,
        nodes: Count,
        tasks_per_node: Count,
        gpus_per_node: CountOrZero | None,
        cpus_per_task: Count | None,
        mem_gb: float | None,
        array_parallelism: Count,
        setup: list[str] | None,
        additional_parameters: dict[str, Any] | None,
        submitit_folder: str,
        **more: Any,
    ):
        pass

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ddpm.launch.slurm_queue import launch

        return launch(self.config, job_overrides)
