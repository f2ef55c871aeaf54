"""Equal bits: twice, whatever happens beside the training, and across an interruption."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from small import BATCHES, NUM_CLASSES, Rows, Shades, fit, small_model, small_unet

from ddpm.diffusion import DDIM, Ancestral
from ddpm.diffusion.objective import low_discrepancy
from ddpm.training.callbacks import LastCheckpoint, SamplePictures

STEPS = 12  # two epochs, and two batches of a third


def model_with_dropout(seed=0):
    """Dropout of activations and of labels."""
    network = small_unet(dropout=0.3, num_classes=NUM_CLASSES)
    return small_model(network, warmup_steps=4, decay_steps=20, label_dropout=0.3, seed=seed)


def tensors(model, trainer):
    """All that training has made: weights, moving average, and the optimizer's state."""
    optimizer = trainer.optimizers[0].state_dict()
    return (
        list(model.state_dict().values())
        + [torch.as_tensor(value) for state in optimizer["state"].values() for value in state.values()]
        + [torch.tensor(group["lr"]) for group in optimizer["param_groups"]]
    )


def train(steps=STEPS, *callbacks, model=None, **kwargs):
    model = model or model_with_dropout()
    return tensors(model, fit(model, steps, *callbacks, **kwargs))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def whole():
    return train()


def test_two_runs_are_equal_and_another_seed_is_another_run(whole):
    assert equal(train(), whole)
    assert not equal(train(model=model_with_dropout(seed=1)), whole)
    assert not equal(train(data=Shades(seed=1)), whole)


class Disturb(L.Callback):
    """Somebody else draws random numbers."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(batch_idx)
        torch.rand(batch_idx + 1)


def test_random_numbers_of_others_make_no_difference(whole):
    assert equal(train(STEPS, Disturb()), whole)


def test_dropout_draws_anew_in_each_batch():
    class Masks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.dropout = torch.nn.Dropout(0.5)
            self.seen = []

        def forward(self, x, t):
            self.seen.append(self.dropout(torch.ones_like(x)))
            return self.scale * x

    model = small_model(Masks())
    fit(model, 2 * BATCHES, accumulate_grad_batches=2)
    masks = torch.stack(model.network.seen).flatten(1)
    assert len(masks) == 4 * BATCHES
    assert len(masks.unique(dim=0)) == len(masks)


@pytest.mark.parametrize("sampler", [DDIM(4), Ancestral()])
def test_validation_and_pictures_change_nothing(whole, tmp_path, sampler):
    pictures = SamplePictures(tmp_path, sampler, num_samples=2)
    assert equal(train(STEPS, pictures, limit_val_batches=1.0, val_check_interval=3), whole)
    assert len(list(tmp_path.glob("samples-*.png"))) == 4


class Stopped(Exception):
    pass


class Stop(L.Callback):
    """The process dies before the batch after `step` optimizer steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Stopped


VALIDATION = {"limit_val_batches": 1.0, "val_check_interval": 3}


def last_checkpoint(directory, every_steps=1000, every_minutes=60):
    """Writes checkpoints/last.ckpt in `directory`."""
    return LastCheckpoint(directory, every_steps, every_minutes)


@pytest.mark.parametrize("validation", [{}, VALIDATION], ids=["", "validation"])
@pytest.mark.parametrize(("stop", "every"), [(2, 1), (4, 3), (5, 1), (6, 1), (11, 5)])
def test_a_run_that_died_goes_on_exactly(whole, tmp_path, stop, every, validation):
    """In the middle of an epoch, on its last batch, on the first of the next; the last steps may be lost."""
    with pytest.raises(Stopped):
        train(STEPS, last_checkpoint(tmp_path, every), Stop(stop), **validation)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == stop // every * every
    assert equal(train(resume=last, **validation), whole)


@pytest.mark.parametrize("stops", [(3, 7), (5, 10)])
def test_a_run_whose_end_is_moved_is_the_same_run(whole, tmp_path, stops):
    last = None
    for max_steps in stops:
        train(max_steps, last_checkpoint(tmp_path), resume=last)
        last = tmp_path / "checkpoints" / "last.ckpt"
    assert equal(train(resume=last), whole)


def test_another_way_to_draw_timesteps_resumes_exactly_as_well(tmp_path):
    def model():
        return small_model(draw_timesteps=low_discrepancy)

    train(4, last_checkpoint(tmp_path), model=model())
    resumed = train(model=model(), resume=tmp_path / "checkpoints" / "last.ckpt")
    assert equal(resumed, train(model=model()))


class Seconds(L.Callback):
    """A clock on which a batch takes 25 seconds: a minute is over in the middle of a step of two batches."""

    def __init__(self):
        self.now = 0

    def on_train_batch_start(self, *args):
        self.now += 25


@pytest.mark.parametrize("batch_size", [4, 8])
def test_no_checkpoint_is_written_between_the_batches_of_one_step(tmp_path, monkeypatch, batch_size):
    """It would lose the gradients that are being accumulated. At a batch size of 8 an epoch holds half a step."""
    accumulate = {"accumulate_grad_batches": 2, "data": Shades(batch_size)}
    clock = Seconds()
    monkeypatch.setattr("ddpm.training.callbacks.last_checkpoint.time", SimpleNamespace(monotonic=lambda: clock.now))
    undisturbed = train(6, **accumulate)
    for stop in (2, 5):
        clock.now = 0
        directory = tmp_path / str(stop)
        with pytest.raises(Stopped):
            train(6, clock, last_checkpoint(directory, 1000, 1), Stop(stop), **accumulate)
        assert equal(train(6, resume=directory / "checkpoints" / "last.ckpt", **accumulate), undisturbed)


@pytest.mark.parametrize(("stop", "every"), [(4, 3), (7, 1)])
def test_the_curves_of_a_run_that_died_go_on(tmp_path, stop, every):
    whole, resumed = Rows(), Rows()
    train(logger=whole, log_every_n_steps=1, **VALIDATION)
    with pytest.raises(Stopped):
        train(STEPS, last_checkpoint(tmp_path, every), Stop(stop), **VALIDATION)
    last = tmp_path / "checkpoints" / "last.ckpt"
    train(resume=last, logger=resumed, log_every_n_steps=1, **VALIDATION)
    saved = stop // every * every
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        assert resumed.of(name) == {step: value for step, value in whole.of(name).items() if step >= saved}, name


class OneOfTwo(SingleDeviceStrategy):
    """Lets a process believe that it is one of two."""

    def __init__(self, rank):
        super().__init__(torch.device("cpu"))
        self.global_rank, self.world_size = rank, 2


def test_two_processes_share_the_images_and_the_noise_of_one():
    seen = []
    for strategy in ("auto", OneOfTwo(0), OneOfTwo(1)):
        model = small_model()
        model.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs))
        fit(model, 1, strategy=strategy)
    whole, *parts = seen
    for one, *shared in zip(whole, *parts, strict=True):
        assert torch.equal(one, torch.cat(shared))
