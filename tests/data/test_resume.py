"""A Trainer that is stopped and resumed anywhere gets the same images as an uninterrupted one."""

from itertools import chain

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ddpm.data import ImageData, Split, to_model_range
from ddpm.errors import UserError

# Each continuation saves into a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

BATCHES = 5  # an epoch
STEPS = 17  # three epochs, and two batches of a fourth


class Numbers(ImageData):
    """Image i has the value i in all pixels."""

    def load(self):
        images = torch.arange(100, dtype=torch.uint8)[:, None, None, None]
        parts = images.split([41, 50, 9])
        names = ("train", "validation", "test")
        return {name: Split(part, part.flatten().long()) for name, part in zip(names, parts, strict=True)}


class Recorder(L.LightningModule):
    """Records (number of earlier batches, images) for each training batch.

    Not `current_epoch` and `batch_idx`: Lightning itself numbers the batches otherwise after some resumes.
    """

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        assert torch.equal(images.flatten(), to_model_range(labels))
        before = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        self.seen.append((before, labels.tolist()))
        return self.weight * images.mean()

    def validation_step(self, batch, batch_idx):
        self.validated += batch[1].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


NEVER = {"limit_val_batches": 0}
OFTEN = {"limit_val_batches": 2, "val_check_interval": 2}


class SaveAtEnd(L.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "end.ckpt")


def fit(folder=None, max_steps=STEPS, resume=None, num_workers=0, **trainer):
    """Trains with a checkpoint `step=….ckpt` after each batch in a new `folder`, and one `end.ckpt` at the end.

    Without a folder, it writes no checkpoint.
    """
    model = Recorder()
    callbacks = folder and [
        ModelCheckpoint(folder, save_top_k=-1, filename="{step}", every_n_train_steps=1),
        SaveAtEnd(folder),
    ]
    L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        enable_checkpointing=folder is not None,
        callbacks=callbacks,
        **trainer,
    ).fit(model, Numbers(8, 1, 1, seed=3, num_workers=num_workers), ckpt_path=resume)
    return model


def test_each_epoch_has_another_order(tmp_path):
    seen = fit().seen
    assert [before for before, _ in seen] == list(range(STEPS))
    epochs = [list(chain(*(images for before, images in seen if before // BATCHES == e))) for e in range(3)]
    assert all(len(set(images)) == 40 for images in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_validation_and_workers_do_not_change_the_training_images(tmp_path):
    plain = fit(**NEVER).seen
    validated = fit(num_workers=2, **OFTEN)
    assert validated.seen == plain
    assert validated.validated == 8 * list(range(41, 57))


@pytest.mark.parametrize("validation", [NEVER, OFTEN])
def test_every_checkpoint_resumes_exactly(tmp_path, validation):
    whole = fit(tmp_path / "whole", **validation).seen
    for step in range(1, STEPS):
        resume = tmp_path / "whole" / f"step={step}.ckpt"
        assert fit(tmp_path / f"from-{step}", resume=resume, **validation).seen == whole[step:]


@pytest.mark.parametrize(
    ("num_workers", "validation", "checkpoint"),
    [
        (0, NEVER, "step={}.ckpt"),
        (0, NEVER, "end.ckpt"),
        (0, OFTEN, "step={}.ckpt"),
        (0, OFTEN, "end.ckpt"),
        (2, OFTEN, "end.ckpt"),
    ],
)
def test_a_run_that_is_stopped_many_times_gets_the_same_images(tmp_path, num_workers, validation, checkpoint):
    whole = fit(**validation).seen
    seen, resume = [], None
    # In the middle of an epoch, before its last batch, on it, after it, on the last again, an epoch later, at the end.
    for stop in (3, 4, 5, 6, 10, 15, STEPS):
        folder = tmp_path / str(stop)
        seen += fit(folder, stop, resume, num_workers, **validation).seen
        resume = folder / checkpoint.format(stop)
    assert seen == whole


def test_overfitting_has_the_same_batches_in_every_epoch(tmp_path):
    seen = [images for _, images in fit(max_steps=6, overfit_batches=2).seen]
    assert seen == seen[:2] * 3
    assert seen[0] != seen[1]


def test_a_batch_size_must_be_divisible_by_the_number_of_processes():
    data = Numbers(9, 1, 1)
    data.setup()
    data.trainer = L.Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"data.batch_size=9 .* divisible by the number of processes, 2"):
        data.train_dataloader()
