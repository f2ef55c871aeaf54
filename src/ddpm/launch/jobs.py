"""Run a job: one command with its composed config.

A single job runs in the current process. Each job of a sweep runs in its own process: with Slurm the process that Slurm
starts, with the other launchers a subprocess. So a crash, a signal or a lack of memory ends only that job, and
Lightning can start further processes for the job.
"""

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import cast

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import filter_overrides
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.commands import COMMANDS, display
from ddpm.commands.command import Command
from ddpm.errors import UserError
from ddpm.runs import SWEPT_KEYS
from ddpm.runs.identity import task_overrides
from ddpm.runs.status import INTERRUPTED
from ddpm.secrets import mask_override

# Example values for the error message about missing keys.
EXAMPLE_VALUES = {"ckpt": "outputs/train/quickstart/base", "runs": "outputs/train/quickstart", "to": "digits"}

PARENT = "DDPM_PARENT"
"""environment variable with the process id of the sweep that started the job"""
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_job(command: str | None, config: DictConfig) -> None:
    """Run a command with its composed config. A job of a sweep runs in a subprocess.

    Raises:
        UserError: the user made a mistake, or a job of a sweep failed.
        SystemExit: a job of a sweep was interrupted. The exit ends the sweep.
    """
    if command is None:
        raise UserError("the command comes first, as in `ddpm train`.")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run_in_own_process(command)
        return
    stop_with_parent()
    with without_garbage_collection():  # garbage collection takes about a sixth of the import time
        check_values(command, config)
        module = load_command(command)
    if config.get("dry_run"):
        display.plans([(job_name(task_overrides()), module.plan(config))])
    else:
        module.run(config)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turn off the garbage collector in the block. Imports make many objects and hardly any garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load_command(name: str) -> Command:
    """Import and return the module of a command.

    Raises:
        UserError: the command does not exist.
    """
    if name not in COMMANDS:
        raise UserError(f"there is no command '{name}'. Commands: {', '.join(COMMANDS)}")
    return cast(Command, importlib.import_module(f"ddpm.commands.{name}"))


def check_values(command: str, config: DictConfig) -> None:
    """Raise a UserError if keys have no value (`???`) or a value is not valid. The message names the key."""
    from ddpm.commands.settings import SETTINGS  # imported late: help and completion must not wait 0.2 s for pydantic
    from ddpm.config.checking import check_config
    from ddpm.launch.mistakes import plain

    try:
        missing = sorted(OmegaConf.missing_keys(config))
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(plain(str(error))) from error
    if missing:
        example = " ".join(f"{key}={EXAMPLE_VALUES.get(key, '…')}" for key in missing)
        raise UserError(f"{', '.join(missing)} must be given, for example\n  ddpm {command} {example}")
    check_config(config, SETTINGS.get(command))


def job_name(overrides: Sequence[str], swept: Sequence[str] = ()) -> str:
    """Return the overrides of a job in one line. With `swept`, only the overrides of the swept keys."""
    task = filter_overrides(overrides)
    shown = [o for o in task if not swept or o.split("=")[0].lstrip("+") in swept]
    return " ".join(map(mask_override, shown)) or "(no overrides)"


def run_in_own_process(command: str) -> None:
    """Run the current job of a sweep as a single job in a subprocess.

    Signals are forwarded to the subprocess. The subprocess prints its own error; this process prints the job's name.

    Raises:
        UserError: the job failed, or was interrupted in a worker of Ray.
        SystemExit: the job was interrupted. The exit code is 75, and the exit ends the sweep.
    """
    arguments = job_arguments(HydraConfig.get(), task_overrides())
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *arguments],
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,  # Ctrl-C reaches only this process, which forwards the signal
    )
    asked_to_stop = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        process.send_signal(number)

    # Do not forward ignored signals: nohup ignores SIGHUP.
    forwarded = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, forward) for number in forwarded}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0 and (is_ray_worker() or not asked_to_stop):  # the job may have been at its end when the signal came
        return
    was_interrupted = code == INTERRUPTED or asked_to_stop
    if was_interrupted and not is_ray_worker():
        sys.exit(INTERRUPTED)
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}, see above"
    message = f"its process {'was interrupted' if was_interrupted else end}"
    swept = [key for key in os.environ.get(SWEPT_KEYS, "").split(",") if key]
    line = display.printable(f"ddpm {command} {job_name(task_overrides(), swept)}: {message}")
    print(line, file=sys.stderr, flush=True)
    raise UserError(message)


def is_ray_worker() -> bool:
    """Return whether this process is a worker of Ray. Ray would restart a job whose worker exits with SystemExit."""
    return "hydra_ray_launcher" in HydraConfig.get().launcher["_target_"]


def job_arguments(hydra: HydraConf, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of `ddpm` that run one job of a sweep as a single job.

    Args:
        hydra: the `hydra` node of the job's config or of the sweep's config.
        overrides: the overrides of the job.
    """
    folders = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    places = ["--config-path", folders["main"]]
    if "command-line" in folders:
        places += ["--config-dir", folders["command-line"]]
    hydra_overrides = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    return [str(hydra.job.config_name), *places, *overrides, *hydra_overrides, "hydra.mode=RUN"]


def stop_with_parent() -> None:
    """Start a thread that sends SIGTERM to this process when the sweep's process has ended, for example by a kill."""
    parent = os.environ.pop(PARENT, None)  # removed, so that subprocesses of this process do not inherit it

    def watch(pid: int) -> None:
        while os.getppid() == pid:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, args=[int(parent)], daemon=True).start()
