"""The real program in a subprocess, with one more command: `toy`, whose task fails as it is told to."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

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

TOY_TASK = """\
import logging
import os
import signal
from pathlib import Path

from ddpm.errors import UserError
from ddpm.commands.command import Plan


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
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        os.kill(os.getpid(), signal.SIGINT)
    if cfg.how == "telling":
        print("swept:", os.environ["DDPM_SWEPT_KEYS"])
    logging.getLogger("toy").info(f"done with {cfg.speed.num_steps} steps, seed {cfg.seed}")
"""

# Starts ddpm as its console script does, with the one line that adds a command and a folder of configs.
START = """\
#!{python}
import sys
import ddpm.commands
from ddpm import __main__ as program
program.COMMANDS["toy"] = "a task for tests"
ddpm.commands.__path__.append({tasks!r})
sys.argv[0] = "ddpm"
if len(sys.argv) > 1:
    sys.argv += ["--config-dir", {config!r}]
try:
    program.main()
finally:
    heavy = {{"torch", "lightning", "torchvision"}} & sys.modules.keys()
    assert not heavy, f"{{heavy}} were imported"
"""


class Run(Protocol):
    def __call__(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("ddpm", *arguments, **environment)` in the empty folder tmp_path/work, that `ddpm` on the PATH.

    The program fails if torch was imported.
    """
    config, tasks, start = tmp_path / "conf", tmp_path / "tasks", tmp_path / "bin" / "ddpm"
    for folder in (config / "speed", tasks, start.parent, tmp_path / "work"):
        folder.mkdir(parents=True)
    (config / "toy.yaml").write_text(TOY_CONFIG)
    (config / "toy_without.yaml").write_text(TOY_CONFIG.replace("outputs/a", "???"))
    for name, steps in (("slow", 1000), ("fast", 10)):
        (config / "speed" / f"{name}.yaml").write_text(f"num_steps: {steps}\n")
    (tasks / "toy.py").write_text(TOY_TASK)
    start.write_text(START.format(python=sys.executable, tasks=str(tasks), config=str(config)))
    start.chmod(0o755)

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k not in ("DDPM_DEBUG", "HYDRA_FULL_ERROR", "COMP_LINE")}
        env |= {
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PATH": f"{start.parent}:{env['PATH']}",
        } | environment
        return subprocess.run(command, cwd=tmp_path / "work", env=env, capture_output=True, text=True, timeout=120)

    return run
