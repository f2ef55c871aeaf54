"""Overrides as they are typed, before Hydra composes a config with them."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from ddpm.errors import UserError


def parse_overrides(arguments: Iterable[str]) -> Iterator[Override]:
    """Parse the overrides among the arguments. Those that do not parse are left to Hydra, which says why."""
    parser = OverridesParser.create()
    for argument in arguments:
        if "=" in argument and not argument.startswith("-"):
            with suppress(HydraException):
                yield parser.parse_override(argument)


def check_choices(overrides: Iterable[Override], folders: Collection[Path]) -> None:
    """Check that overrides of config groups name options. For a number or null Hydra ends in an internal error.

    Args:
        folders: those in which the config is searched.

    Raises:
        UserError: one does not.
    """
    for override in overrides:
        group = override.key_or_group
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        values = override.value()
        if override.is_delete() or not options or isinstance(values, Glob):
            continue
        choices = values.list if isinstance(values, ChoiceSweep) else values if isinstance(values, list) else [values]
        if not all(isinstance(choice, str) for choice in choices):
            raise UserError(f"{override.input_line}: choose {group} among {', '.join(options)}.")
