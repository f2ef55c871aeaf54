"""Hydra looks for launchers in the package `hydra_plugins` alone; this one's code is `ddpm.launch.slurm_queue`."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


class SlurmLauncher(Launcher):
    """Jobs in Slurm's queue; its settings are in conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, **context: Any) -> None:
        self.context = context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from ddpm.launch.slurm_queue import launch

        return launch(self.settings, self.context, job_overrides, initial_job_idx)
