"""Numbers that are not finite end the work at once, and never reach a checkpoint."""

from functools import partial

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from small import Shades, fit, quiet_trainer, small_model
from torch import nn
from torch.optim import SGD

from ddpm.diffusion import DDIM, Ancestral
from ddpm.errors import UserError
from ddpm.training.callbacks import LastCheckpoint
from ddpm.training.weights import load_weights

BAD = 3  # the batch whose loss or gradient is not finite


class Spoilt:
    """A mean squared error that is not finite, or whose gradient is not, in one batch."""

    def __init__(self, how: str):
        self.how, self.batches = how, 0

    def __call__(self, network, diffusion, x0, t, eps):
        output = network(diffusion.q_sample(x0, t, eps), t)
        loss = (output - eps).square().mean(dim=(1, 2, 3))
        self.batches += 1
        if self.batches != BAD + 1:
            return loss
        if self.how == "gradient":  # of a finite loss
            return loss + (output - output.detach()).abs().sqrt().mean(dim=(1, 2, 3))
        if self.how == "constant":  # with a finite gradient
            return loss + torch.inf
        return loss * float(self.how)


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("nan", {}),
        ("inf", {"precision": "bf16-mixed"}),
        ("gradient", {"gradient_clip_val": 1.0}),
        ("constant", {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}),
        ("nan", {"accumulate_grad_batches": 2}),  # in the second batch of a step; the first is finite
    ],
)
def test_a_loss_or_a_gradient_ends_the_training_with_the_last_checkpoint_kept(tmp_path, how, options):
    model = small_model(objective=Spoilt(how))
    with pytest.raises(UserError, match="loss or its gradient is not finite"):
        fit(model, 12, LastCheckpoint(tmp_path, every_steps=1, every_minutes=60), **options)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == BAD // options.get("accumulate_grad_batches", 1)
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


def test_weights_that_a_finite_gradient_made_infinite_are_not_saved(tmp_path):
    model = small_model(Scale(), optimizer=partial(SGD, lr=3e38))
    model.network.scale.data.fill_(3e3)
    with pytest.raises(UserError, match=r"the weight network\.scale is not finite"):
        fit(model, 12, LastCheckpoint(tmp_path, every_steps=1, every_minutes=60))
    assert not (tmp_path / "checkpoints").exists()


class Scale(nn.Module):
    def __init__(self, bad_from: int = 100, bad: float = torch.nan):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.bad_from, self.bad = bad_from, bad
        self.register_buffer("mask", torch.tensor(-torch.inf))  # as attention masks have

    def forward(self, x, t):
        bad = (t >= self.bad_from).view(-1, 1, 1, 1)
        return self.scale * torch.where(bad & ~torch.tensor(self.training), self.bad, x)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_metric_and_no_sample_leaves_it_out(bad):
    """A network that fails at the upper half of the timesteps alone."""
    model = small_model(Scale(bad_from=30), num_steps=20)
    trainer = quiet_trainer(limit_val_batches=1.0)
    assert trainer.validate(model, Shades(), verbose=False)[0]["val/loss"] > 0
    model.sample(2, DDIM(5), seed=0)
    model.ema.module.bad_from, model.ema.module.bad = 10, bad
    with pytest.raises(UserError, match="val/loss is"):
        trainer.validate(model, Shades(), verbose=False)
    for sampler in (DDIM(5), Ancestral()):
        with pytest.raises(UserError, match="no samples"):
            model.sample(2, sampler, seed=0)


def test_a_checkpoint_with_such_weights_is_not_loaded(tmp_path):
    path = tmp_path / "last.ckpt"
    fit(small_model(Scale()), 1).save_checkpoint(path)
    load_weights(small_model(Scale()), path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["ema.module.scale"].fill_(torch.nan)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"cannot be used: the weight ema\.module\.scale"):
        load_weights(small_model(Scale()), path)
    with pytest.raises(UserError, match=r"ema\.module\.scale is not finite"):
        fit(small_model(Scale()), 2, resume=path)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # before the first step that is made
def test_a_gradient_that_overflows_float16_is_left_out_and_a_loss_that_is_not_finite_is_not():
    """Loss scaling begins too high on purpose, and finds a scale by leaving steps out."""

    def train(model):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
        return fit(model, 30, plugins=[plugin]).precision_plugin.scaler.get_scale()

    model = small_model()
    before = [weight.clone() for weight in model.network.parameters()]
    assert 1 < train(model) < 2.0**40
    assert not all(map(torch.equal, model.network.parameters(), before))
    with pytest.raises(UserError, match="loss or its gradient is not finite"):
        train(small_model(objective=Spoilt("nan")))
