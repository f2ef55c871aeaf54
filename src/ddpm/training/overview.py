"""What a run will use: settings, operations, memory. Printed when it starts."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import lightning as L
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.config import leaves
from ddpm.devices import device_name
from ddpm.runs import SWEPT_KEYS
from ddpm.training.module import DDPM

NOT_SHOWN = ("paths.", "restart", "dry_run", "not_identity")


def summary(cfg: DictConfig, model: DDPM, trainer: L.Trainer) -> list[str]:
    """Return three lines: settings that differ from the defaults; size of the network; device, precision, memory."""
    parameters = sum(p.numel() for p in model.network.parameters())
    memory = expected_memory(model, cfg.data.batch_size // trainer.world_size)
    return [
        f"settings: {' '.join(changed_settings(cfg)) or 'the defaults'}",
        f"network: {parameters:,} parameters, {flops_per_image(model) / 1e9:.3g} GFLOPs per image (forward pass)",
        f"device: {device_name(trainer.strategy.root_device)}; precision {trainer.precision}; training needs about "
        f"{memory / 1e6:,.0f} MB per process (weights, average, gradients, Adam state, float32 activations of a batch)",
    ]


def swept_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's values of the keys that its sweep varies. The value of a group is the name of its option."""
    keys = [key for key in os.environ.get(SWEPT_KEYS, "").split(",") if key]
    values = OmegaConf.create({"config": dict(config)})
    choices = HydraConfig.get().runtime.choices
    return {key: choices[key] if key in choices else OmegaConf.select(values, f"config.{key}") for key in keys}


def changed_settings(cfg: DictConfig) -> list[str]:
    """Return the settings that differ from the defaults of `conf/train.yaml`, as overrides.

    A chosen group is one setting (`model=unet_tiny`), followed by the keys that differ from this choice.
    """
    hydra = HydraConfig.get()
    sources = tuple(str(source.path) for source in hydra.runtime.config_sources)
    default, _ = _composed(sources)
    recipes = ("experiment", "debug", "sweep")  # their content is shown key by key
    groups = [
        f"{group}={choice}" for group, choice in _groups(hydra.runtime.choices).items() if choice != default.get(group)
    ]
    chosen = [group for group in groups if not group.startswith(recipes)]
    _, before = _composed(sources, *chosen)
    now = dict(leaves(OmegaConf.to_container(cfg)))
    # repr, since 1 and 1.0 are equal, but mean one batch and all batches
    keys = [f"{key}={now[key]}" for key in now if key not in before or repr(before[key]) != repr(now[key])]
    keys += [f"~{key}" for key in before.keys() - now.keys()]
    return chosen + [key for key in keys if not key.lstrip("~").startswith(NOT_SHOWN)]


@cache
def _composed(sources: tuple[str, ...], *overrides: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Compose `conf/train.yaml`; return the choices of the config groups, and all settings.

    Kept for each list of config folders, `sources`: a composition takes longer than building a small model.
    """
    config = compose("train", list(overrides), return_hydra_config=True)
    settings = leaves(OmegaConf.to_container(config))
    return _groups(config.hydra.runtime.choices), {key: v for key, v in settings if not key.startswith("hydra.")}


def _groups(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the choices of the config groups, without those of Hydra itself."""
    return {
        group.partition("@")[0]: str(choice).replace("'", "").replace(" ", "")
        for group, choice in choices.items()
        if choice is not None and not group.startswith("hydra/")
    }


def flops_per_image(model: DDPM) -> int:
    """Return the floating-point operations of one forward pass of one image; a multiplication and an addition are two.

    Counted: convolutions, matrix products and attention. A training step needs about three times as many.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _call(model.ema, model)
    return counter.get_total_flops()


def expected_memory(model: DDPM, images: int) -> int:
    """Return the bytes that training takes in each process, an estimate.

    Counted, all in float32: weights, their average, gradients, two moments per weight (Adam), and the tensors that
    autograd keeps from the forward pass of `images` images. Not counted: the libraries, the data, the workspace of
    single operations. With bfloat16 the last part is smaller; compilation and sharding lower it too.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = list(model.network.parameters())
    training = model.network.training
    model.network.eval()  # a batch norm must not see these images
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = _call(model.network, model)
    model.network.train(training)
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    del output
    return sum(5 * weight.numel() * 4 for weight in weights) + images * sum(kept.values())


def _call(network: nn.Module, model: DDPM) -> torch.Tensor:
    """Return the output of the network for one black image."""
    condition = {} if model.num_classes is None else {"labels": torch.tensor([model.num_classes])}
    output: torch.Tensor = network(torch.zeros(1, *model.image_shape), torch.zeros(1, dtype=torch.int64), **condition)
    return output
