"""Validation gives the same numbers for the same weights, and the right ones."""

import pytest
import torch
from small import IMAGE_SHAPE, NUM_STEPS, Shades, fit, quiet_trainer, small_model, small_unet, trained_a_little
from torch import nn

from ddpm.data import Split, to_model_range
from ddpm.diffusion import GaussianDiffusion, schedules, vlb_terms
from ddpm.errors import UserError
from ddpm.training import DDPM


def validate(model, data=None):
    trainer = quiet_trainer(limit_val_batches=1.0)
    (numbers,) = trainer.validate(model, data or Shades(), verbose=False)
    return numbers


def test_equal_weights_give_equal_numbers_in_any_batches():
    model = trained_a_little(small_model())
    numbers = validate(model)
    assert set(numbers) == {"val/loss", "val/bpd", *(f"val/loss_q{q}" for q in range(1, 5))}
    torch.manual_seed(7)
    assert validate(model) == numbers
    for batch_size in (1, 5, 12):
        assert validate(model, Shades(batch_size)) == pytest.approx(numbers, rel=1e-5)


def test_the_moving_average_is_what_is_measured():
    model = trained_a_little(small_model())
    numbers = validate(model)
    with torch.no_grad():
        model.network.output[2].bias += 1
    assert validate(model) == numbers
    with torch.no_grad():
        model.ema.module.output[2].bias += 1
    assert validate(model) != numbers


def test_training_goes_on_after_a_validation_by_another_trainer():
    model = small_model()
    validate(model)
    fit(model, 5, limit_val_batches=1.0, val_check_interval=5)


class Many(Shades):
    """400 images, for training and for validation."""

    def load(self):
        splits = super().load()
        images = torch.randint(256, (400, *self.image_shape), generator=torch.Generator().manual_seed(3)).byte()
        many = Split(images, torch.zeros(400, dtype=torch.int64))
        return splits | {"train": many, "validation": many}


def test_the_bound_is_that_of_all_timesteps():
    model, data = trained_a_little(small_model()), Many(batch_size=100)
    estimate = validate(model, data)["val/bpd"]
    x0 = to_model_range(data.split("validation").images)
    torch.manual_seed(0)
    with torch.no_grad():
        terms = vlb_terms(model.ema, model.diffusion, x0)
    exact = terms.total(NUM_STEPS).mean().item()
    # One timestep an image: its error is at most that of independent draws.
    error = (NUM_STEPS - 1) * terms.kl.flatten().std().item() / 400**0.5
    assert error < 0.05 * exact
    assert abs(estimate - exact) < 2 * error


class Asked(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.asked = []

    def forward(self, x, t):
        self.asked.append((x, t))
        return self.scale * x


def timestep_as_loss(network, diffusion, x0, t, eps):
    return t + 0 * network(diffusion.q_sample(x0, t, eps), t).mean(dim=(1, 2, 3))


def test_a_chain_of_one_step_has_no_divergences():
    model, data = small_model(num_steps=1), Many(batch_size=100)
    measured = validate(model, data)["val/bpd"]
    with torch.no_grad():
        terms = vlb_terms(model.ema, model.diffusion, to_model_range(data.split("validation").images))
    assert terms.kl.numel() == 0
    assert measured == pytest.approx(terms.total(1).mean().item(), rel=1e-2)


def test_timesteps_are_spread_evenly_over_the_images():
    model = small_model(Asked(), objective=timestep_as_loss)
    model.ema.module.asked.clear()
    numbers = validate(model, Many(batch_size=30))
    t = torch.cat([t for _, t in model.ema.module.asked[::3]])  # the loss, then two terms of the bound
    counts = torch.bincount(t, minlength=NUM_STEPS)
    assert counts.sum() == 400
    assert (counts - 400 / NUM_STEPS).abs().max() <= 2  # independent draws would stray by 4 and more
    for quarter in range(4):
        middle = (quarter + 0.5) * NUM_STEPS / 4 - 0.5
        assert numbers[f"val/loss_q{quarter + 1}"] == pytest.approx(middle, abs=0.1)
    assert numbers["val/loss"] == pytest.approx((NUM_STEPS - 1) / 2, abs=0.1)


def test_every_image_has_noise_of_its_own():
    model = small_model(Asked())
    model.ema.module.asked.clear()
    validate(model, Shades(batch_size=5))
    x_t = torch.cat([x for x, _ in model.ema.module.asked]).flatten(1)
    assert len(x_t) == 3 * 12
    assert len(x_t.unique(dim=0)) == len(x_t)


class Labelled(nn.Module):
    """Remembers the labels that it is given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.labels = []

    def forward(self, x, t, labels=None):
        self.labels.append(labels)
        return self.scale * x


class Conditional(DDPM):
    def condition(self, batch):
        return {"labels": batch[1]}


class Numbered(Shades):
    """The label of an image is its index."""

    def load(self):
        return {name: Split(images, torch.arange(len(images))) for name, (images, _) in super().load().items()}


def test_data_with_more_classes_than_the_network_is_refused():
    model = small_model(small_unet(num_classes=3))
    with pytest.raises(UserError, match="the data has 40 classes, but the model has 3"):
        fit(model, 1, data=Numbered(batch_size=12))


def test_the_network_gets_the_condition_in_training_in_the_loss_and_in_the_bound():
    diffusion = GaussianDiffusion(schedules.cosine(NUM_STEPS))
    model = Conditional(Labelled(), diffusion, IMAGE_SHAPE)
    fit(model, 1, data=Numbered(batch_size=40))
    (labels,) = model.network.labels
    assert labels.sort().values.tolist() == list(range(40))
    model.ema.module.labels.clear()
    validate(model, Numbered(batch_size=12))
    assert [labels.tolist() for labels in model.ema.module.labels] == [list(range(12))] * 3
