"""Runs `ddpm ARGUMENTS…`: in a process of its own, or in the test's process, which saves seconds of imports."""

import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import TextIO

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from ddpm.__main__ import main
from ddpm.launch.jobs import FORWARDED_SIGNALS

Answer = subprocess.CompletedProcess[str]


def run_process(*arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 240) -> Answer:
    """Run the program in a process of its own, in the folder `cwd`. `env` adds to the environment."""
    return subprocess.run(
        [sys.executable, "-m", "ddpm", *arguments],
        cwd=cwd, env=os.environ | (env or {}), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


def run_here(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Answer:
    """Run the program in this process, in the folder `cwd`; jobs of a sweep are processes of their own as always.

    The answer is that of a process: an exception that is no SystemExit becomes a traceback on stderr and exit code 1.
    Modules from a PYTHONPATH in `env` are forgotten at the end.
    """
    with (
        TemporaryFile("w+", buffering=1, encoding="utf-8") as out,
        TemporaryFile("w+", buffering=1, encoding="utf-8") as err,
        chdir(cwd),
        state_restored(),
        captured(out, err),
    ):
        os.environ |= env or {}
        sys.path[:0] = filter(None, (env or {}).get("PYTHONPATH", "").split(os.pathsep))
        sys.argv = ["ddpm", *arguments]
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
            if not isinstance(code, int):  # Python prints it and exits with 1
                print(code, file=sys.stderr)
                code = 1
        except Exception:
            traceback.print_exc()
            code = 1
        assert isinstance(code, int)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(arguments, code, *texts)


def places_of(module: ModuleType) -> Iterator[Path]:
    """Yield all folders that contain a module. A folder without `__init__.py` is a module without a file."""
    attributes = vars(module)  # some modules answer to any name by __getattr__
    for place in [attributes.get("__file__"), *attributes.get("__path__", [])]:
        yield from Path(place or "").parents


@contextmanager
def captured(out: TextIO, err: TextIO) -> Iterator[None]:
    """Write stdout and stderr to files, also those of processes that are started meanwhile."""
    kept = os.dup(1), os.dup(2)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            yield
    finally:
        for number, copy in enumerate(kept, start=1):
            os.dup2(copy, number)
            os.close(copy)


@contextmanager
def state_restored() -> Iterator[None]:
    """Restore what the program changes: arguments, environment, imports, signal handlers, logging, Hydra's config."""
    arguments, environment = sys.argv, os.environ.copy()
    signals = {number: signal.getsignal(number) for number in FORWARDED_SIGNALS}
    path, modules = sys.path[:], sys.modules.copy()
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        yield
    finally:
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in signals.items():
            signal.signal(number, handler)
        added = {Path(folder) for folder in set(sys.path) - set(path)}
        sys.path[:] = path
        for name in sys.modules.keys() - modules.keys():
            if added & set(places_of(sys.modules[name])):
                del sys.modules[name]
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
