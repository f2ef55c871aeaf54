"""FSDP in two processes gives the weights and the checkpoints of DDP; each process stores half of the weights."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Shades, fit, small_model

from ddpm.devices import lightning_arguments
from ddpm.diffusion import DDIM
from ddpm.training.callbacks import SamplePictures
from ddpm.training.muon import Muon

HELPERS = Path(__file__).parents[1] / "helpers"


def train(folder: Path, strategy: str, max_steps: int = 4, devices: int = 2, resume: Path | None = None) -> None:
    hardware = lightning_arguments("cpu", devices, precision="32-true", strategy=strategy)
    trainer = fit(
        small_model(seed=3, optimizer=partial(Muon, lr=2e-3)),
        max_steps,
        SamplePictures(folder, DDIM(5), num_samples=4),
        data=Shades(),
        resume=resume,
        limit_val_batches=1.0,
        val_check_interval=2,
        gradient_clip_val=1.0,
        **hardware,
    )
    if strategy == "fsdp":
        weights: list[Any] = list(trainer.lightning_module.parameters())
        mine = sum(weight.to_local().numel() for weight in weights)
        assert abs(mine / sum(weight.numel() for weight in weights) - 1 / devices) < 0.02
    trainer.save_checkpoint(folder / f"{strategy}.ckpt")


def in_two_processes(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *arguments],
        env=os.environ | {"PYTHONPATH": str(HELPERS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sharded_training_equals_ddp_and_continues_in_one_process(tmp_path):
    for strategy in ("ddp", "fsdp"):
        in_two_processes(tmp_path, strategy)
    ddp, fsdp = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("ddp", "fsdp"))
    torch.testing.assert_close(fsdp["state_dict"], ddp["state_dict"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fsdp["optimizer_states"], ddp["optimizer_states"], rtol=1e-5, atol=1e-6)

    (tmp_path / "fsdp.ckpt").rename(tmp_path / "half.ckpt")
    in_two_processes(tmp_path, "fsdp", "6", "2", str(tmp_path / "half.ckpt"))
    train(tmp_path, "auto", 6, 1, tmp_path / "half.ckpt")
    fsdp, one = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("fsdp", "auto"))
    torch.testing.assert_close(fsdp["state_dict"], one["state_dict"], rtol=1e-5, atol=1e-7)


if __name__ == "__main__":
    folder, strategy, *more = sys.argv[1:]
    steps, devices, resume = more or ("4", "2", None)
    train(Path(folder), strategy, int(steps), int(devices), Path(resume) if resume else None)
