"""The name and directory of a run, as a function of its overrides."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from ddpm.config import leaves, user_path
from ddpm.secrets import MASK, is_secret, mask

MAX_LENGTH = 119  # characters of a name, including the digest
SWEPT_KEYS = "DDPM_SWEPT_KEYS"
"""environment variable of a sweep's jobs: the keys that the sweep varies, separated by commas"""
DELETED = "~"  # value of a key that the override `~key` removes

_DIGEST = re.compile(r"\.[0-9a-f]{10}$")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def task_overrides() -> list[str]:
    """Return the overrides of the current job as the user typed them, without overrides of Hydra's own config."""
    # Do not resolve interpolations: Hydra would look up `seed='${other}'` in its own config.
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return overrides


def overrides_with_effect(
    command: str, overrides: Sequence[str] | None = None, not_identity: Iterable[str] = ()
) -> list[str]:
    """Return the overrides that change the config of a command. If a key has several overrides, the last one counts.

    An override of a value has no effect if the selected options of the config groups set the same value. An override
    of a config group has no effect if the config is the same without the override. The answer takes a tenth of a second
    for each config that has to be composed, so overrides that do not identify a run are left out without the question.

    Args:
        overrides: the overrides to filter. None means the overrides of the current job.
        not_identity: as in `identity_overrides`.
    """
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(
        task_overrides() if overrides is None else list(overrides)
    )
    last = {override.key_or_group: override for override in parsed}
    options = {key: str(o.input_line) for key, o in last.items() if loader.get_group_options(key)}
    places = str(loader.get_search_path())

    hydra = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    more_places = [line for line in hydra if "hydra.searchpath" in line]

    def defaults(chosen: Mapping[str, str]) -> dict[str, Any]:
        return _composed(command, (*more_places, *chosen.values()), places)

    def has_effect(key: str, override: Override) -> bool:
        if key in options:
            try:
                others = defaults({name: line for name, line in options.items() if name != key})
            except HydraException:  # the config does not compose without the override
                return True
            return others != defaults(options)
        # By repr, because 1 and 1.0 may differ: a number of batches, and a share of them.
        return override.is_delete() or repr(defaults(options).get(key, override)) != repr(override.value())

    return [
        str(override.input_line)
        for key, override in last.items()
        if _identifies(override, not_identity) and has_effect(key, override)
    ]


@lru_cache(maxsize=256)
def _composed(command: str, overrides: tuple[str, ...], places: str) -> dict[str, Any]:
    """Compose a config and return its values by dotted key. `places` (the search path) only extends the cache key."""
    return dict(leaves(OmegaConf.to_container(compose(command, list(overrides)), resolve=False)))


def run_directory(
    command: str,
    outputs: str | Path,
    overrides: Iterable[str],
    experiment: str | None = None,
    not_identity: Iterable[str] = (),
    name: str | None = None,
) -> Path:
    """Return `outputs/<command>/<experiment or "default">/<name, or that of the overrides, or "base">`.

    `overrides` are the overrides of one job that have an effect (`overrides_with_effect`). The directory does not
    depend on the order of the overrides, on spaces in them, or on `+` and `++`.
    """
    folder = "default" if experiment is None else _readable(experiment, plain=experiment != "default")
    own = run_name(overrides, not_identity) if name is None else name
    return user_path(outputs) / command / folder / own


def results_directory(
    command: str, checkpoint: Path, outputs: str | Path, overrides: Iterable[str], not_identity: Iterable[str] = ()
) -> Path:
    """Return `outputs/<command>/<the run's name>/<checkpoint>_<overrides>` for results from a checkpoint.

    `overrides` are the overrides of the command that have an effect.
    """
    of_run, mark = results_name([run_of(checkpoint)], outputs)
    name = run_name(overrides, [*not_identity, "ckpt"])
    last = checkpoint.stem if name == "base" else f"{checkpoint.stem}_{name}"
    return user_path(outputs) / command / of_run / (last + mark)


