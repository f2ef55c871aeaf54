"""Overrides as they are typed, before Hydra composes a config with them."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from ddpm.config import user_path
from ddpm.errors import UserError

CONFIG_DIR = ("--config-dir", "-cd")


def parse_overrides(arguments: Iterable[str]) -> Iterator[Override]:
    """Parse the overrides among the arguments. Those that do not parse are left to Hydra, which says why."""
    parser = OverridesParser.create()
    for argument in arguments:
        if ("=" in argument or argument.startswith("~")) and not argument.startswith("-"):
            with suppress(HydraException):
                yield parser.parse_override(argument)


def check_choices(overrides: Iterable[Override], folders: Collection[Path]) -> None:
    """Check that overrides of config groups name options, and only one where an option is one object.

    For a number or null Hydra ends in an internal error.

    Args:
        folders: those in which the config is searched.

    Raises:
        UserError: one does not.
    """
    for override in overrides:
        group = override.key_or_group
        if group == "hydra":
            raise UserError(f"{override.input_line}: each command has its own settings of Hydra. Set hydra.KEY=VALUE.")
        paths = [path for folder in folders for path in (folder / group).glob("*.yaml")]
        options = sorted({path.stem for path in paths})
        values = override.value()
        if override.is_delete() or not options or isinstance(values, Glob):
            continue
        choices = values.list if isinstance(values, ChoiceSweep) else values if isinstance(values, list) else [values]
        if not all(isinstance(choice, str) for choice in choices):
            raise UserError(f"{override.input_line}: choose {group} among {', '.join(options)}.")
        if isinstance(values, list) and len(values) > 1 and any(map(_is_one_object, paths)):
            raise UserError(f"{override.input_line}: choose one {group} of {', '.join(options)}.")


def _is_one_object(path: Path) -> bool:
    """Return whether an option is the config of one object. Hydra would merge two such options into one config."""
    return re.search("^_target_:", path.read_text(errors="replace"), re.MULTILINE) is not None


def named_folders(arguments: Iterable[str]) -> list[Path]:
    """Return the folder that `--config-dir` names."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*CONFIG_DIR, type=user_path, default=[], nargs=1)
    folders: list[Path] = parser.parse_known_args(list(arguments))[0].config_dir
    return folders


def with_user_paths(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the home folder in place of `~` in `--config-dir`."""
    found = list(arguments)
    for i, word in enumerate(found):
        flag, sign, value = word.partition("=")
        if flag in CONFIG_DIR and sign:
            found[i] = f"{flag}={user_path(value)}"
        elif i and found[i - 1] in CONFIG_DIR:
            found[i] = str(user_path(word))
    return found
