"""The ways to train faster train the same model, to rounding."""

from functools import partial

import pytest
import torch
from small import fit, small_model
from torch.optim import AdamW

from ddpm.training.trainer import speed_up


def weights(model):
    fit(model, 4)
    return model.state_dict()


@pytest.fixture(scope="module")
def plain():
    return weights(small_model(optimizer=AdamW))


def test_another_memory_format(plain):
    model = small_model(optimizer=AdamW)
    speed_up(model, channels_last=True, compiled=False)
    for network in (model.network, model.ema.module):
        assert network.down[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weights(model), plain, rtol=1e-3, atol=1e-5)


def test_a_fused_optimizer(plain):
    torch.testing.assert_close(weights(small_model(optimizer=partial(AdamW, fused=True))), plain, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_all_at_once_with_a_compiled_network(ddpm_cli, ddpm_here, tmp_path):
    train = [
        "train", "data=mnist_mini", "data.batch_size=16", "model=unet_tiny", "model.channels=8",
        "model.multipliers=[1,2]", "model.attention=[]", "schedule.num_steps=50", "trainer=cpu",
        "trainer.precision=32-true", "trainer.max_steps=4", "trainer.limit_val_batches=2",
        "trainer.val_check_interval=2",
    ]  # fmt: skip
    fast = [
        "compile=true", "channels_last=true", "data.on_device=true", "optimizer.algorithm.fused=true",
        "trainer.deterministic=true",
    ]  # fmt: skip
    found = []
    for options in ([], fast):
        folder = tmp_path / str(len(options))
        folder.mkdir()
        done = (ddpm_cli if options else ddpm_here)(*train, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("outputs/train/default/*/checkpoints/last.ckpt")
        found.append(torch.load(path, weights_only=True)["state_dict"])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
