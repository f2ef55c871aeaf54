"""Finds the runs under a directory and reads them, whatever state they are in. Imports no torch."""

import io
import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddpm.errors import UserError
from ddpm.runs.files import read_json
from ddpm.runs.run import BEST, LAST, is_locked
from ddpm.runs.saved_config import comparable, is_below

Value = int | float | str | None
"""of a setting; lists and the like as JSON; None where a config does not have it"""

SET_ASIDE = re.compile(r"\.before-\d{8}-\d{6}$")  # what restart=true leaves of the run before
WITHIN_A_RUN = ("status.json", "config.yaml")


class Curve(NamedTuple):
    """A metric over training."""

    steps: list[int]
    values: list[float]


class Samples(NamedTuple):
    """A picture of samples, drawn during training."""

    step: int
    png: bytes


@dataclass(frozen=True)
class RunRecord:
    """What a run's directory says of it."""

    directory: Path
    state: str
    """that of status.json; "stopped" where it says running and no process is; "unreadable", or "absent" """
    step: int | None = None
    """optimizer steps"""
    seconds: float | None = None
    """of training"""
    error: str | None = None
    """why it failed, and what cannot be read"""
    settings: Mapping[str, Value] = field(default_factory=dict)
    """the leaves of its config that make it another run, by dotted key; empty where that cannot be read"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """the newest finite value of each"""
    checkpoint: Path | None = None
    """its best, else its last"""


def find_runs(places: Iterable[Path]) -> list[Path]:
    """The runs at or below the places, each once: directories with status.json and config.yaml.

    Runs that restart=true moved aside are left out unless a place names them.

    Raises:
        UserError: a place is not there, or none has a run.
    """
    places = list(places)
    for place in places:
        if not place.is_dir():
            raise UserError(f"there is no directory {place}{_nearby(place)}")
    runs: dict[Path, Path] = {}
    for run in chain.from_iterable(map(_runs_below, places)):
        runs.setdefault(run.resolve(), run)
    if not runs:
        where = " and ".join(map(str, places))
        raise UserError(
            f"there is no run in {where}: no directory at any depth with {' and '.join(WITHIN_A_RUN)}"
            + _nearby(places[0].parent)
        )
    return list(runs.values())


def _runs_below(top: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(top):
        if set(WITHIN_A_RUN) <= set(files):
            subfolders.clear()
            yield Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not (name.startswith(".") or SET_ASIDE.search(name)))


def _nearby(place: Path, limit: int = 5) -> str:
    """For an error's message: folders of runs, under the nearest folder above that exists.

    Under outputs/ where that is the current folder or one above it, which may hold anything.
    """
    folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
    if Path.cwd().is_relative_to(folder.resolve()):
        folder = Path("outputs")
    files = [file for depth in range(5) for file in sorted(folder.glob("*/" * depth + "status.json"))]
    found = dict.fromkeys(str(file.parent.parent) for file in files if (file.parent / "config.yaml").is_file())
    return f"; nearby: {', '.join(list(found)[:limit])}" if found else ""


def read_run(directory: Path) -> RunRecord:
    """A run as it stands; what is missing or damaged is said in the record, never raised."""
    status, metrics = read_json(directory / "status.json"), read_json(directory / "metrics.json")
    settings = _read_settings(directory / "config.yaml")
    contents = {"status.json": status, "metrics.json": metrics, "config.yaml": settings}
    damaged = [
        f"{name} cannot be read" for name, content in contents.items() if not content and (directory / name).exists()
    ]
    error = status.get("error")
    step = _number(status.get("step"))
    return RunRecord(
        directory,
        _state(directory, status),
        None if step is None else int(step),
        _number(status.get("seconds")),
        "\n".join([str(error)] * bool(error) + damaged) or None,
        settings,
        {name: number for name, value in metrics.items() if (number := _number(value)) is not None},
        next((path for name in (BEST, LAST) if (path := directory / "checkpoints" / name).is_file()), None),
    )


def _state(directory: Path, status: Mapping[str, Any]) -> str:
    if not status:
        return "unreadable" if (directory / "status.json").exists() else "absent"
    here = status.get("host") == socket.gethostname()  # of another machine's processes the lock may not tell
    if status.get("state") == "running" and here and not is_locked(directory):
        return "stopped"
    return str(status.get("state", "unreadable"))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _read_settings(path: Path) -> dict[str, Value]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(config, dict) or not isinstance(config.get("paths"), dict):
        return {}
    ignored = ["paths", "not_identity", *(config.get("not_identity") or [])]
    return {key: _plain(value) for key, value in comparable(config).items() if not is_below(key, ignored)}


def _plain(value: Any) -> Value:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def read_curves(directory: Path, metrics: Sequence[str]) -> dict[str, Curve]:
    """Those of the metrics that are in a run's TensorBoard events; of steps that were made again, the later ones."""
    from tensorboard.backend.event_processing.directory_watcher import (  # type: ignore[import-untyped]
        DirectoryDeletedError,
    )
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )
    from tensorboard.util import tb_logging  # type: ignore[import-untyped]

    tb_logging.get_logger().setLevel("ERROR")  # it warns of those steps
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 1})
    try:
        events.Reload()
    except DirectoryDeletedError:
        return {}
    there = set(events.Tags()["scalars"]).intersection(metrics)
    return {
        name: Curve([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
        for name in metrics
        if name in there
    }


def newest_samples(directory: Path) -> Samples | None:
    """The newest picture of samples that is whole: a run may be writing one."""
    from PIL import Image

    for path in sorted((directory / "samples").glob("samples-step-*.png"), reverse=True):
        try:
            png = path.read_bytes()
            with Image.open(io.BytesIO(png)) as picture:
                picture.load()
            return Samples(int(path.stem.rpartition("-")[2]), png)
        except (OSError, ValueError, SyntaxError):
            continue
    return None
