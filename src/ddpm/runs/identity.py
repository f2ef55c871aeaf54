"""A run's name and place, as a function of what was asked for on the command line."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

MAX_LENGTH = 119  # characters of a name, its digest included
SWEPT_KEYS = "DDPM_SWEPT_KEYS"
"""the environment variable that tells a job which keys its sweep varies, separated by commas"""
DELETED = "~"  # the value of a key that was removed with `~key`

_DIGEST = re.compile(r"\.[0-9a-f]{10}$")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def task_overrides() -> list[str]:
    """What the user (or the sweep) asked of the job that runs now, as it was typed, without overrides of Hydra."""
    # To Hydra they are config values: `seed='${other}'` would be looked up in Hydra's own config.
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return overrides


def run_directory(
    command: str,
    outputs: str | Path,
    overrides: Iterable[str],
    experiment: str | None = None,
    not_identity: Iterable[str] = (),
) -> Path:
    """`outputs/<command>/<experiment or "default">/<name of the overrides or "base">`.

    `overrides` are Hydra's task overrides of one job (`task_overrides()`). Their order, spacing and `+`, `++` make
    no difference, and a later one wins over an earlier one with its key.
    """
    folder = "default" if experiment is None else _readable(experiment, plain=experiment != "default")
    return Path(outputs) / command / folder / run_name(overrides, not_identity)


def results_name(places: Sequence[Path], outputs: str | Path) -> tuple[Path, str]:
    """A name for what is made of runs, or of folders of runs, and what to add to it so that no others share it.

    Below outputs/train it is the way from there, and nothing is to be added. One that lies elsewhere has its own name
    and, to be added, a digest of where it lies; several have a digest of all.
    """
    first, *others = (place.resolve() for place in places)
    trained = (Path(outputs) / "train").resolve()
    inside = first != trained and first.is_relative_to(trained)
    name = first.relative_to(trained) if inside else Path(first.name or "root")
    if others:
        name = name.with_name(f"{name.name}_and_{len(others)}_more")
    elif first.is_relative_to(trained):
        return name, ""
    where = "\n".join(map(str, (first, *others)))
    return name, "." + hashlib.sha256(where.encode()).hexdigest()[:10]


def run_name(overrides: Iterable[str], not_identity: Iterable[str] = ()) -> str:
    """`key-value` of each override that makes another run, sorted, joined by `_`; "base" without any.

    Only `A-Za-z0-9._-`, below 120 characters. Where the words could stand for other overrides too
    (characters replaced, a cut, an unlucky underscore) ten digits of a digest follow: a name belongs to one
    set of overrides.
    """
    items = identity_overrides(overrides, not_identity)
    if not items:
        return "base"
    words = "_".join(f"{key}-{value}" for key, value in items.items())
    return _readable(words, plain=_parse(words) == items, exact=json.dumps(items))


def identity_overrides(overrides: Iterable[str], not_identity: Iterable[str] = ()) -> dict[str, str]:
    """The overrides that make another run, key to value, sorted by key.

    Left out are Hydra's own, the choice of the experiment, and the keys of `not_identity`, each with all
    below it (`logger` covers `logger=none` and `logger.name=x`).
    """
    ignored = {"hydra", "experiment", *not_identity}
    items = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+~")
        parts = re.split(r"[./]", override.key_or_group)
        above = {".".join(parts[: i + 1]) for i in range(len(parts))}
        if above.isdisjoint(ignored) and f"{override.key_or_group}=" not in ignored:
            items[key] = _value(override)
    return dict(sorted(items.items()))


def _value(override: Override) -> str:
    """One spelling for each value, as a sweep spells its values anew: `1e-3` is `0.001`, `[1, 2]` is `[1,2]`,
    `'a'` is `a`. Strings that would read as another value are quoted."""
    if override.is_delete():
        return DELETED
    value = override.value()
    if isinstance(value, str):
        if not _PLAIN.fullmatch(value):
            return json.dumps(value)
        reread = OverridesParser.create().parse_override(f"key={value}").value()
        return value if reread == value and isinstance(reread, str) else json.dumps(value)
    return json.dumps(value, separators=(",", ":"))


def _parse(words: str) -> dict[str, str]:
    """Overrides back from a name's words. Words stand alone only where this returns what they were made of;
    as it is a function, no two sets of overrides can share them.

    A piece without `-` goes on with the value before it (`model-unet_small`), or, with a dot in it, begins
    the next key (`seed-1_trainer.max_steps-5`).
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
    """`words` themselves if plain, else made so, with a digest of what they stand for (`exact`)."""
    if plain and len(words) <= MAX_LENGTH and _PLAIN.fullmatch(words) and not _DIGEST.search(words):
        return words
    digest = hashlib.sha256((exact or words).encode()).hexdigest()[:10]
    legible = re.sub(r"[^A-Za-z0-9._]+", "-", words).strip("._-")
    legible = re.sub(r"-?_-?", "_", legible)[: MAX_LENGTH - 11].rstrip("._-")
    return f"{legible or 'run'}.{digest}"
