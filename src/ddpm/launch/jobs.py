"""A job: one command and its composed config, alone or in a sweep."""

import copy
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ddpm.commands import display
from ddpm.errors import UserError
from ddpm.runs import slurm
from ddpm.runs.identity import task_overrides
from ddpm.runs.status import INTERRUPTED

# What to type for a value that has no default.
EXAMPLE_VALUES = {"ckpt": "outputs/train/quickstart/base", "runs": "outputs/train/quickstart"}

PARENT = "DDPM_PARENT"
"""the environment variable that tells a job in a process of its own which process has started it"""
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def run_job(command: str | None, config: DictConfig) -> Any:
    """Run the command on its composed config.

    A single run ends here on a user's mistake. A job of a sweep shows its error at once, and gives Hydra a
    `UserError` without the traceback, which would keep the model alive.
    """
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if command is None:
            raise UserError("a command comes first, as in `ddpm train`.")
        check_values(command, config)
        if sweeping and (needs_processes(config) or in_a_shared_worker()):
            return run_in_process_of_its_own(command)
        stop_with_parent()
        task = importlib.import_module(f"ddpm.commands.{command}")
        if config.get("dry_run"):
            return display.plans([(job_name(task_overrides()), task.plan(config))])
        if sweeping and "torch" in sys.modules:
            importlib.import_module("ddpm.devices.failures").release_memory()  # what the job before has left
        return task.run(config)
    except Exception as error:
        expected = isinstance(error, UserError) and not debugging()
        if not expected and not sweeping:
            raise
        message = str(error) if expected else traceback.format_exc().rstrip()
    if not sweeping:
        sys.exit(f"ddpm {command}: {message}")
    name = job_name(task_overrides())
    print(f"ddpm {command} {name}: {message}", file=sys.stderr, flush=True)
    raise UserError(message)


def check_values(command: str, config: DictConfig) -> None:
    """Raise a UserError that names what is left to the user (`???`), or refers to what is not there."""
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error)) from error
    if missing:
        example = " ".join(f"{key}={EXAMPLE_VALUES.get(key, '…')}" for key in missing)
        raise UserError(f"{', '.join(missing)} must be given, for example\n  ddpm {command} {example}")


def job_name(overrides: Sequence[str], swept: Sequence[str] = ()) -> str:
    """A job in words: what was asked of it, under the keys that its sweep varies or, without any, altogether."""
    asked = filter_overrides(overrides)
    return " ".join(o for o in asked if not swept or o.split("=")[0].lstrip("+") in swept) or "(no overrides)"


@contextmanager
def as_current_job(config: DictConfig) -> Iterator[DictConfig]:
    """Within the block HydraConfig is that of a composed job; gives the job's config without Hydra's part."""
    hydra, before = HydraConfig.instance(), HydraConfig.instance().cfg
    task_config = copy.deepcopy(config)
    with read_write(task_config), open_dict(task_config):
        del task_config["hydra"]
    hydra.set_config(config)
    try:
        yield task_config
    finally:
        hydra.cfg = before


def needs_processes(config: DictConfig) -> bool:
    """Whether a job takes several processes that it must start itself."""
    trainer = config.get("trainer") or {}
    alone = trainer.get("devices", 1) in (1, "1") and trainer.get("num_nodes", 1) == 1
    return not alone and not slurm.is_task()  # Slurm has started all of them


def in_a_shared_worker() -> bool:
    """Whether this process is one of Ray's, which run job after job: a job that crashes must not take it along."""
    return "hydra_ray_launcher" in HydraConfig.get().launcher["_target_"]


def run_in_process_of_its_own(command: str) -> None:
    """Run the current job of a sweep as a single run, which ends when this process does.

    Lightning starts a job's further processes with the command line of this one, which for a sweep would be the
    whole sweep again; and when one of them fails, it ends this one.

    Raises:
        UserError: the job failed.
        SystemExit: it was interrupted.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *single_job(command)],
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,
    )
    asked_to_stop = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        process.send_signal(number)

    handlers = {number: signal.signal(number, forward) for number in FORWARDED_SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == INTERRUPTED or (asked_to_stop and code != 0):
        if in_a_shared_worker():
            raise UserError("the job was interrupted.")
        sys.exit(INTERRUPTED)  # the sweep ends with it
    if code != 0:
        raise UserError(f"the job's own process ended with {code}, see above.")


def stop_with_parent() -> None:
    """Ask this process to stop, as SIGTERM does, once the sweep that has started it is gone, killed perhaps."""
    parent = os.environ.pop(PARENT, None)  # the ranks that this process starts are not the sweep's own

    def watch(pid: int) -> None:
        while os.getppid() == pid:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, args=[int(parent)], daemon=True).start()


def single_job(command: str) -> list[str]:
    """The command line of the current job of a sweep, by itself."""
    hydra = HydraConfig.get()
    folders = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    places = ["--config-path", folders["main"]]
    if "command-line" in folders:
        places += ["--config-dir", folders["command-line"]]
    of_hydra = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    return ["--config-name", command, *places, *task_overrides(), *of_hydra, "hydra.mode=RUN"]


def debugging() -> bool:
    return os.environ.get("DDPM_DEBUG", "0") not in ("", "0")
