"""Uses of Hydra that it does not document. A test in tests/launch fails if a new version of Hydra changes them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write


def share_config_store() -> None:
    """Let copies of Hydra's config store be the store itself.

    Hydra copies the store whenever it composes a config or looks up a group's options, 150 times for a help page. The
    store is a singleton, and copies a node before it gives it away.
    """
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


@contextmanager
def as_current_job(config: DictConfig) -> Iterator[DictConfig]:
    """Let `HydraConfig.get()` describe a composed job within the block; gives the job's config without Hydra's part.

    A sweep plans all jobs before Hydra runs the first one, and a plan reads the overrides of its job from HydraConfig.
    Hydra sets HydraConfig only while it runs a job.
    """
    hydra, before = HydraConfig.instance(), HydraConfig.instance().cfg
    task_config = copy.deepcopy(config)
    with read_write(task_config), open_dict(task_config):
        del task_config["hydra"]
    hydra.set_config(config)
    try:
        yield task_config
    finally:
        hydra.cfg = before
