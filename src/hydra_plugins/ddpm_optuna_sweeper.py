"""Hydra looks for sweepers in the package `hydra_plugins` alone; what this one does is in `ddpm.launch.search`."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class OptunaSweeperConf:
    """Optuna chooses the points of a sweep; the same command again goes on with the same study."""

    _target_: str = "hydra_plugins.ddpm_optuna_sweeper.OptunaSweeper"
    _recursive_: bool = False
    # Without Optuna there is no sampler to choose, which the sweeper then says.
    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"optional sampler": "tpe"}, {"pruner": "median"}])
    sampler: Any = None
    pruner: Any = None
    n_trials: int = 20  # in all, over all launches and all who work on the study
    n_jobs: int = 1  # trials launched together: as many as the launcher runs at once
    metric: str = "val/bpd"  # of a run's metrics.json
    direction: str = "minimize"
    storage: str | None = None  # the URL of a database; None is search.db beside the runs
    params: dict[str, str] | None = None  # the space; arguments add to it


class InPlaceOfThePluginsOwn(SearchPathPlugin):
    """What Hydra asks after it has loaded all plugins: from then on `optuna` is ours, not hydra-optuna-sweeper's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaSweeperConf, provider="ddpm")


class OptunaSweeper(Sweeper):
    """Jobs at points that Optuna chooses, in one study for all who ask for the same."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, params: DictConfig | None, **settings: Any):
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from ddpm.errors import UserError

        try:
            from ddpm.launch.search.trials import run_search
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: a search needs Optuna, pip install -e '.[optuna]'") from error
        loader = self.hydra_context.config_loader
        space = [f"{key!s}={values}" for key, values in self.params.items()]
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(space + arguments)
        return run_search(self.config, overrides, loader, self.launcher)
