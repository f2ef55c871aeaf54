"""An exported model: a folder with the averaged weights, the config and a model card. It is read as a checkpoint."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.config import check_plain
from ddpm.errors import UserError
from ddpm.runs.archives import MAX_DIRECTORY
from ddpm.runs.files import new_folder, read_text, read_yaml, replace_file
from ddpm.runs.saved_config import write_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, CONFIG, CARD, SUMS = "model.safetensors", "config.yaml", "README.md", "SHA256SUMS"
FILES = (WEIGHTS, CONFIG, CARD, SUMS)
MAX_SUMS = 10_000
"""bytes of SHA256SUMS"""
NETWORK, AVERAGE = "network.", "ema.module."
"""how the names of a checkpoint's weights begin; an exported `network.` holds the average"""
HEADER = "ddpm"
"""the key of our own facts in the header of the weights"""


def write_exported(path: Path, checkpoint: Mapping[str, Any], config: Mapping[str, Any], card: str) -> None:
    """Write a new folder with the averaged weights of a checkpoint, in one step. SHA256SUMS covers weights and config.

    Args:
        config: what the model is rebuilt from.
        card: the model card, Markdown.

    Raises:
        UserError: the folder is not new, or it cannot be made.
    """
    import safetensors.torch
    import torch

    state: Mapping[str, Tensor] = checkpoint["state_dict"]
    averaged = {
        NETWORK + name.removeprefix(AVERAGE): value for name, value in state.items() if name.startswith(AVERAGE)
    }
    kept = {name: value for name, value in state.items() if not name.startswith((AVERAGE, NETWORK))} | averaged
    # The format stores each tensor by itself and in rows.
    kept = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in kept.items()}
    facts = {name: checkpoint[name] for name in ("format", "global_step")}
    with new_folder(path) as folder:
        replace_file(folder / WEIGHTS, safetensors.torch.save(kept, {HEADER: json.dumps(facts)}))
        write_config(folder, config)
        sums = "".join(f"{_sha256(folder / name)}  {name}\n" for name in (WEIGHTS, CONFIG))
        replace_file(folder / SUMS, sums.encode())
        replace_file(folder / CARD, card.encode())


def read_exported(weights: Path) -> dict[str, Any]:
    """Return the content of an exported folder in the layout of a checkpoint. Its weights are not checked yet.

    Args:
        weights: the file `model.safetensors` of the folder.

    Raises:
        UserError: a file differs from the exported one, or the config is no plain data.
        Exception: a file is damaged. The library for safetensors raises many types.
    """
    from safetensors import safe_open

    folder = weights.parent
    if weights.name != WEIGHTS:
        raise UserError(f"{weights} is no exported model: its file must have the name {WEIGHTS}.")
    lines = read_text(folder / SUMS, MAX_SUMS).splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    _check_header(weights)
    config = read_yaml(folder / CONFIG)
    if not config:
        raise UserError(f"{folder / CONFIG} is missing, damaged or too large.")
    check_plain(config, str(folder / CONFIG))
    for name in (WEIGHTS, CONFIG):
        if sums.get(name) != _sha256(folder / name):
            raise UserError(f"{folder / name} is not the exported file: its SHA-256 differs from that in {SUMS}.")
    with safe_open(weights, "pt") as file:
        facts = json.loads((file.metadata() or {}).get(HEADER, "{}"))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state |= {AVERAGE + name.removeprefix(NETWORK): state[name] for name in list(state) if name.startswith(NETWORK)}
    return {**facts, "state_dict": state, "hyper_parameters": {"config": config}}


def _check_header(path: Path) -> None:
    """Raise a ValueError if the file has no header that can be read in bounded memory."""
    if not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > min(MAX_DIRECTORY, path.stat().st_size):
            raise ValueError("it is not a file of safetensors, or its header is too large")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
