"""`ddpm export`: writes a model as a folder to pass on: averaged weights, config, model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from ddpm.commands import display
from ddpm.commands.command import Plan
from ddpm.commands.from_checkpoint import name_of_weights, set_average
from ddpm.commands.model_card import evaluations_of, model_card
from ddpm.config import override, user_path
from ddpm.errors import UserError
from ddpm.runs import find_checkpoint, load_checkpoint
from ddpm.runs.exported import AVERAGE, CARD, CONFIG, SUMS, WEIGHTS, write_exported
from ddpm.runs.files import check_new_folder
from ddpm.training.building import PARTS, load_model
from ddpm.training.module import DDPM


class Job(NamedTuple):
    """What is exported, read and checked."""

    content: dict[str, Any]
    """of the checkpoint, with the average and in the type that are asked for"""
    model: DDPM
    to: Path
    evaluations: list[dict[str, Any]]
    """metrics.json of the evaluations of these weights"""


def plan(cfg: DictConfig) -> Plan:
    """Return what `run` would do."""
    return Plan(prepare(cfg).to, "export the model")


def run(cfg: DictConfig) -> None:
    """Write the folder `to`.

    Raises:
        UserError: the checkpoint does not exist or cannot be trusted, or the folder is there already.
    """
    content, model, to, evaluations = prepare(cfg)
    config, weights = portable(model.hparams["config"]), name_of_weights(cfg)
    card = model_card(model, config, content["global_step"], weights, to.name, evaluations, cfg.license, cfg.dtype)
    write_exported(to, content, config, card)
    size = (to / WEIGHTS).stat().st_size / 1e6
    display.results(
        to,
        [
            f"{WEIGHTS}: the averaged weights, {size:.2g} MB",
            f"{CONFIG}: what the model is built from",
            f"{CARD}: the model card",
            f"{SUMS}: checksums of weights and config",
        ],
        [f"ddpm sample {override('ckpt', to)}"],
    )


def prepare(cfg: DictConfig) -> Job:
    """Return the checked parts of the command.

    Raises:
        UserError: see `run`, or the weights do not fit into `dtype`, or the run stored no averages for `ema.length`.
    """
    to = user_path(cfg.to)
    check_new_folder(to)
    checkpoint = find_checkpoint(cfg.ckpt)
    model = load_model(checkpoint)
    content = load_checkpoint(checkpoint)
    outputs = user_path(cfg.paths.outputs)
    evaluations = evaluations_of(outputs, checkpoint, content["global_step"], name_of_weights(cfg))
    if (average := set_average(cfg, model, checkpoint)) is not None:
        weights = {AVERAGE + name: value for name, value in model.ema.module.state_dict().items()}
        content |= {"state_dict": content["state_dict"] | weights, "global_step": average.step}
    if cfg.dtype is not None:
        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}[cfg.dtype]
        content["state_dict"] = {name: _cast(name, value, dtype) for name, value in content["state_dict"].items()}
    return Job(content, model, to, evaluations)


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    smaller = value.to(dtype)
    if (smaller.isinf() & value.isfinite()).any():
        raise UserError(f"dtype: the weight {name} has numbers that are too large for {str(dtype)[6:]}.")
    return smaller


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a config that describe a model and its training, without the folders of this machine."""
    kept = {name: config[name] for name in (*PARTS, "trainer") if name in config}
    data, paths = kept.get("data"), config.get("paths")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        of_user = isinstance(paths, dict) and data["root"] == paths.get("data")
        # Where the root is the folder for data sets, it is replaced by that of the reader.
        kept["data"] = data | {"root": "data" if of_user else Path(data["root"]).name}
        if kept["data"].get("cache") is not None:
            kept["data"] |= {"cache": "data/image_folder"}
    objective, outputs = kept.get("objective"), paths.get("outputs") if isinstance(paths, dict) else None
    if isinstance(objective, dict) and isinstance(loss := objective.get("loss"), dict):
        models = {
            key: _portable_path(loss[key], outputs) for key in ("teacher", "weak") if isinstance(loss.get(key), str)
        }
        kept["objective"] = objective | {"loss": loss | models}  # of a distillation
    return kept | {"paths": {"data": "data"}}


def _portable_path(path: str, outputs: Any) -> str:
    """Return the path of a model from the folder for results; of another place only its name."""
    if isinstance(outputs, str) and Path(path).is_relative_to(outputs):
        return f"outputs/{Path(path).relative_to(outputs)}"
    return Path(path).name