def run_of(checkpoint: Path) -> Path:
    """Return the directory of the run that wrote a checkpoint."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def results_name(places: Sequence[Path], outputs: str | Path) -> tuple[Path, str]:
    """Return (name, suffix) for results from runs or folders of runs. Different places have different pairs.

    The name of a place below outputs/train is its path relative to outputs/train, without a suffix. The name of a
    place elsewhere is the name of its folder, and the suffix is a digest of its path. If there are several places, the
    name is made from the first place and the number of the others, and the suffix is a digest of all paths.
    """
    first, *others = (place.resolve() for place in places)
    trained = (user_path(outputs) / "train").resolve()
    inside = first != trained and first.is_relative_to(trained)
    name = first.relative_to(trained) if inside else Path(first.name or "root")
    if others:
        name = name.with_name(f"{name.name}_and_{len(others)}_more")
    elif first.is_relative_to(trained):
        return name, ""
    where = "\n".join(map(str, (first, *others)))
    return name, "." + hashlib.sha256(where.encode()).hexdigest()[:10]


def run_name(overrides: Iterable[str], not_identity: Iterable[str] = ()) -> str:
    """Return `key-value` of each override that identifies the run, sorted and joined by `_`; "base" without overrides.

    The name consists of `A-Za-z0-9._-` and has at most 119 characters. The name ends with ten digits of a digest if
    other overrides could have the same name: if characters were replaced, if the name was shortened, or if an
    underscore makes the name ambiguous. So no two sets of overrides share a name.
    """
    items = identity_overrides(overrides, not_identity)
    if not items:
        return "base"
    words = "_".join(f"{key}-{value}" for key, value in items.items())
    return _readable(words, plain=_parse(words) == items, exact=json.dumps(items))


def identity_overrides(overrides: Iterable[str], not_identity: Iterable[str] = ()) -> dict[str, str]:
    """Return the overrides that identify the run, as a dict of key -> value sorted by key.

    Left out are overrides of Hydra, the override of `experiment`, and the keys in `not_identity`. An entry `logger` of
    `not_identity` covers `logger=none` and `logger.name=x`; an entry `logger=` covers only `logger=none`.
    """
    items = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        if _identifies(override, not_identity):
            items[key] = MASK if is_secret(key) else mask(_value(override))
    return dict(sorted(items.items()))


def _identifies(override: Override, not_identity: Iterable[str]) -> bool:
    """Return whether the override is one of those that `identity_overrides` keeps."""
    ignored = {"hydra", "experiment", *not_identity}
    parts = re.split(r"[./]", override.key_or_group)
    above = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return above.isdisjoint(ignored) and f"{override.key_or_group}=" not in ignored


def _value(override: Override) -> str:
    """Return the override's value in canonical form: `0.001` for `1e-3`, `[1,2]` for `[1, 2]`, `a` for `'a'`.

    So a value has the same text whether the user typed the value or a sweep passes it. A string stays quoted
    if it has special characters or would be read as another type.
    """
    if override.is_delete():
        return DELETED
    value = override.value()
    if isinstance(value, str):
        if not _PLAIN.fullmatch(value):
            return json.dumps(value)
        reread = OverridesParser.create().parse_override(f"key={value}").value()
        return value if reread == value else json.dumps(value)
    return json.dumps(value, separators=(",", ":"))


def _parse(words: str) -> dict[str, str]:
    """Return the overrides that a name without a digest describes.

    `run_name` leaves the digest out only if this function recovers the overrides from the name. So two sets of
    overrides cannot share a name without a digest.

    The name is split at `_`. A piece without `-` continues the value before it (`model-unet_small`). If the piece
    contains a dot, it starts the next key instead (`seed-1_trainer.max_steps-5`).
    """
    items: dict[str, str] = {}
    key, start = None, ""
    for piece in words.split("_"):
        head, dash, value = piece.partition("-")
        if dash:
            key, start = start + head, ""
            items[key] = value
        elif start or key is None or "." in piece:
            start += piece + "_"
        else:
            items[key] += "_" + piece
    return items


def _readable(words: str, plain: bool, exact: str | None = None) -> str:
    """Return `words` if they are a valid name, else a valid name made from `words` and a digest of `exact`.

    Args:
        plain: whether `words` are unambiguous.
        exact: the text that `words` abbreviate; None means `words`.
    """
    if plain and len(words) <= MAX_LENGTH and _PLAIN.fullmatch(words) and not _DIGEST.search(words):
        return words
    digest = hashlib.sha256((exact or words).encode()).hexdigest()[:10]
    legible = re.sub(r"[^A-Za-z0-9._]+", "-", words).strip("._-")
    legible = re.sub(r"-?_-?", "_", legible)[: MAX_LENGTH - 11].rstrip("._-")
    return f"{legible or 'run'}.{digest}"
