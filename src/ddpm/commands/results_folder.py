"""The folder for the results of a command."""

from pathlib import Path

import torch

from ddpm.devices import device_name
from ddpm.runs import provenance, write_json
from ddpm.runs.files import make_folder


def make_results_folder(directory: Path, device: torch.device, checkpoint: Path | None) -> None:
    """Make the folder, with a provenance.json that names the device and the checkpoint.

    Raises:
        UserError: the folder cannot be made.
    """
    make_folder(directory)
    write_json(directory / "provenance.json", provenance(device_name(device)) | {"checkpoint": checkpoint})
