"""Plain messages for mistakes in a command line: unknown flags, and the errors that Hydra raises."""

import re
import shlex
from collections.abc import Sequence
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm.config import conf_dir, leaves, override
from ddpm.errors import UserError, did_you_mean
from ddpm.launch.overrides import named_folders

FLAGS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r"),
    *("--multirun", "-m", "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun", "--info", "-i"),
)
"""of Hydra's command line"""


def check_flags(arguments: Sequence[str]) -> None:
    """Raise a UserError that names a flag which Hydra does not know. argparse would print all of them."""
    for word in arguments:
        flag = word.partition("=")[0]
        is_known = flag in FLAGS or any(known.startswith(flag) for known in FLAGS) or flag.startswith(("-c", "-p"))
        if flag.startswith("-") and not is_known:
            raise UserError(f"there is no flag {flag}.{did_you_mean(flag, FLAGS)} `ddpm --hydra-help` lists them.")


def explain(error: HydraException, command: str | None, arguments: Sequence[str]) -> str:
    """Return what is wrong with a command line, in plain lines.

    Args:
        arguments: those after the command.
    """
    if isinstance(error, OverrideParseException):
        return _explain_grammar(error.override, command)
    group, _, option = str(getattr(error, "missing_cfg_file", "") or "").rpartition("/")
    if isinstance(error, MissingConfigException) and error.options and group:
        near = did_you_mean(option, error.options)
        return f"Could not find '{group}/{option}'.{near} Options of {group}: {', '.join(error.options)}."
    causes = [error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else []
    message = "\n".join(text for part in (error, *causes) if (text := str(part).strip()))
    if unknown := re.match(r"Could not override '([^']+)'|Could not delete from config. '([^']+)' does not", message):
        key = unknown[1] or unknown[2]
        values = _values_without(command, key, arguments)
        if unknown[1] and (target := _target_that_takes(key, values)):
            return f"{key} is not in the config, but {target} takes it: add it with a plus, +{key}=…"
        return message.splitlines()[0] + did_you_mean(key, _dotted_keys(values))
    return plain(message)


UNREADABLE = (yaml.YAMLError, UnicodeDecodeError, RecursionError, AssertionError, OmegaConfBaseException)
"""errors that Hydra lets pass while it reads YAML files, or its own settings"""


def explain_unreadable(error: Exception) -> str:
    """Return in one line why Hydra could not read a YAML file, or a setting below `hydra`."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {' '.join(str(error.problem).split())}."
    if isinstance(error, UnicodeDecodeError):
        return f"a YAML file of the config is not UTF-8: {error.reason} {error.object[error.start :][:1]!r}."
    if isinstance(error, RecursionError):
        return "a YAML file of the config includes itself in its defaults."
    reason = " ".join(plain(str(error)).split())
    return f"Hydra refuses a setting below hydra{f': {reason}' if reason else '. `--cfg hydra` shows them.'}"


def plain(message: str) -> str:
    """Return a message of Hydra or OmegaConf without the lines about classes, search paths and options.

    The key of a value is put in front of the message, if the message does not contain it.
    """
    message = message.partition("\nConfig search path:")[0].strip()
    key = re.search(r"^\s*full_key: *(\S+)", message, re.MULTILINE)
    lines = [line for line in message.splitlines() if line.strip()]
    kept = "\n".join(line for line in lines if not re.match(r"\s*(full_key:|object_type=|reference_type=)", line))
    return f"{key[1]}: {kept}" if key and key[1] not in kept else kept


def _explain_grammar(word: str, command: str | None) -> str:
    key, sign, value = word.partition("=")
    if not sign:
        return f"'{word}' is no override: write key=value."
    try:
        OverridesParser.create().parse_override(word)
        reason = ""
    except HydraException as error:
        reason = f": {str(error).splitlines()[0]}"
    quoted = f"ddpm {command} {override(key, value)}"
    return f"cannot read {word}{reason}. Quote a text for Hydra and for the shell:\n  {quoted}"


def _values_without(command: str | None, unknown: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of the config without the override of the unknown key."""
    overrides = [word for word in arguments if "=" in word and not word.startswith("-")]
    others = [word for word in overrides if word.partition("=")[0].lstrip("+~") != unknown]
    for attempt in (others, []):
        try:
            config = _compose(command, attempt, arguments)
        except (HydraException, OmegaConfBaseException):
            continue
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    return {}


def _dotted_keys(values: dict[str, Any]) -> list[str]:
    """Return the keys of all values and of all groups of values."""
    keys = [key for key, _ in leaves(values)]
    return sorted({key.rsplit(".", up)[0] for key in keys for up in range(key.count(".") + 1)})


def _target_that_takes(key: str, values: dict[str, Any]) -> str | None:
    """Return the `_target_` above a key, if its signature has the argument."""
    from ddpm.config.checking import signature  # imported late: it imports pydantic

    above, _, argument = key.rpartition(".")
    node: Any = values
    for part in above.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    target = node.get("_target_") if isinstance(node, dict) else None
    try:
        return target if target and argument in signature(get_object(target))[0] else None
    except Exception:  # the import of any module may fail, with any error
        return None


def _compose(command: str | None, overrides: list[str], arguments: Sequence[str]) -> DictConfig:
    """Compose a config, from the folder of `--config-dir` too."""
    if GlobalHydra.instance().is_initialized():  # in a sweep
        return compose(command, overrides, return_hydra_config=True)
    folders = [folder.absolute() for folder in (conf_dir(), *named_folders(arguments))]
    folders.sort(key=lambda folder: not (folder / f"{command}.yaml").is_file())
    quoted = (shlex.split(override("", folder))[0].removeprefix("=") for folder in folders[1:])
    with initialize_config_dir(str(folders[0]), version_base="1.3"):
        return compose(command, [*overrides, f"hydra.searchpath=[{','.join(quoted)}]"], return_hydra_config=True)
