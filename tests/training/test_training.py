"""What an optimizer step does: the moving average, clipping, the learning rate, the draws."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from small import BATCHES, Rows, Shades, fit, small_model, small_unet, trained_a_little
from torch import nn
from torch.optim import SGD

from ddpm.data import Split
from ddpm.diffusion import schedules
from ddpm.diffusion.objective import low_discrepancy, uniform


class EachStep(L.Callback):
    """Remembers, before each optimizer step, the gradient's norm and the learning rate, and the weights after it."""

    def __init__(self):
        self.norms, self.rates, self.weights, self.clipped = [], [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.norms.append(norm_of_gradient(pl_module.network))
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > len(self.weights):
            self.clipped.append(norm_of_gradient(pl_module.network))
            self.weights.append([weight.detach().clone() for weight in pl_module.network.parameters()])


def norm_of_gradient(network):
    gradients = [weight.grad.double().flatten() for weight in network.parameters()]
    return torch.cat(gradients).norm().item()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_one_computed_by_hand(accumulate):
    """Once for each optimizer step, also where several batches make one."""
    seen = EachStep()
    model = small_model(ema_decay=0.3, optimizer=partial(SGD, lr=0.5))
    fit(model, 4, seen, accumulate_grad_batches=accumulate)
    assert len(seen.weights) == model.ema.n_averaged == 4
    expected = seen.weights[0]
    for decay, weights in zip((2 / 11, 3 / 12, 0.3), seen.weights[1:], strict=True):  # the third would be 4 / 13
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    for average, by_hand in zip(model.ema.parameters(), expected, strict=True):
        torch.testing.assert_close(average, by_hand)
    assert not torch.equal(average, seen.weights[-1][-1])


def test_the_average_of_a_long_run_remembers_1000_steps():
    seen = EachStep()
    model = small_model(ema_decay=0.999)
    model.ema.n_averaged.fill_(100_000)
    with torch.no_grad():
        model.ema.module.output[2].bias.fill_(1.0)
    fit(model, 1, seen)
    (weights,) = seen.weights
    torch.testing.assert_close(model.ema.module.output[2].bias, 0.999 + 0.001 * weights[-1])


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, t):
        self.seen += self.training
        return self.layer(x)


def test_buffers_of_the_network_are_copied_not_averaged():
    model = small_model(WithBuffer())
    fit(model, 4)
    assert model.ema.module.seen == model.network.seen == 4


def test_only_the_two_networks_are_in_the_state():
    model = small_model()
    fit(model, 2, limit_val_batches=1, val_check_interval=1)
    names = list(model.network.state_dict())
    expected = {f"network.{name}" for name in names} | {f"ema.module.{name}" for name in names} | {"ema.n_averaged"}
    assert set(model.state_dict()) == expected


def test_the_optimizer_has_the_networks_weights_alone():
    model = small_model()
    trainer = fit(model, 1)
    groups = trainer.optimizers[0].param_groups
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in model.network.parameters()]
    assert not any(weight.requires_grad for weight in model.ema.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_clipped_and_their_norm_before_is_logged(accumulate):
    seen, log = EachStep(), Rows()
    model = trained_a_little(small_model(small_unet()), std=0.2)
    fit(model, 4, seen, logger=log, log_every_n_steps=1, gradient_clip_val=0.01, accumulate_grad_batches=accumulate)
    assert min(seen.norms) > 0.02
    assert list(log.of("train/grad_norm").values()) == pytest.approx(seen.norms, rel=1e-4)
    assert sum("train/loss" in metrics for _, metrics in log.rows) == 4  # once a step, not once a batch
    assert seen.clipped == pytest.approx([0.01] * 4, rel=1e-4)


def test_without_clipping_the_norm_is_logged_too():
    seen, log = EachStep(), Rows()
    fit(trained_a_little(small_model()), 2, seen, logger=log, log_every_n_steps=1)
    assert list(log.of("train/grad_norm").values()) == pytest.approx(seen.norms, rel=1e-4)
    assert seen.clipped == seen.norms


RISE = [1 / 3, 2 / 3, 1.0]
FALL = [1.0, (1 + math.cos(math.pi / 6)) / 2, (1 + math.cos(math.pi / 3)) / 2, 0.5]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("decay_steps", "max_steps", "expected"),
    [
        (None, 7, RISE + [1.0] * 4),
        (9, 7, RISE + FALL),
        (9, 5, RISE + FALL[:2]),  # a function of the step alone, not of how long this run is to be
        (5, 8, [*RISE, 1.0, 0.5, 0.0, 0.0, 0.0]),
    ],
)
def test_the_learning_rate(decay_steps, max_steps, expected, accumulate):
    seen = EachStep()
    model = small_model(optimizer=partial(SGD, lr=1e-3), warmup_steps=3, decay_steps=decay_steps)
    fit(model, max_steps, seen, accumulate_grad_batches=accumulate)
    assert seen.rates == pytest.approx([1e-3 * factor for factor in expected])


