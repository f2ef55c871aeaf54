"""Run directories without a training: a real config, with the status, metrics, curves and pictures of a test."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

from ddpm.config import conf_dir

ELSEWHERE = {"host": "another-machine"}


@cache
def composed(*overrides: str) -> Any:
    """The config of `ddpm train OVERRIDES`."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", list(overrides))


def make_run(
    directory: Path,
    *overrides: str,
    state: str = "finished",
    step: int = 100,
    metrics: Mapping[str, Any] | None = None,
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    shade: int | None = None,
    **status: Any,
) -> Path:
    """Make the directory of a run of `ddpm train OVERRIDES`.

    Args:
        metrics: content of metrics.json.
        curves: metric -> (step, value) of the TensorBoard events.
        shade: gray level of a picture of samples. With it the run has an empty best.ckpt too.
        status: more fields of status.json.
    """
    directory.mkdir(parents=True)
    config = copy.deepcopy(composed(*overrides))
    config.paths.run = str(directory)
    text = yaml.safe_dump(OmegaConf.to_container(config, resolve=True), sort_keys=False)
    (directory / "config.yaml").write_text(text)
    (directory / "status.json").write_text(json.dumps({"state": state, "step": step, **ELSEWHERE, **status}))
    if metrics is not None:
        (directory / "metrics.json").write_text(json.dumps(dict(metrics)))
    if curves:
        writer = EventFileWriter(str(directory))
        for tag, points in curves.items():
            for at, value in points:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                writer.add_event(Event(step=at, wall_time=at, summary=summary))
        writer.close()
    if shade is not None:
        (directory / "samples").mkdir()
        Image.new("L", (32, 32), shade).save(directory / "samples" / f"samples-step-{step:07d}.png")
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "best.ckpt").touch()
    return directory
