"""Class-conditional models: the labels that the network sees in training, validation, pictures and sampling."""

import math

import pytest
import torch
from small import IMAGE_SHAPE, NUM_CLASSES, NUM_STEPS, Shades, fit, small_model, small_unet, trained_a_little
from torch import nn

from ddpm.diffusion import DDIM, Autoguidance, ClassifierFree, GaussianDiffusion, schedules
from ddpm.errors import UserError
from ddpm.seeding import Stream, generator
from ddpm.training import DDPM
from ddpm.training.callbacks import SamplePictures
from ddpm.training.overview import expected_memory, flops_per_image


class Sees(nn.Module):
    """Keeps the labels that it gets; its output depends on them."""

    num_classes = NUM_CLASSES

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(NUM_CLASSES + 1))
        self.seen = []

    def forward(self, x, t, labels):
        if not labels.is_meta:
            self.seen.append((self.training, labels.clone()))
        return self.weight[labels].view(-1, 1, 1, 1) * x

    def __deepcopy__(self, memo):
        copy = Sees()
        copy.seen = self.seen
        return copy


@pytest.fixture(scope="module")
def model():
    return trained_a_little(small_model(small_unet(num_classes=NUM_CLASSES)), std=0.3).eval()


def test_a_network_that_needs_labels_gets_the_label_no_label():
    network = Sees()
    model = small_model(network)
    network.seen.clear()
    assert flops_per_image(model) == 0
    assert expected_memory(model, images=1) > 0
    assert model.sample(2, DDIM(2), seed=0).shape == (2, *IMAGE_SHAPE)
    assert {int(label) for _, labels in network.seen for label in labels} == {NUM_CLASSES}


def test_labels_are_left_out_by_seed_and_batch_and_validation_sees_all():
    network = Sees()
    model = small_model(network, seed=5, label_dropout=0.4)
    network.seen.clear()
    data = Shades()
    fit(model, 6, data=data, limit_val_batches=1.0, val_check_interval=6)
    trained = torch.stack([labels for training, labels in network.seen if training])
    assert trained.shape == (6, 8)
    left_out = torch.stack([torch.rand(8, generator=generator(Stream.LABELS, 5, batch)) < 0.4 for batch in range(6)])
    assert torch.equal(trained == NUM_CLASSES, left_out)
    assert 0 < left_out.sum() < left_out.numel()
    _, own = next(iter(Shades().ready().train_dataloader()))
    assert torch.equal(trained[0][~left_out[0]], own[~left_out[0]])
    validated = [labels for training, labels in network.seen if not training]
    assert {tuple(labels.tolist()) for labels in validated} == {
        tuple(part.tolist()) for part in data.split("validation").labels.split(8)
    }


def test_without_dropout_no_label_is_left_out():
    network = Sees()
    model = small_model(network, label_dropout=0.0)
    fit(model, 3)
    assert all(labels.max() < NUM_CLASSES for training, labels in network.seen if training)
    with pytest.raises(UserError, match="trained with label_dropout=0, so it needs them"):
        model.sample(2, DDIM(2))
    with pytest.raises(UserError, match=r"label_dropout=0\. Use autoguidance"):
        model.sample(2, DDIM(2), labels=1, guidance=2.0)


def test_an_image_depends_on_its_seed_index_and_label_alone(model):
    images = model.sample(6, DDIM(5), seed=3, labels=[2, 0, 1])
    for batch_size in (1, 4):
        again = model.sample(6, DDIM(5), seed=3, labels=[2, 0, 1, 2, 0, 1], batch_size=batch_size)
        torch.testing.assert_close(again, images, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.sample(2, DDIM(5), seed=3, labels=iter([2, 0])), images[:2], rtol=0, atol=1e-3)
    others = model.sample(6, DDIM(5), seed=3, labels=torch.tensor([1, 2, 0]))
    assert ((others - images).abs().amax(dim=(1, 2, 3)) > 1e-2).all()
    assert model.sample(3, steps=2, labels=range(3), guidance=2.0).shape == (3, *IMAGE_SHAPE)


