"""The command line: `ddpm COMMAND overrides… [flags of Hydra]`.

COMMAND becomes Hydra's `--config-name COMMAND`; Hydra handles the rest. The code of a command is imported when its job
starts, so help, completion and `--cfg` answer without torch.
"""

import difflib
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from ddpm.commands import COMMANDS
from ddpm.launch.streams import protect_streams
from ddpm.secrets import guard_streams

EXAMPLES = """\
Examples
  ddpm train experiment=quickstart
  ddpm train schedule=linear,cosine seed=1,2,3 -m
  ddpm sample ckpt=outputs/train/quickstart/base num_samples=64"""

COMPLETION = ("-sc", "--shell-completion")  # the completion script of the shell starts each query with this flag


def main() -> None:
    """Run the command line in `sys.argv`. The exit code is not 0 if anything failed."""
    protect_streams()
    guard_streams()
    arguments = sys.argv[1:]
    try:
        if not arguments or arguments in (["-h"], ["--help"]):
            print(usage())
        elif arguments == ["--version"]:
            import ddpm

            print(f"ddpm {ddpm.__version__}")
        elif arguments[0] in COMPLETION and "COMP_LINE" in os.environ:
            complete(arguments)
        else:
            run(*split_command(arguments))
    except KeyboardInterrupt:
        print("ddpm: interrupted", file=sys.stderr)
        sys.exit(130)


def usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    # `ddpm.runs` would import Hydra.
    models = sorted(path.parent.name for path in (Path(__file__).parent / "pretrained").glob("*/model.safetensors"))
    packaged = f"Models in the package, for ckpt=NAME\n  {' '.join(models)}\n\n" if models else ""
    return (
        f"Usage: ddpm COMMAND [group=option …] [key=value …] [-m]\n\nCommands\n{commands}\n\n{EXAMPLES}\n\n{packaged}"
        "`ddpm COMMAND --help` shows the settings of a command, `ddpm --hydra-help` the flags of Hydra."
    )


def split_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the command and the arguments for Hydra. The command is None if there are only flags (`--hydra-help`)."""
    command, *rest = arguments
    if command.startswith("-"):
        return None, arguments
    if command not in COMMANDS:
        refuse_command(command)
    return command, ["--config-name", command, *flags_first(rest)]


VALUE_FOLLOWS = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
)
"""flags whose value may be the next word"""
INFO = ("--info", "-i")
"""a flag that may stand without a value"""


def flags_first(words: list[str]) -> list[str]:
    """Return the words with the flags in front: Hydra's parser wants all overrides on one side of them."""
    flags, overrides = list[str](), list[str]()
    for i, word in enumerate(words):
        before = words[i - 1] if i > 0 else ""
        if word in INFO and (i + 1 == len(words) or "=" in words[i + 1]):
            word = "--info=all"  # the parser would take the next word for its value
        is_flag = word.startswith("-") or before in VALUE_FOLLOWS or (before in INFO and "=" not in word)
        (flags if is_flag else overrides).append(word)
    return [*flags, *overrides]


def refuse_command(word: str) -> NoReturn:
    if "=" in word:
        message = f"the command comes first, as in `ddpm train {word}`."
    else:
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        message = f"there is no command '{word}'." + (f" Did you mean '{near[0]}'?" if near else "")
    print(f"ddpm: {message}\nCommands: {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2)


def complete(arguments: list[str]) -> None:
    """Answer a query of the shell: command names from COMMANDS, everything after the command from Hydra."""
    line = os.environ["COMP_LINE"]
    match = re.match(r"\s*\S+\s+(?:(?P<command>\S+)(?P<rest>\s.*))?", line)
    if match is None or match["command"] is None:
        typed = line.split()[1:]
        print(" ".join(name for name in COMMANDS if not typed or name.startswith(typed[0])))
    elif match["command"] in COMMANDS:
        # Hydra gets the line without the command.
        shorter = "ddpm" + match["rest"]
        point = int(os.environ.get("COMP_POINT") or len(line)) - (len(line) - len(shorter))
        os.environ |= {"COMP_LINE": shorter, "COMP_POINT": str(max(point, 0))}
        run(None, ["--config-name", match["command"], *arguments])


def run(command: str | None, arguments: list[str]) -> None:
    """Run a command, and show a mistake of the user in one or two lines."""
    from ddpm.commands.display import printable
    from ddpm.errors import UserError
    from ddpm.launch.composition import debugging, run_with_hydra

    try:
        run_with_hydra(command, arguments)
    except UserError as error:
        if debugging():
            raise
        sys.exit(printable(f"ddpm {command}: {error}" if command else f"ddpm: {error}"))


if __name__ == "__main__":
    main()
