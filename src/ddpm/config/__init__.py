"""The config tree, objects built from it, and what a checkpoint may build. Imports no torch."""

import math
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ddpm.errors import UserError


def conf_dir() -> Path:
    """The config tree: `conf/` of the clone, or the copy of it that the wheel carries as `ddpm/conf`."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "conf"
    # A clone has no src/ddpm/conf, so this cannot hide the tree that a developer edits. The other order would
    # be wrong: two folders above an installed package may be anybody's conf/.
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "conf"


def build(node: DictConfig | dict[str, Any], kind: type = object, **kwargs: Any) -> Any:
    """Instantiate a config node.

    The target gets plain lists and dicts: what it keeps may enter a checkpoint, which holds no types of OmegaConf.

    Args:
        kind: the class that the result must have.
        kwargs: arguments that are only known at run time.

    Raises:
        UserError: the target raised an exception, is not to be found, or gave an object of another class.
    """
    try:
        built = instantiate(node, _convert_="all", **kwargs)
    except Exception as error:
        key = isinstance(node, DictConfig) and re.search("^full_key: (.+)$", str(error), re.MULTILINE)
        raise UserError(_reason(error) + (f"\n(from `{key[1]}` in the config)" if key else "")) from error
    if not isinstance(built, kind):
        raise UserError(f"{node['_target_']} gives a {type(built).__name__}, and a {kind.__name__} is needed.")
    return built


def _reason(error: BaseException) -> str:
    """Return in a line why a target could not be built. Hydra wraps the error once for each call."""
    message = str(error)
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        message, error = str(error), error.__cause__
    if isinstance(error, (ValueError, UserError)):
        return str(error)
    first = message.splitlines()[0] if message else ""
    if isinstance(error, ImportError) or first.startswith("Error locating target"):
        return f"{re.split(', se[et] ', first)[0]}: is its folder on PYTHONPATH? (DDPM_DEBUG=1 shows more)"
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{first}\n{cause} (DDPM_DEBUG=1 shows where)"


def option_name(target: str) -> str:
    """Return the name that a user types for a target: `ddim` for `ddpm.diffusion.samplers.DDIM`.

    It is the name of the only YAML of a group that has this `_target_` at its top, else the target's last part.
    """
    folders = config_folders()
    names = _option_names(tuple(folders)).get(target, set())
    return next(iter(names)) if len(names) == 1 else target.rpartition(".")[2]


@lru_cache
def _option_names(folders: tuple[Path, ...]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.rglob("*.yaml"):
            found = re.search(r"^_target_: *([\w.]+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            if found and path.parent != folder:
                names.setdefault(found[1], set()).add(path.stem)
    return names


def user_path(text: str | Path) -> Path:
    """Return the path that a user means by a setting, as a shell would: relative to the working directory.

    `~` and `~name` are home folders. `..` leaves the folder that a link points to. All other characters are part of the
    name, `$` and `*` too: the user's shell has replaced what it should.

    Raises:
        UserError: the path is empty, or there is no such home folder.
    """
    if not str(text).strip():
        raise UserError("a path is empty: give a file or a folder.")
    try:
        path = Path(text).expanduser() if str(text).startswith("~") else Path(text)
    except RuntimeError:
        raise UserError(
            f"{text}: there is no home folder {Path(text).parts[0]}. A name that begins with ~: ./{text}"
        ) from None
    if ".." not in path.parts:
        return path
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def override(key: str, value: object) -> str:
    """Return `key=value` as a user types it in a shell: with quotes where Hydra's grammar or the shell needs them."""
    text, parser = str(value), OverridesParser.create()
    try:
        is_plain = parser.parse_override(f"{key}={text}").value() == text
    except HydraException:
        is_plain = False
    if is_plain:
        return shlex.quote(f"{key}={text}")
    # Backslashes count only before a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + (found[2] and '\\"'), text)
    return shlex.quote(f'{key}="{escaped}"')


