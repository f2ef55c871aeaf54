"""The one entry point, `ddpm COMMAND overrides…`.

COMMAND is short for Hydra's `--config-name COMMAND`; all else is Hydra's. A command's code is imported when
its job starts, so that help, completion and `--cfg` answer without loading torch.
"""

import difflib
import itertools
import os
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

# A new command is one line here, ddpm/tasks/NAME.py with run(cfg), and conf/NAME.yaml.
COMMANDS = {
    "train": "train a model, or go on with a run that was stopped",
    "sample": "draw images from a checkpoint",
    "evaluate": "measure a checkpoint: its likelihood in bits/dim, and its samples beside real digits",
    "denoise": "walk a digit to noise and back: with the true x_0, and with the network",
    "report": "compare runs, those of a sweep or any others: tables, plots, one HTML page",
}

EXAMPLES = """\
Examples
  ddpm train experiment=quickstart
  ddpm train schedule=linear,cosine seed=1,2,3 -m
  ddpm sample ckpt=outputs/train/quickstart/base num_samples=64"""

# Ray would leave out lines that several jobs have in common, and kill jobs that it could ask to save and to stop.
RAY = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",
    "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "0",
}

COMPLETION = ("-sc", "--shell-completion")  # the flag that the shell's script starts its queries with


def main() -> None:
    """Run the command line in `sys.argv`; the exit code is not 0 if anything failed."""
    arguments = sys.argv[1:]
    try:
        if not arguments or arguments in (["-h"], ["--help"]):
            print(usage())
        elif arguments[0] in COMPLETION and "COMP_LINE" in os.environ:
            complete(arguments)
        else:
            compose_and_run(*split_command(arguments))
    except KeyboardInterrupt:
        print("ddpm: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # of `ddpm train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        sys.exit(1)


def usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"Usage: ddpm COMMAND [group=option …] [key=value …] [-m]\n\nCommands\n{commands}\n\n{EXAMPLES}\n\n"
        "`ddpm COMMAND --help` shows what a command reads, `ddpm --hydra-help` the flags of Hydra."
    )


def split_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The command, and the arguments for Hydra.

    The command may follow flags (`ddpm -m train`) or be the config's name (`--config-name train`); it is None
    where there are flags alone, such as `--hydra-help`.
    """
    names = [
        name for flag, name in itertools.pairwise(arguments) if flag in ("--config-name", "-cn") and name in COMMANDS
    ]
    if names:
        return names[0], arguments
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        refuse_command(arguments[0])
    at = next((i for i, word in enumerate(arguments) if word in COMMANDS), None)
    if at is None:
        overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
        if overrides and arguments[0] not in COMPLETION:
            refuse_command(overrides[0])
        return None, arguments
    command = arguments[at]
    rest = arguments[:at] + arguments[at + 1 :]
    # Hydra's parser takes overrides on one side of a flag alone, and `-m` is often put between them.
    many = [word for word in rest if word in ("-m", "--multirun")]
    return command, ["--config-name", command, *many, *(word for word in rest if word not in many)]


def refuse_command(word: str) -> NoReturn:
    if "=" in word:
        message = f"a command comes first, as in `ddpm train {word}`."
    else:
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        message = f"there is no command '{word}'." + (f" Did you mean '{near[0]}'?" if near else "")
    print(f"ddpm: {message}\nCommands: {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2)


def complete(arguments: list[str]) -> None:
    """Answer the shell's query: the commands ourselves, what follows one through Hydra and its config."""
    line = os.environ["COMP_LINE"]
    match = re.match(r"\s*\S+\s+(?:(?P<command>\S+)(?P<rest>\s.*))?", line)
    if match is None or match["command"] is None:
        typed = line.split()[1:]
        print(" ".join(name for name in COMMANDS if not typed or name.startswith(typed[0])))
    elif match["command"] in COMMANDS:
        # Hydra sees the line without the command's word.
        shorter = "ddpm" + match["rest"]
        point = int(os.environ.get("COMP_POINT") or len(line)) - (len(line) - len(shorter))
        os.environ |= {"COMP_LINE": shorter, "COMP_POINT": str(max(point, 0))}
        compose_and_run(None, ["--config-name", match["command"], *arguments])


def compose_and_run(command: str | None, arguments: list[str]) -> None:
    """Hand over to Hydra: one job, a sweep, or one of its own answers (`--cfg`, `--help`, completion …)."""
    import hydra
    from hydra.errors import CompactHydraException
    from omegaconf.errors import OmegaConfBaseException

    from ddpm.config import conf_dir
    from ddpm.errors import UserError
    from ddpm.launch.jobs import debugging, run_job

    failed = False

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=None)
    def job(config: "DictConfig") -> Any:
        nonlocal failed
        try:
            return run_job(command, config)
        except Exception:
            failed = True
            raise

    # Our settings for Ray have the name of its plugin's schema, which then checks them.
    warnings.filterwarnings("ignore", "\n'hydra/launcher/ray' is validated against ConfigStore schema")
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    sys.argv[1:] = arguments  # Lightning starts its other ranks with these
    # Hydra then raises its errors to us, instead of printing them with a hint at this variable.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        job()
    except UserError as error:
        if debugging():
            raise
        sys.exit(f"ddpm {command}: {error}")
    except CompactHydraException as error:
        if failed or debugging():  # from inside a job: the author of a network needs the traceback
            raise
        causes = [error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else []
        sys.exit("\n".join(str(part).strip() for part in (error, *causes) if str(part).strip()))
    except RuntimeError as error:  # what Hydra raises for a plugin that it does not find
        if failed or "hydra_ray_launcher" not in str(error):
            raise
        sys.exit(f"ddpm {command}: hydra/launcher=ray needs Ray, pip install -e '.[ray]'")


if __name__ == "__main__":
    main()
