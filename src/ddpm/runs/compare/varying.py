"""The settings in which runs differ, in as few columns as possible."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

from ddpm.config import option_name
from ddpm.runs.collect import Value

Columns = dict[str, list[Value]]
"""setting -> its value in each run"""

TARGET = "_target_"


def varying_settings(configs: Sequence[Mapping[str, Value]]) -> Columns:
    """Return the settings whose values differ between the configs, with the value in each config.

    A config is given as its leaves by dotted key. Interpolations are resolved and group choices expanded, so one
    override changes many leaves. Three rules reduce them to one column per override:

    - A leaf is a copy if a leaf with a shorter key has the same last name and the same values. Copies are left out
      (`diffusion.betas.num_steps` is a copy of `schedule.num_steps`).
    - If one leaf of a node determines other leaves of the node, they share a column with the node's name
      (`model`: `channels=16 blocks=1`).
    - A `_target_` is shown by the name that a user types, at the start of its column (`schedule`: `cosine`). A leaf
      that exists only for some targets, and always with the same value, follows from the target and is left out.
    """
    keys = dict.fromkeys(chain.from_iterable(configs))
    columns = {key: [config.get(key) for config in configs] for key in keys}
    columns = _without_copies({key: column for key, column in columns.items() if len(set(column)) > 1})

    nodes: dict[str, Columns] = defaultdict(dict)
    for key, column in columns.items():
        node, _, name = key.rpartition(".")
        nodes[node][name] = column
    varying: Columns = dict(nodes.pop("", {}))
    for node, leaves in nodes.items():
        for group in _groups(leaves):
            only = next(iter(group)) if len(group) == 1 else TARGET
            key = node if only == TARGET else f"{node}.{only}"
            if key in varying:  # two groups of one node
                key = f"{node}.{'+'.join(group)}"
            varying[key] = next(iter(group.values())) if len(group) == 1 and only != TARGET else _in_words(group)
    return varying


def _without_copies(columns: Columns) -> Columns:
    originals: set[tuple[str, tuple[Value, ...]]] = set()
    copies = set()
    for key in sorted(columns, key=lambda key: key.count(".")):
        what = (key.rpartition(".")[2], tuple(columns[key]))
        if what in originals:
            copies.add(key)
        originals.add(what)
    return {key: column for key, column in columns.items() if key not in copies}


def _groups(leaves: Columns) -> list[Columns]:
    """Return groups of a node's leaves. The first leaf that was put into a group determines the others."""
    groups: list[Columns] = []
    finest_first = sorted(leaves, key=lambda name: (-len(set(leaves[name])), name != TARGET))
    for name in finest_first:
        for group in groups:
            leader = next(iter(group.values()))
            if _determines(leader, leaves[name]):
                group[name] = leaves[name]
                break
        else:
            groups.append({name: leaves[name]})
    return sorted(groups, key=lambda group: TARGET not in group)


def _determines(one: Sequence[Value], other: Sequence[Value]) -> bool:
    """Return whether equal values in `one` always have equal values in `other`."""
    return len(set(zip(one, other, strict=True))) == len(set(one))


def _in_words(group: Columns) -> list[Value]:
    """Return the values of several leaves as one text per run."""
    names = [name for name in group if name != TARGET and not _follows_from_target(name, group)]
    texts: list[Value] = []
    for i in range(len(next(iter(group.values())))):
        target = group[TARGET][i] if TARGET in group else None
        words = [option_name(str(target))] if target is not None else []
        words += [f"{name}={format_value(group[name][i])}" for name in names if group[name][i] is not None]
        texts.append(" ".join(words) or None)
    return texts


def _follows_from_target(name: str, group: Columns) -> bool:
    return TARGET in group and None in group[name] and _determines(group[TARGET], group[name])


def format_value(value: Value) -> str:
    """Return a value as a user types it, a dash for None."""
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