class White(Shades):
    def load(self):
        return {name: Split(torch.full_like(split.images, 255), split.labels) for name, split in super().load().items()}


class Recorder(nn.Module):
    """Remembers what it is asked, and whether it was training then."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.asked = []

    def forward(self, x, t):
        self.asked.append((x, t, self.training))
        return self.scale * x

    def seen(self):
        """(x_t [N, C, H, W], t [N]) of all that it was asked."""
        return torch.cat([x for x, _, _ in self.asked]), torch.cat([t for _, t, _ in self.asked])


@pytest.mark.parametrize("draw", [uniform, low_discrepancy])
def test_every_timestep_is_drawn_and_its_noise_is_that_of_the_chain(draw):
    model = small_model(Recorder(), num_steps=5, draw_timesteps=draw)
    fit(model, 60, data=White(batch_size=10))
    x_t, t = model.network.seen()
    assert t.dtype == torch.int64
    counts = torch.bincount(t)
    assert len(counts) == 5
    assert counts.min() > 80  # of 600: five standard deviations below 120 is 71
    alpha_bars = schedules.cosine(5).neg().add(1).cumprod(0)
    for step, alpha_bar in enumerate(alpha_bars.tolist()):
        pixels = x_t[t == step].flatten()  # more than 5,000; x_0 is 1 everywhere
        assert pixels.mean().item() == pytest.approx(math.sqrt(alpha_bar), abs=0.06)
        assert pixels.std().item() == pytest.approx(math.sqrt(1 - alpha_bar), rel=0.05)


@pytest.mark.parametrize("trainer", [{}, {"accumulate_grad_batches": 2}, {"overfit_batches": 1}])
def test_no_batch_sees_the_noise_of_another(trainer):
    model = small_model(Recorder(), num_steps=5)
    fit(model, 2 * BATCHES, data=White(), **trainer)
    x_t, t = model.network.seen()
    for step in range(5):
        images = x_t[t == step].flatten(1)
        assert len(images) > 2
        assert len(images.unique(dim=0)) == len(images)


def test_dropout_is_on_in_training_and_off_in_the_average():
    model = small_model(Recorder())
    fit(model, 4, limit_val_batches=1, val_check_interval=2)
    assert [training for _, _, training in model.network.asked] == [True] * 4
    assert model.ema.module.asked
    assert not any(training for _, _, training in model.ema.module.asked)
    model.eval().train()
    assert model.network.training
    assert not any(module.training for module in model.ema.modules())


class Timestep:
    """A loss that is known: t."""

    def __call__(self, network, diffusion, x0, t, eps):
        return t + 0 * network(diffusion.q_sample(x0, t, eps), t).mean(dim=(1, 2, 3))


def test_the_losses_by_quarter_are_those_of_the_step_they_are_logged_at():
    log, model = Rows(), small_model(Recorder(), num_steps=8, objective=Timestep())
    fit(model, 12, data=Shades(batch_size=20), logger=log, log_every_n_steps=3)
    logged_at = (2, 5, 8, 11)
    timesteps = {step: model.network.asked[step][1].double() for step in logged_at}
    assert log.of("train/loss") == pytest.approx({step: t.mean().item() for step, t in timesteps.items()})
    for q in range(4):
        expected = {step: t[t // 2 == q].mean().item() for step, t in timesteps.items()}
        assert log.of(f"train/loss_q{q + 1}") == pytest.approx(expected)


def test_bfloat16_trains_float32_weights_to_about_the_same(device):
    logs = {}
    for precision in ("32-true", "bf16-mixed"):
        log, model = Rows(), trained_a_little(small_model(optimizer=partial(SGD, lr=0.1)))
        fit(model, 5, accelerator=device, precision=precision, logger=log, log_every_n_steps=1)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        logs[precision] = torch.tensor(list(log.of("train/loss").values()))
    torch.testing.assert_close(logs["bf16-mixed"], logs["32-true"], rtol=0.02, atol=0)
    assert not torch.equal(logs["bf16-mixed"], logs["32-true"])
