"""The real program with one more command, `toy`. It does what its config says and never imports torch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from command_line import Answer

import ddpm.commands

TOY_CONFIG = """\
defaults:
  - hydra: default
  - speed: slow
  - _self_

seed: 0
how: well
dry_run: false
ckpt: outputs/a
"""

TOY_COMMAND = """\
import logging
import os
import signal
import sys
from pathlib import Path

from ddpm.commands.command import Plan
from ddpm.errors import UserError


def plan(cfg):
    if cfg.how == "impossible":
        raise UserError(f"seed {cfg.seed} is impossible")
    return Plan(Path(f"toys/{cfg.how}-{cfg.seed}-{cfg.speed.num_steps}"), "play", is_done=cfg.how == "done")


def run(cfg):
    if cfg.how == "mistaken":
        raise UserError(f"seed {cfg.seed} cannot be halved")
    if cfg.how == "broken" or cfg.seed == 13:
        raise ZeroDivisionError(f"seed {cfg.seed}")
    if cfg.how == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    if cfg.how == "waiting":
        signal.signal(signal.SIGTERM, stop)
        print("waiting", flush=True)
        while True:
            signal.pause()
    swept = os.environ["DDPM_SWEPT_KEYS"]
    logging.getLogger("toy").info(f"done with {cfg.speed.num_steps} steps, seed {cfg.seed}, swept {swept}")


def stop(number, frame):
    Path("stopped").touch()
    sys.exit(75)
"""

# Python imports this module at its start if it is on the path, so jobs of a sweep know the command too.
SITE_CUSTOMIZE = """\
import atexit
import os
import sys

import ddpm.commands


def check_imports():
    heavy = {"torch", "lightning", "torchvision"}
    if {"--help", "--cfg"} & set(sys.argv):
        heavy.add("pydantic")
    if found := heavy & sys.modules.keys():
        print(f"{found} were imported", file=sys.stderr)


ddpm.commands.COMMANDS["toy"] = "a command for tests"
ddpm.commands.__path__.append(os.path.dirname(__file__))
atexit.register(check_imports)
"""

START = """\
#!{python}
import sys

from ddpm.__main__ import main

sys.argv = ["ddpm", *sys.argv[1:], "--config-dir", {config!r}]
main()
"""


class Run(Protocol):
    def __call__(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy command, its config in conf/, and a program `ddpm` in bin/."""
    folder = tmp_path_factory.mktemp("toy")
    for name in ("conf/speed", "bin"):
        (folder / name).mkdir(parents=True)
    (folder / "conf" / "toy.yaml").write_text(TOY_CONFIG)
    (folder / "conf" / "toy_without.yaml").write_text(TOY_CONFIG.replace("outputs/a", "???"))
    for name, steps in (("slow", 1000), ("fast", 10)):
        (folder / "conf" / "speed" / f"{name}.yaml").write_text(f"num_steps: {steps}\n")
    (folder / "toy.py").write_text(TOY_COMMAND)
    (folder / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
    program = folder / "bin" / "ddpm"
    program.write_text(START.format(python=sys.executable, config=str(folder / "conf")))
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def environment(toy: Path) -> dict[str, str]:
    """Environment variables with which `ddpm` is the program with the toy command."""
    return os.environ | {
        "PATH": f"{toy / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(toy),
        "XDG_CACHE_HOME": str(toy / "cache"),
    }


@pytest.fixture(scope="session")
def work(toy: Path) -> Path:
    """The empty folder in which `run` starts its processes. Nothing may be left there."""
    folder = toy / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def run(environment: dict[str, str], work: Path) -> Run:
    """`run("ddpm", *arguments, **environment)` in a process, which writes a line to stderr if it imported torch."""

    def run(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=work, env=environment | more, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def ddpm_here(
    toy: Path, environment: dict[str, str], ddpm_here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """`ddpm_here` of all tests, with the toy command."""
    monkeypatch.setitem(ddpm.commands.COMMANDS, "toy", "a command for tests")
    monkeypatch.setattr(ddpm.commands, "__path__", [*ddpm.commands.__path__, str(toy)])

    def run(*arguments: str) -> Answer:
        if arguments[:1] == ("toy",):
            arguments = (*arguments, "--config-dir", str(toy / "conf"))
        return ddpm_here(*arguments, env=environment)

    return run