def config_folders() -> list[Path]:
    """The folders of the command's config: the project's and those of --config-dir; outside commands, the project's."""
    if not HydraConfig.initialized():
        return [conf_dir()]
    return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]


NOT_OF_A_MODEL = (
    "hydra", "trainer", "logger", "callbacks", "data", "augmentation", "guidance", "measures", "features", "paths",
)  # fmt: skip
"""groups, and keys, whose targets no checkpoint may build as a part of a model"""
MAX_VALUES, MAX_DEPTH, MAX_NAME, MAX_TEXT = 10_000, 50, 200, 10_000
"""of the config of other people: values in all, nested dicts and lists, characters of a key and of a text"""


def trusted_targets(folders: Iterable[Path]) -> set[str]:
    """Return every `_target_` in a YAML of these folders, but for those of `NOT_OF_A_MODEL`.

    A checkpoint may name no other.
    """
    found: set[str] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            if path.relative_to(folder).parts[0] in NOT_OF_A_MODEL:
                continue
            try:
                documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
            except (yaml.YAMLError, UnicodeDecodeError):  # Hydra reports it when the file is used
                continue
            for document in documents:
                if isinstance(document, dict) and "_target_" not in document:  # keys are names of groups
                    document = {key: node for key, node in document.items() if key not in NOT_OF_A_MODEL}
                found.update(value for value in _targets(document) if isinstance(value, str))
    return found


def check_plain(node: Any, place: str) -> None:
    """Check that a config of other people is plain data: dicts with text as keys, lists, texts, numbers, null.

    Args:
        place: names the config in messages.

    Raises:
        UserError: it holds something else, a number that is not finite or exceeds 64 bits, or too many or too deeply
            nested values. A list that contains itself is nested too deeply.
    """
    done, left = 0, [(node, "", 0)]
    while left:
        value, key, depth = left.pop()
        children: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            if not all(isinstance(name, str) and len(name) <= MAX_NAME for name in value):
                raise UserError(f"{place}: the keys of {key[:MAX_NAME] or 'the config'} must be names.")
            children = [(f"{key}.{name}" if key else name, child) for name, child in value.items()]
        elif isinstance(value, (list, tuple)):
            children = [(key, child) for child in value[: MAX_VALUES + 1]]
        elif not _is_plain_value(value):
            raise UserError(
                f"{place}: {key[:MAX_NAME]} must be a text of at most {MAX_TEXT} characters, a finite number or null."
            )
        left += [(child, name, depth + 1) for name, child in children]
        done += 1
        if done + len(left) > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"{place} is too large or too deeply nested.")


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or (isinstance(value, float) and math.isfinite(value))


def check_targets(node: Any, trusted: Collection[str]) -> None:
    """Check what a part of a checkpoint's config would build.

    Raises:
        UserError: it is no plain data, has a target that is not among `trusted`, or an interpolation, which could
            become one later.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=False)
    check_plain(node, "the checkpoint's config")
    for target in _targets(node):
        if not isinstance(target, str) or target not in trusted:
            raise UserError(
                f"the checkpoint asks for {target!r}, which no YAML of your configs names as a _target_ of a model. "
                "If you trust it, add it to a YAML of yours and pass its folder with --config-dir"
            )
    for key, value in leaves(node, into_lists=True):
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UserError(f"the checkpoint's config holds an unresolved value, {key}={value!r}, and is not trusted")


def _targets(node: Any) -> Iterator[Any]:
    """Return the values of all keys `_target_`, of whatever type."""
    if isinstance(node, Mapping):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _targets(child)


def leaves(node: Any, into_lists: bool = False, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested dicts that is not a dict.

    Args:
        into_lists: give the items of lists, under the list's key, instead of the lists.
    """
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from leaves(child, into_lists, f"{key}.{name}" if key else str(name))
    elif into_lists and isinstance(node, (list, tuple)):
        for child in node:
            yield from leaves(child, into_lists, key)
    else:
        yield key, node


def is_below(key: str, parents: Collection[str]) -> bool:
    """Return whether a dotted key is one of the parents or below one of them."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
