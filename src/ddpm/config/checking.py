"""Check every value of a config against the type that its receiver expects.

A pydantic model (`ddpm.commands.settings`) describes the settings of a command, and the signature of a `_target_`
describes its arguments. Values are validated as JSON in pydantic's strict mode: true and "1" are not accepted for 1,
but 1 is accepted as a float.
"""

import inspect
import json
import math
import pkgutil
import re
import typing
from collections.abc import Collection, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from ddpm.config import is_below, leaves
from ddpm.errors import UserError, did_you_mean

TYPES = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
HYDRA_KEYS = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}  # read by Hydra, not by the target


def check_config(config: DictConfig, settings: type[BaseModel] | None, key: str = "") -> None:
    """Check all values of a composed config. Imports the targets, but does not build any object.

    Args:
        settings: the pydantic model of the command's settings; if None, only the arguments of targets are checked.
        key: the key of `config`, if it is a part of a larger config.

    Raises:
        UserError: a value has a wrong type, a number is not finite, or nothing reads a key.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name, value in leaves(values, into_lists=True, key=key):
        if problem := _impossible(value):
            raise UserError(f"{name}={_shown(value)} {problem}.")
    if settings is not None:
        _check_settings(values, settings, _references(OmegaConf.to_container(config, resolve=False)))
    for name, node in _nodes(values, key):
        _check_arguments(name, node, described=_fields(settings, name))


def _impossible(value: Any) -> str | None:
    """Return why no setting can have this value, or None if the value is possible."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "does not fit into 64 bits"
    if isinstance(value, str) and "\0" in value:
        return "contains a null character"
    return None


def _fields(settings: type[BaseModel] | None, name: str = "") -> dict[str, Any]:
    """Return the fields of a pydantic model or, with `name`, of the pydantic model in its field `name`."""
    if name:
        field = _fields(settings).get(name)
        settings = field.annotation if field else None
    return settings.model_fields if inspect.isclass(settings) and issubclass(settings, BaseModel) else {}


# Settings of a command ----------------------------------------------------------------------------------------------


def _check_settings(values: dict[str, Any], settings: type[BaseModel], references: Collection[str]) -> None:
    try:
        settings.model_validate_json(json.dumps(values))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        missing = [detail["loc"] for detail in errors if detail["type"] == "missing"]
        refused = [detail for detail in errors if detail["type"] not in ("missing", "extra_forbidden")]
        unread = [key for detail in errors if detail["type"] == "extra_forbidden"
                  for key in _keys_below(detail["loc"], values) if not is_below(key, references)]  # fmt: skip
        if missing:
            raise UserError(_missing(".".join(map(str, missing[0])))) from None
        if refused:
            raise UserError(_refused("", values, refused)) from None
        if unread:
            raise UserError(_unread(unread[0], settings)) from None


def _keys_below(location: Collection[Any], values: Any) -> list[str]:
    """Return the dotted keys of all values below a location."""
    for part in location:
        values = values[part if part in values else next(key for key in values if str(key) == str(part))]
    return [key for key, _ in leaves(values, key=".".join(map(str, location)))]


def _references(raw: Any) -> set[str]:
    """Return the absolute keys to which the interpolations of an unresolved config refer, such as ${optimizer.lr}."""
    found = set()
    for key, value in leaves(raw, into_lists=True):
        for text in re.findall(r"\$\{([^${}]*)\}", value) if isinstance(value, str) else []:
            for name in re.findall(r"\.*[\w-]+(?:\.[\w-]+)*", text):
                up = len(name) - len(name.lstrip("."))
                found.add(".".join([*(key.split(".")[:-up] if up else []), name.lstrip(".")]))
    return found


def _unread(key: str, settings: type[BaseModel]) -> str:
    known = set(_fields(settings))
    known |= {f"{name}.{field}" for name in set(known) for field in _fields(settings, name)}
    return f"{key} is read by nothing.{did_you_mean(key, known)}"


def _missing(key: str) -> str:
    options = GlobalHydra.instance().config_loader().get_group_options(key.replace(".", "/"))
    return f"{key} is missing." + (f" Choose {key}={'|'.join(options)}." if options else "")


# Arguments of targets -----------------------------------------------------------------------------------------------


