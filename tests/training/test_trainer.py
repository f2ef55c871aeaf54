"""The ways to train faster train the same model, to rounding."""

from functools import partial

import pytest
import torch
from small import fit, small_model
from torch.optim import AdamW

from ddpm.training.trainer import speed_up


def check_same_training(model, device):
    """Check that the model's training ends in the weights of the plain one."""
    plain = small_model(optimizer=AdamW)
    for trained in (model, plain):
        fit(trained, 4, accelerator=device)
    atol = 1e-5 if device == "cpu" else 1e-3  # AdamW enlarges what another kernel rounds in a tiny gradient
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-3, atol=atol)


def test_another_memory_format(device):
    model = small_model(optimizer=AdamW)
    speed_up(model, channels_last=True, compiled=False)
    for network in (model.network, model.ema.module):
        assert network.down[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    check_same_training(model, device)


def test_a_fused_optimizer(device):
    check_same_training(small_model(optimizer=partial(AdamW, fused=True)), device)


@pytest.mark.slow
def test_all_at_once_with_a_compiled_network(ddpm_cli, ddpm_here, tmp_path, device):
    train = [
        "train", "data=mnist_mini", "data.batch_size=16", "model=unet_tiny", "model.channels=8",
        "model.multipliers=[1]", "model.attention=[]", "schedule.num_steps=50", "trainer=cpu",
        "trainer.precision=32-true", "trainer.max_steps=4", "trainer.limit_val_batches=1",
        "trainer.val_check_interval=4", "callbacks.pictures=null", f"trainer.accelerator={device}",
    ]  # fmt: skip
    fast = [
        "compile=true", f"channels_last={device != 'cpu'}", "data.on_device=true", "trainer.deterministic=true",
    ]  # fmt: skip
    found = []
    for options in ([], fast):
        folder = tmp_path / str(len(options))
        folder.mkdir()
        done = (ddpm_cli if options else ddpm_here)(*train, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("outputs/train/default/*/checkpoints/last.ckpt")
        found.append(torch.load(path, weights_only=True)["state_dict"])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 if device == "cpu" else 1e-3)
