"""Our sweepers. Hydra looks for sweepers only in the package `hydra_plugins`; the work is in `ddpm.launch`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweeperWithParams(Sweeper):
    """Base class: sets up the launcher, and parses the overrides of the config and of the command line."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    params: dict[str, Any]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from ddpm.config.checking import check_config  # late: takes 0.2 s, which help and completion do without

        for part in ("sweeper", "launcher"):
            check_config(config.hydra[part], None, f"hydra.{part}")
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def parse(self, arguments: list[str]) -> list[Override]:
        from ddpm.launch.overrides import check_choices

        params = [f"{key!s}={values}" for key, values in self.params.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(params + arguments)
        sources = self.config.hydra.runtime.config_sources
        check_choices(overrides, [Path(source.path) for source in sources if source.schema == "file"])
        return overrides


class CheckedSweeper(SweeperWithParams):
    """A grid of jobs. All are checked before the first starts, and compared after the last."""

    def __init__(self, params: dict[str, Any] | None, max_batch_size: Annotated[int, Ge(1)] | None):
        self.params = dict(params or {})  # the rest is read from the config

    def sweep(self, arguments: list[str]) -> Any:
        from ddpm.launch.sweeps import run_sweep

        return run_sweep(self.config, self.parse(arguments), self.hydra_context.config_loader, self.launcher)


class OptunaSweeper(SweeperWithParams):
    """A search. Optuna chooses the jobs; the same command continues the same study."""

    def __init__(
        self,
        params: dict[str, Any] | None,
        n_trials: Annotated[int, Ge(1)],
        n_jobs: Annotated[int, Ge(1)],
        metric: str,
        direction: Literal["minimize", "maximize"],
        storage: str | None,
        sampler: Any,
        pruner: Any,
    ):
        self.params = dict(params or {})  # the rest is read from the config

    def setup(self, **context: Any) -> None:
        from ddpm.errors import UserError, install_hint

        try:
            import optuna  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: a search needs Optuna, {install_hint('optuna')}") from error
        super().setup(**context)

    def sweep(self, arguments: list[str]) -> Any:
        from ddpm.launch.search.trials import run_search

        return run_search(self.config, self.parse(arguments), self.hydra_context.config_loader, self.launcher)
