"""Find the runs below a directory and read them, also if their files are missing or damaged. Imports no torch."""

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
from typing import Any, NamedTuple, get_args

from ddpm.config import is_below
from ddpm.errors import UserError
from ddpm.runs.files import read_json, read_yaml
from ddpm.runs.nearby import runs_nearby, suggest
from ddpm.runs.run import BEST, LAST, is_locked
from ddpm.runs.saved_config import comparable
from ddpm.runs.status import MAX_ERROR, State
from ddpm.secrets import mask_values

Value = int | float | str | None
"""value of a setting. A list or another type is JSON text; None means that the config does not have the setting"""

SET_ASIDE = re.compile(r"\.before-\d{8}-\d{6}$")  # the suffix that restart=true appends to an old run's directory
"""maximum number of characters of an error in a record"""
FILES_OF_A_RUN = ("status.json", "config.yaml")


class Curve(NamedTuple):
    """A metric over the training steps."""

    steps: list[int]
    values: list[float]


class Samples(NamedTuple):
    """A picture of samples that was drawn during training."""

    step: int
    png: bytes


@dataclass(frozen=True)
class RunRecord:
    """The content of a run's directory."""

    directory: Path
    state: str
    """state in status.json. A "running" run of this host without a process is "killed". If status.json is damaged or
    missing, the state is "unreadable" or "absent"."""
    step: int | None = None
    """optimizer steps done"""
    seconds: float | None = None
    """training time"""
    error: str | None = None
    """error in status.json, followed by the names of damaged files"""
    settings: Mapping[str, Value] = field(default_factory=dict)
    """settings that identify the run, by dotted key; empty if config.yaml cannot be read"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """newest value of each metric; values that are not finite are left out"""
    checkpoint: Path | None = None
    """best checkpoint, else the last one"""


def find_runs(places: Iterable[Path]) -> list[Path]:
    """Return the runs at or below the places: directories with status.json and config.yaml, without duplicates.

    Runs that restart=true has renamed are left out, unless the run itself is one of the places.

    Raises:
        UserError: a place does not exist, or there is no run at or below the places.
    """
    places = list(places)
    for place in places:
        if not place.is_dir():
            raise UserError(f"there is no directory {place}{_suggest_folders(place)}")
    runs: dict[Path, Path] = {}
    for run in chain.from_iterable(map(_runs_below, places)):
        runs.setdefault(run.resolve(), run)
    if not runs:
        where = " and ".join(map(str, places))
        files = " and ".join(FILES_OF_A_RUN)
        raise UserError(
            f"there is no run in {where}: no directory at any depth with {files}{_suggest_folders(places[0].parent)}"
        )
    return list(runs.values())


def _runs_below(top: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(top):
        if set(FILES_OF_A_RUN) <= set(files):
            subfolders.clear()
            yield Path(folder)
        subfolders[:] = sorted(name for name in subfolders if not (name.startswith(".") or SET_ASIDE.search(name)))


def _suggest_folders(place: Path) -> str:
    return suggest(run.parent for run in runs_nearby(place, "status.json"))


def read_run(directory: Path) -> RunRecord:
    """Return the record of a run. The record's `error` names damaged files; fields of missing files are empty."""
    status, metrics = mask_values(read_json(directory / "status.json")), read_json(directory / "metrics.json")
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
        "\n".join([str(error)[: 2 * MAX_ERROR]] * bool(error) + damaged) or None,  # its note on the cut needs room
        settings,
        {name: number for name, value in metrics.items() if (number := _number(value)) is not None},
        next((path for name in (BEST, LAST) if (path := directory / "checkpoints" / name).is_file()), None),
    )


def _state(directory: Path, status: Mapping[str, Any]) -> str:
    if not status:
        return "unreadable" if (directory / "status.json").exists() else "absent"
    here = status.get("host") == socket.gethostname()  # a lock held on another machine may be invisible here
    if status.get("state") == "running" and here and not is_locked(directory):
        return "killed"
    state = status.get("state")
    return str(state) if state in get_args(State) else "unreadable"


def _number(value: Any) -> float | None:
    """Return `value` if it is a finite number, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _read_settings(path: Path) -> dict[str, Value]:
    config = read_yaml(path)
    if not isinstance(config.get("paths"), dict):
        return {}
    others = config.get("not_identity")
    ignored = ["paths", "not_identity", *(others if isinstance(others, list) else [])]
    settings = comparable(mask_values(config))
    return {key: _as_value(value) for key, value in settings.items() if not is_below(key, ignored)}


def _as_value(value: Any) -> Value:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)


def read_curves(directory: Path, metrics: Sequence[str]) -> dict[str, Curve]:
    """Return the curves of the metrics from a run's TensorBoard events. Metrics without events are left out.

    If a step was repeated after a resume, the curve has the value of the last repetition.
    """
    from tensorboard.backend.event_processing.directory_watcher import (  # type: ignore[import-untyped]
        DirectoryDeletedError,
    )
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )
    from tensorboard.util import tb_logging  # type: ignore[import-untyped]

    tb_logging.get_logger().setLevel("ERROR")  # hides TensorBoard's warnings about repeated steps
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 1})
    try:
        events.Reload()
    except DirectoryDeletedError:
        return {}
    found = set(events.Tags()["scalars"]).intersection(metrics)
    return {
        name: Curve([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
        for name in metrics
        if name in found
    }


def samples_over_time(directory: Path, number: int) -> list[Samples]:
    """Return up to `number` pictures of samples: the newest, which comes last, and earlier ones.

    The earlier ones are closer together near the start, where samples change most. Pictures that cannot be read are
    left out: a training run may be writing the newest.
    """
    paths = sorted((directory / "samples").glob("samples-step-*.png"))
    while paths and _read_samples(paths[-1]) is None:
        paths.pop()
    exponents = (1 - i / max(number - 1, 1) for i in range(number))
    chosen = {round(len(paths) ** exponent) - 1 for exponent in exponents} if paths else set()
    return [found for i in sorted(chosen) if (found := _read_samples(paths[i]))]


def _read_samples(path: Path) -> Samples | None:
    from PIL import Image

    try:
        png = path.read_bytes()
        with Image.open(io.BytesIO(png)) as picture:
            picture.load()
        return Samples(int(path.stem.rpartition("-")[2]), png)
    except (OSError, ValueError, SyntaxError):
        return None
