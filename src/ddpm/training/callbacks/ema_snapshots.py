"""Averages of the weights that are stored during training, so that their length can be chosen later."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ddpm.errors import UserError
from ddpm.runs.checkpoints import FORMAT
from ddpm.runs.files import make_folder, replace_file
from ddpm.training.averaging import WeightAverage
from ddpm.training.module import DDPM
from ddpm.training.power_averages import gamma, power_average, snapshot_name


class EMASnapshots(L.Callback):
    """Keeps power-function averages of the weights, and stores them every `every_steps` optimizer steps and at the end.

    `ema.length=…` of `ddpm sample` and `ddpm evaluate` makes an average of any length from them. A snapshot of one
    average is as large as the weights in float32.

    Args:
        directory: where the snapshots are written.
        lengths: of the averages, as shares of the training; the paper's are 0.05 and 0.1.
        every_steps: optimizer steps between snapshots.
    """

    def __init__(self, directory: str | Path, lengths: Sequence[float] = (0.05, 0.1), every_steps: int = 500):
        if every_steps < 1:
            raise ValueError(f"{every_steps=} must be at least 1.")
        if not lengths or len(set(lengths)) < len(lengths):
            raise ValueError(f"lengths={list(lengths)} must be different numbers.")
        self.directory = Path(directory)
        self.lengths = [float(length) for length in lengths]
        for length in self.lengths:
            gamma(length)  # raises if it is out of range
        self.every_steps = every_steps
        self.averages: dict[float, WeightAverage] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DDPM)
        if pl_module.device_mesh is not None:
            raise UserError("callbacks.ema_snapshots does not work with trainer.strategy=fsdp: use ddp.")
        self.averages = {length: power_average(pl_module.network, length) for length in self.lengths}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for average in self.averages.values():
            average.to(pl_module.device)
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, DDPM)
        if trainer.global_step == self.step:  # a step of several batches is not finished
            return
        self.step = trainer.global_step
        for average in self.averages.values():
            average.update_parameters(pl_module.network)
        if trainer.is_global_zero and (self.step % self.every_steps == 0 or self.step == trainer.max_steps):
            pl_module.check_gradients()
            make_folder(self.directory)
            for length, average in self.averages.items():
                buffer = io.BytesIO()
                content = {"format": FORMAT, "global_step": self.step, "state_dict": average.module.state_dict()}
                torch.save(content, buffer)
                replace_file(self.directory / snapshot_name(self.step, length), buffer.getbuffer())

    def state_dict(self) -> dict[str, Any]:
        return {str(length): average.state_dict() for length, average in self.averages.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for length, average in self.averages.items():
            average.load_state_dict(state_dict[str(length)])
