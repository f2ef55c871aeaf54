"""A job: one command with its composed config.

A single job runs in this process. Each job of a sweep runs in a process of its own, under every launcher: a crash, a
signal or a full memory then ends that job alone, and Lightning can start the job's further processes.
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

# Examples in the message about a key without a value.
EXAMPLE_VALUES = {"ckpt": "outputs/train/quickstart/base", "runs": "outputs/train/quickstart", "to": "digits"}

PARENT = "DDPM_PARENT"
"""environment variable of a job of a sweep: the process id of the sweep"""
FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_job(command: str | None, config: DictConfig) -> None:
    """Run a command with its composed config; for a job of a sweep, in a process of its own.

    Raises:
        UserError: a mistake of the user, or a job of a sweep failed.
        SystemExit: a job of a sweep was interrupted; the sweep ends.
    """
    if command is None:
        raise UserError("the command comes first, as in `ddpm train`.")
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        run_in_own_process(command)
        return
    stop_with_parent()
    with without_garbage_collection():  # it would take a sixth of the time of the imports
        check_values(command, config)
        module = load_command(command)
    if config.get("dry_run"):
        display.plans([(job_name(task_overrides()), module.plan(config))])
    else:
        module.run(config)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Search for no garbage in the block. Imports make many objects and hardly any garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load_command(name: str) -> Command:
    """Import the module of a command.

    Raises:
        UserError: there is no such command.
    """
    if name not in COMMANDS:
        raise UserError(f"there is no command '{name}'. Commands: {', '.join(COMMANDS)}")
    return cast(Command, importlib.import_module(f"ddpm.commands.{name}"))


def check_values(command: str, config: DictConfig) -> None:
    """Raise a UserError that names keys without a value (`???`), or a value that its receiver does not take."""
    from ddpm.commands.settings import SETTINGS  # late: pydantic takes 0.2 s, which help and completion do without
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
    """The overrides of a job in one line; if its sweep varies some keys, only the overrides of these keys."""
    task = filter_overrides(overrides)
    shown = [o for o in task if not swept or o.split("=")[0].lstrip("+") in swept]
    return " ".join(map(mask_override, shown)) or "(no overrides)"


def run_in_own_process(command: str) -> None:
    """Run the current job of a sweep as a single job in a subprocess.

    Signals are forwarded to the subprocess. The subprocess prints its own error; this process adds which job it was.

    Raises:
        UserError: the job failed.
        SystemExit: the job was interrupted, with exit code 75; the sweep ends with it.
    """
    arguments = job_arguments(HydraConfig.get(), task_overrides())
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *arguments],
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,  # Ctrl-C reaches the sweep alone, which forwards it
    )
    asked_to_stop = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        process.send_signal(number)

    forwarded = [number for number in FORWARDED_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as nohup sets
    handlers = {number: signal.signal(number, forward) for number in forwarded}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code == 0:
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
    """Whether this process is a worker of Ray. SystemExit would end it, and Ray would start the job again."""
    return "hydra_ray_launcher" in HydraConfig.get().launcher["_target_"]


def job_arguments(hydra: HydraConf, overrides: Sequence[str]) -> list[str]:
    """The command line, after `ddpm`, that runs one job of a sweep by itself.

    Args:
        hydra: Hydra's part of the config of the job, or of its sweep.
        overrides: the overrides of the job.
    """
    folders = {source.provider: source.path for source in hydra.runtime.config_sources if source.schema == "file"}
    places = ["--config-path", folders["main"]]
    if "command-line" in folders:
        places += ["--config-dir", folders["command-line"]]
    hydra_overrides = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    return [str(hydra.job.config_name), *places, *overrides, *hydra_overrides, "hydra.mode=RUN"]


def stop_with_parent() -> None:
    """Send this process SIGTERM once the sweep that started it is gone, for example killed."""
    parent = os.environ.pop(PARENT, None)  # removed, because this process's own children have another parent

    def watch(pid: int) -> None:
        while os.getppid() == pid:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, args=[int(parent)], daemon=True).start()