def test_guidance_reaches_the_samples(model):
    plain, guided, other = (model.sample(3, DDIM(5), seed=0, labels=range(3), guidance=g) for g in (1.0, 3.0, None))
    assert torch.equal(plain, other)
    assert (guided - plain).abs().max() > 1e-2
    nowhere = ClassifierFree(3.0, [1, 3])  # the 5 timesteps of DDIM lie 4 or 5 apart: 0, 5, …
    assert torch.equal(model.sample(3, DDIM(5), seed=0, labels=range(3), guidance=nowhere), plain)
    by_itself = model.sample(3, DDIM(5), seed=0, labels=range(3), guidance=Autoguidance(model, 3.0))
    torch.testing.assert_close(by_itself, plain)
    weak = trained_a_little(small_model(small_unet(num_classes=NUM_CLASSES)), std=0.1)
    automatic = model.sample(3, DDIM(5), seed=0, guidance=Autoguidance(weak, 3.0))
    assert (automatic - model.sample(3, DDIM(5), seed=0)).abs().max() > 1e-2


def test_labels_and_scales_are_numbers_of_any_kind(model):
    images = model.sample(NUM_CLASSES, DDIM(2), seed=0, labels=range(NUM_CLASSES), guidance=2.0)
    same = model.sample(NUM_CLASSES, DDIM(2), seed=0, labels="all", guidance=torch.tensor(2))
    assert torch.equal(images, same)
    one = model.sample(2, DDIM(2), seed=0, labels=torch.tensor(1))
    assert torch.equal(one, model.sample(2, DDIM(2), seed=0, labels=1))


@pytest.mark.parametrize(
    ("labels", "guidance", "words"),
    [
        ([0, 3], None, "labels holds 3, but the model has the classes 0 to 2"),
        (-1, None, "labels holds -1"),
        ([], None, "labels is empty"),
        ([0, 1, 2, 0, 1], None, "holds 5 labels for 4 images"),
        (None, 2.0, "guidance needs labels"),
        ([0], math.nan, "finite"),
        ([0], ClassifierFree(2.0, [3, NUM_STEPS]), "beyond the last timestep, 19"),
        (None, Autoguidance(small_model(), 2.0), "differ in their number of classes: 3 and None"),
        ([0], Autoguidance(small_model(small_unet(num_classes=3), num_steps=30), 2.0), "differ in their betas"),
        (
            None,
            Autoguidance(small_model(small_unet(num_classes=3), label_dropout=0), 2.0),
            "weaker model .* needs labels",
        ),
        (1.5, None, "labels must be classes"),
    ],
    ids=range(11),  # the names of objects differ between processes
)
def test_what_does_not_fit_a_conditional_model_is_refused(model, labels, guidance, words):
    with pytest.raises(UserError, match=words):
        model.sample(4, DDIM(2), labels=labels, guidance=guidance)


def test_an_unconditional_model_refuses_labels_and_takes_autoguidance():
    model, weak = trained_a_little(small_model()), trained_a_little(small_model(), std=0.1)
    with pytest.raises(UserError, match=r"unconditional\. Train one with model.num_classes"):
        model.sample(2, DDIM(2), labels=[0])
    with pytest.raises(UserError, match=r"unconditional.* or use autoguidance"):
        model.sample(2, DDIM(2), guidance=2.0)
    guided = model.sample(2, DDIM(2), seed=0, guidance=Autoguidance(weak, 2.0))
    assert (guided - model.sample(2, DDIM(2), seed=0)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("network", "label_dropout", "words"),
    [
        (small_unet(), 0.1, "label_dropout needs a class-conditional network: set model.num_classes"),
        (small_unet(num_classes=3), 1.0, "label_dropout=1.0 must be at least 0 and below 1"),
        (small_unet(num_classes=3), -0.1, "label_dropout=-0.1"),
    ],
)
def test_a_label_dropout_that_cannot_be_is_refused(network, label_dropout, words):
    with pytest.raises(ValueError, match=words):
        small_model(network, label_dropout=label_dropout)


def test_a_network_with_an_impossible_number_of_classes_is_refused():
    network = small_unet()
    network.num_classes = 2.5
    with pytest.raises(ValueError, match="num_classes must be a whole number"):
        DDPM(network, GaussianDiffusion(schedules.cosine(20)), IMAGE_SHAPE)


def test_the_picture_has_one_row_for_each_class(model, tmp_path):
    pictures = SamplePictures(tmp_path, DDIM(4), num_samples=8, num_trajectories=2, num_timesteps=2)
    samples, trajectories = pictures.draw(model)
    assert pictures.per_class(model) == 2
    labels = [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(samples.clamp(-1, 1), model.sample(6, DDIM(4), seed=0, labels=labels))
    assert torch.equal(trajectories.view(2, 2, 2, *IMAGE_SHAPE)[:, 1, -1], samples[[0, 2]])
    few = SamplePictures(tmp_path, DDIM(2), num_samples=2)  # fewer than classes
    assert len(few.draw(model)[0]) == 2
