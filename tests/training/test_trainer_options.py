"""Options of Lightning's Trainer and its callbacks: what they do, also across a stop, or why they are refused."""

import inspect
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks as lightning_callbacks
from omegaconf import OmegaConf
from small import BATCHES, Rows, Shades, fit, small_model, small_unet

from ddpm.errors import UserError
from ddpm.training.callbacks import LastCheckpoint, RunProgressBar
from ddpm.training.trainer import why_stopped
from ddpm.training.trainer_options import (
    INSTEAD,
    SUPPORTED,
    check_callbacks,
    check_decay,
    check_trainer,
    in_batches,
    limit_epochs,
    steps_to_make,
)

STEPS = 10


def config(decay_steps=None, **trainer):
    """The parts of a config that are checked."""
    defaults = {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "32-true", "max_steps": STEPS,
        "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1.0,
        "accumulate_grad_batches": 1, "deterministic": False,
    }  # fmt: skip
    optimizer = {"algorithm": {"fused": None}, "decay_steps": decay_steps}
    rest = {"data": {"batch_size": 8}, "compile": False, "channels_last": False}
    return OmegaConf.create({"trainer": defaults | trainer, "optimizer": optimizer, **rest})


class Seen(L.Callback):
    """Remembers the images of each training batch, and the steps at which a validation ends."""

    def __init__(self):
        self.batches, self.validations, self.validated = [], [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append({tuple(image.flatten().tolist()) for image in batch[0]})

    def on_validation_batch_end(self, *args):
        self.validated += 1

    def on_validation_end(self, trainer, pl_module):
        self.validations.append(trainer.global_step)


class Stopped(Exception):
    pass


class Stop(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Stopped


def train(cfg, *callbacks, resume=None):
    """Train as `ddpm train` does. Returns the final state, the curves, and the trainer."""
    check_trainer(cfg)
    data = Shades()
    data.setup()
    limit_epochs(cfg.trainer, data)
    options = OmegaConf.to_container(cfg.trainer) | in_batches(cfg.trainer, data)
    model, rows = small_model(small_unet(dropout=0.3), warmup_steps=4), Rows()
    trainer = fit(model, options.pop("max_steps"), *callbacks, data=data, resume=resume, logger=rows, **{
        "log_every_n_steps": 1, **options
    })  # fmt: skip
    state = list(model.state_dict().values())
    state += [
        torch.as_tensor(value)
        for moments in trainer.optimizers[0].state_dict()["state"].values()
        for value in moments.values()
    ]
    return state, rows, trainer


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("options", "stop", "every"),
    [
        ({"limit_train_batches": 0.7, "accumulate_grad_batches": 2, "max_steps": 6}, 2, 1),  # 3 batches an epoch
        ({"overfit_batches": 0.5, "gradient_clip_val": 0.01}, 4, 3),
        ({"max_steps": -1, "max_epochs": 2, "val_check_interval": 0.5, "accumulate_grad_batches": 2}, 4, 3),
        ({"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "num_sanity_val_steps": 2}, 5, 1),
        ({"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value", "limit_val_batches": 0.6}, 4, 3),
        ({"detect_anomaly": True, "inference_mode": False, "precision": "bf16-mixed", "max_steps": 3}, 2, 1),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_run_with_these_options_goes_on_exactly(tmp_path, options, stop, every):
    whole, curves, _ = train(config(**options))
    with pytest.raises(Stopped):
        train(config(**options), LastCheckpoint(tmp_path, every, 60), Stop(stop))
    last = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["global_step"]
    assert saved == stop // every * every
    resumed, rows, _ = train(config(**options), resume=last)
    assert equal(resumed, whole)
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        later = {step: value for step, value in curves.of(name).items() if step >= saved}
        assert rows.of(name) == later, name


@pytest.mark.parametrize(
    ("options", "batches", "repeats"),
    [
        ({}, BATCHES, False),
        ({"limit_train_batches": 2}, 2, False),
        ({"limit_train_batches": 0.7}, 3, False),
        ({"limit_train_batches": 99}, BATCHES, False),
        ({"overfit_batches": 1}, 1, True),
        ({"overfit_batches": 0.5}, 2, True),
    ],
)
def test_an_epoch_has_the_batches_that_were_asked_for(options, batches, repeats):
    seen = Seen()
    train(config(**options, max_steps=-1, max_epochs=3), seen)
    assert len(seen.batches) == 3 * batches
    first, second, third = (set().union(*seen.batches[i : i + batches]) for i in range(0, 3 * batches, batches))
    assert len(first) == 8 * batches
    if repeats:
        assert first == second == third
    elif batches < BATCHES:
        assert first != second != third
    if repeats:  # of the two batches for validation too
        assert seen.validated == len(seen.validations)


@pytest.mark.parametrize(
    ("options", "validations"),
    [
        ({}, [3, 6, 9]),
        ({"val_check_interval": 1.0}, [5, 10]),
        ({"val_check_interval": None}, [5, 10]),
        ({"val_check_interval": 0.5}, [2, 4, 6, 8, 10]),
        ({"val_check_interval": 1.0, "check_val_every_n_epoch": 2}, [10]),
        ({"val_check_interval": 0.5, "check_val_every_n_epoch": 1}, [2, 4, 6, 8, 10]),
        ({"val_check_interval": 1.0, "limit_train_batches": 3}, [3, 6, 9]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_it_validates_when_it_was_asked_to(options, validations):
    seen = Seen()
    train(config(**options), seen)
    assert seen.validations == validations


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit_train_batches": 0.1}, "limit_train_batches=0.1 is less than one of the 5 batches"),
        ({"overfit_batches": 0.1}, "overfit_batches=0.1 is less than one of the 5 batches"),
        ({"limit_val_batches": 0.1}, "limit_val_batches=0.1 is less than one of the 2 batches"),
        ({"overfit_batches": 1, "limit_train_batches": 1}, "not both"),
        ({"val_check_interval": "00:01:00:00"}, "is a time"),
        ({"val_check_interval": {"minutes": 5}}, "is a time"),
        ({"check_val_every_n_epoch": 2}, "does not go with trainer.val_check_interval=3"),
        ({"check_val_every_n_epoch": 2, "val_check_interval": 0.5}, "does not go with"),
        ({"profiler": "simple"}, "give a node"),
        ({"benchmark": True, "deterministic": True}, "deterministic must be false"),
        ({"devices": 3}, "divisible by the 3 processes"),
    ],
)
def test_what_cannot_be_done_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        train(config(**options))


def test_every_option_of_lightning_is_supported_or_refused_by_name():
    options = set(inspect.signature(L.Trainer).parameters)
    assert {*SUPPORTED, *INSTEAD} <= options
    for name in options - SUPPORTED:
        with pytest.raises(UserError, match=f"trainer.{name} is not supported"):
            check_trainer(config(**{name: 1}))


def test_a_learning_rate_that_has_ended_is_refused():
    check_decay(config(decay_steps=STEPS), STEPS)
    with pytest.raises(UserError, match=r"decay_steps=10 .* Set optimizer.decay_steps=11 .* or trainer.max_steps=10"):
        check_decay(config(decay_steps=STEPS), STEPS + 1)


# Callbacks ----------------------------------------------------------------------------------------------------------


class Hours(L.Callback):
    """A clock on which a batch takes an hour."""

    def __init__(self):
        self.now = 0

    def on_train_batch_start(self, *args):
        self.now += 3600


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_time_limit_ends_the_run_and_a_later_one_continues_it(tmp_path, monkeypatch, accumulate):
    """The limit is reached between the batches of a step."""
    clock = Hours()
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: clock.now))
    options = {"accumulate_grad_batches": accumulate, "max_steps": 6}
    whole, *_ = train(config(**options))
    limited = config(**options, max_time="00:05:00:00")
    steps = -(-5 // accumulate)
    resume = None
    for _ in range(2):  # the second time the time is used up at the start
        *_, trainer = train(limited, clock, LastCheckpoint(tmp_path, 1000, 60), resume=resume)
        resume = tmp_path / "checkpoints" / "last.ckpt"
        assert trainer.global_step == torch.load(resume, weights_only=True)["global_step"] == steps
        assert why_stopped(trainer) == ("finished", f"the time in trainer.max_time is used up at step {steps}")
    later, _, trainer = train(config(**options, max_time={"hours": 500}), clock, resume=resume)
    assert equal(later, whole)
    assert why_stopped(trainer) is None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_early_stopping_ends_the_run_after_a_whole_step(tmp_path, accumulate):
    stop = lightning_callbacks.EarlyStopping("val/loss", min_delta=10, patience=1)
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 3, "max_steps": 20}
    *_, trainer = train(config(**options), stop, LastCheckpoint(tmp_path, 1000, 60))
    assert trainer.global_step == 6 // accumulate
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6 // accumulate
    state, reason = why_stopped(trainer)
    assert state == "stopped"
    assert "val/loss did not improve" in reason


def test_a_callback_that_stops_without_a_reason():
    class Enough(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 3

    *_, trainer = train(config(), Enough())
    assert why_stopped(trainer) == ("stopped", "a callback ended the run at step 3")


class EveryEpoch(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pass


class EveryBest(lightning_callbacks.ModelCheckpoint):
    def on_train_epoch_end(self, trainer, pl_module):
        pass


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (lightning_callbacks.LearningRateFinder(), "set optimizer.lr"),
        (lightning_callbacks.BatchSizeFinder(), "set data.batch_size"),
        (lightning_callbacks.StochasticWeightAveraging(1e-3), "acts at epochs"),
        (lightning_callbacks.GradientAccumulationScheduler({0: 2}), "acts at epochs"),
        (lightning_callbacks.BackboneFinetuning(), "acts at epochs"),
        (lightning_callbacks.ModelPruning("l1_unstructured"), "acts at epochs"),
        (lightning_callbacks.EMAWeightAveraging(), "acts at epochs"),
        (lightning_callbacks.LambdaCallback(on_train_epoch_start=print), "acts at epochs"),
        (EveryEpoch(), "acts at epochs"),
        (EveryBest(), "acts at epochs"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_callbacks_that_would_do_nothing_or_change_the_run_are_refused(callback, words):
    with pytest.raises(UserError, match=rf"callbacks.mine \({type(callback).__name__}\) .*{words}"):
        check_callbacks({"mine": {}}, {"mine": callback})


def test_callbacks_that_are_asked_to_act_at_epochs_are_refused():
    monitor = lightning_callbacks.LearningRateMonitor("epoch")
    with pytest.raises(UserError, match="logging_interval=epoch"):
        check_callbacks({"mine": {"logging_interval": "epoch"}}, {"mine": monitor})


def test_other_callbacks_are_not_refused():
    others = [
        lightning_callbacks.EarlyStopping("val/loss"), lightning_callbacks.LearningRateMonitor("step"),
        lightning_callbacks.ModelCheckpoint(), lightning_callbacks.Timer(), lightning_callbacks.TQDMProgressBar(),
        lightning_callbacks.RichProgressBar(), lightning_callbacks.DeviceStatsMonitor(), RunProgressBar(),
        lightning_callbacks.LambdaCallback(on_train_batch_end=print), Hours(), LastCheckpoint("run", 1, 1),
    ]  # fmt: skip
    names = dict(enumerate(others))
    check_callbacks({name: {} for name in names}, names)


def test_steps_of_epochs_count_whole_steps():
    cfg = config(max_steps=-1, max_epochs=3, accumulate_grad_batches=2)
    data = Shades()
    data.setup()
    assert steps_to_make(cfg.trainer, data) == 3 * BATCHES // 2