def _nodes(values: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the key and the content of every dict with a `_target_` in nested dicts and lists."""
    if isinstance(values, dict):
        if "_target_" in values:
            yield key, values
        for name, child in values.items():
            yield from _nodes(child, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for i, child in enumerate(values):
            yield from _nodes(child, f"{key}.{i}")


def check_node(key: str, node: Any, kind: type) -> None:
    """Check that a node would build an object of class `kind`, and check all arguments. Imports the targets only.

    Raises:
        UserError: the object would have another class, or an argument has a wrong type.
    """
    if not (isinstance(node, dict) and "_target_" in node):
        raise UserError(f"{key} must be a node with a `_target_`.")
    _check_class(key, node, kind)
    for name, part in _nodes(node, key):
        _check_arguments(name, part, described=())


def _check_arguments(key: str, node: dict[str, Any], described: Collection[str]) -> None:
    """Check a node's arguments, except those that the command's settings describe."""
    types, takes_others = signature(_locate(key, node))
    for name, value in node.items():
        if name in HYDRA_KEYS or name in described:
            continue
        if name in types:
            _check_argument(f"{key}.{name}", value, types[name])
        elif not takes_others:
            near = (
                did_you_mean(f"{key}.{name}", [f"{key}.{known}" for known in types])
                or f" It takes {', '.join(types) or 'none'}."
            )
            raise UserError(f"{key}.{name} is no argument of {node['_target_']}.{near}")


def _check_argument(key: str, value: Any, hint: Any) -> None:
    if isinstance(value, dict) and "_target_" in value:
        _check_class(key, value, hint)
    elif not any(True for _ in _nodes(value)):
        try:
            hint = {DictConfig: dict, ListConfig: list}.get(hint, hint)
            TypeAdapter(hint, config=TYPES).validate_json(json.dumps(value))
        except ValidationError as error:
            raise UserError(_refused(key, value, error.errors(include_url=False))) from None
        except PydanticUserError:
            pass  # pydantic cannot check this type


def _check_class(key: str, node: dict[str, Any], hint: Any) -> None:
    """Raise a UserError if the node builds an object of a class that the argument does not accept."""
    target = _locate(key, node)
    built = target if inspect.isclass(target) else _hints(target).get("return")
    built, wanted = (getattr(kind, "array_type", kind) for kind in (built, hint))  # jaxtyping wraps the class
    if node.get("_partial_") or wanted is Any or not (inspect.isclass(built) and inspect.isclass(wanted)):
        return
    if not issubclass(built, wanted):
        raise UserError(f"{key} must be a {wanted.__name__}; {node['_target_']} gives a {built.__name__}.")


def _locate(key: str, node: dict[str, Any]) -> Any:
    """Import a node's target."""
    try:
        return pkgutil.resolve_name(node["_target_"])
    except Exception as error:
        raise UserError(
            f"{key}._target_={_shown(node['_target_'])} cannot be imported: {error}. Is its folder on PYTHONPATH?"
        ) from error


def signature(target: Any) -> tuple[dict[str, Any], bool]:
    """Return the types of a target's keyword arguments, and whether it also takes arguments of other names.

    A constructor often passes `**kwargs` to its base class, so the arguments of the base class are included.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    types: dict[str, Any] = {}
    takes_others = False
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # functions written in C may have no signature
            return types, True
        hints = _hints(function)
        for parameter in list(parameters)[1 if inspect.isclass(target) else 0 :]:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                types.setdefault(parameter.name, hints.get(parameter.name, Any))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
        takes_others = True
    return types, takes_others


def _hints(function: Any) -> dict[str, Any]:
    """Return the types of a function's arguments, without types that are imported only for a type checker."""
    function = inspect.unwrap(function)
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        one = SimpleNamespace(__annotations__={name: annotation})
        with suppress(NameError, TypeError, AttributeError):
            found |= typing.get_type_hints(one, getattr(function, "__globals__", {}), include_extras=True)
    return found


PLAIN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a finite number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "String should match pattern": "text that matches",
    "an object": "a group of settings",
    "greater than or equal to": "at least",
    "greater than": "above",
    "less than or equal to": "at most",
    "less than": "below",
}
"""replace pydantic's terms in messages"""


# Messages -----------------------------------------------------------------------------------------------------------


def _refused(key: str, value: Any, errors: Collection[Any]) -> str:
    """Return a message that says what a value must be. For a union, pydantic reports an error for each member."""
    wanted: dict[str, list[str]] = {}
    shown = {}
    for detail in errors:
        name, part = key, value
        for step in detail["loc"]:  # the path may also contain the name of a member of a union
            if isinstance(part, dict) and step in part:
                name, part = f"{name}.{step}" if name else str(step), part[step]
            elif isinstance(part, list) and isinstance(step, int) and step < len(part):
                name, part = f"{name}[{step}]", part[step]
        message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if detail["type"] in ("needs_python_object", "callable_type"):
            message = "a node with a `_target_`"
        elif detail["type"] == "missing":
            message = "a longer list"
        for term, plain in PLAIN_WORDS.items():
            message = message.replace(term, plain)
        wanted.setdefault(name, []).append(message)
        shown[name] = _shown(part)
    name, messages = max(wanted.items(), key=lambda item: len(item[0]))  # an item has a longer name than its list
    return f"{name}={shown[name]} must be {' or '.join(dict.fromkeys(messages))}."


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else f"{text[:77]}..."
