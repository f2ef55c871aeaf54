"""Our Slurm launcher for Hydra, which looks for launchers only in the package `hydra_plugins`."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """Puts jobs into Slurm's queue. The settings are in conf/hydra/launcher/slurm.yaml."""

    config: DictConfig

    def __init__(self, **settings: object):
        pass  # read from the config

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ddpm.launch.slurm_queue import launch

        return launch(self.config, job_overrides)
