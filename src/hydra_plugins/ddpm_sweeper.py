"""Hydra looks for sweepers in the package `hydra_plugins` alone; what ours does is in `ddpm.launch.sweeps`."""

from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class CheckedSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.ddpm_sweeper.CheckedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="ddpm")


class CheckedSweeper(BasicSweeper):
    """Hydra's grid of jobs, all of them checked before the first starts, and compared after the last."""

    def sweep(self, arguments: list[str]) -> Any:
        from ddpm.launch.sweeps import run_sweep

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(self._parse_config() + arguments)
        batches = self.split_arguments(overrides, self.max_batch_size)
        swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
        return run_sweep(self.config, swept, batches, self.hydra_context.config_loader, self.launcher)
