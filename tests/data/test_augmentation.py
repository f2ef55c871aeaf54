from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import Shades, fit, small_model

from ddpm.data import Flip, Shift, to_model_range

IMAGES = torch.randint(256, (64, 3, 6, 8), generator=torch.Generator().manual_seed(0)).byte()


def draws():
    return torch.Generator().manual_seed(0)


def test_a_flip_mirrors_about_its_share_of_the_images():
    flip = Flip(0.25)
    drawn = flip.draw(1000, draws())
    assert abs(drawn.double().mean() - 0.25) < 0.05
    drawn = flip.draw(64, draws())
    for image, before, is_flipped in zip(flip.apply(IMAGES, drawn), IMAGES, drawn, strict=True):
        assert torch.equal(image, before.flip(-1) if is_flipped else before)


def test_a_shift_moves_rows_and_columns_and_repeats_the_border():
    shift = Shift(2)
    drawn = shift.draw(64, draws())
    assert drawn.unique().tolist() == [-2, -1, 0, 1, 2]
    padded = np.pad(IMAGES.numpy(), [(0, 0), (0, 0), (2, 2), (2, 2)], mode="edge")
    for image, before, (down, right) in zip(shift.apply(IMAGES, drawn), padded, drawn.tolist(), strict=True):
        assert np.array_equal(image, before[:, 2 - down : 8 - down, 2 - right : 10 - right])


def test_a_shift_out_of_sight_is_refused():
    with pytest.raises(ValueError, match="pixels=8 would move images of 8 x 8 out of sight"):
        Shift(8).apply(torch.zeros(1, 1, 8, 8).byte(), torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("invalid", [lambda: Flip(0), lambda: Flip(1.5), lambda: Shift(0)])
def test_values_out_of_range_are_refused(invalid):
    with pytest.raises(ValueError, match=r"augmentation\.(probability|pixels)="):
        invalid()


def augmented(images, rank=0, world_size=1, batch=5, training=True, seed=0):
    data = Shades(batch_size=64, seed=seed)
    data.augmentation = Shift()
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=batch)))
    data.trainer = SimpleNamespace(
        training=training, global_rank=rank, world_size=world_size, fit_loop=SimpleNamespace(epoch_loop=progress)
    )
    return data.on_after_batch_transfer((images, torch.zeros(len(images))), 0)[0]


def test_the_draws_depend_on_seed_and_batch_and_are_shared_among_the_ranks():
    whole = augmented(IMAGES)
    for world_size in (2, 4):
        parts = [augmented(part, rank, world_size) for rank, part in enumerate(IMAGES.chunk(world_size))]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augmented(IMAGES, batch=6), whole)
    assert not torch.equal(augmented(IMAGES, seed=1), whole)
    assert torch.equal(augmented(IMAGES, training=False), to_model_range(IMAGES))


class Recorder(torch.nn.Module):
    """Keeps what a callable gets."""

    def __init__(self, data):
        super().__init__()
        self.data, self.transfer, self.seen = data, data.on_after_batch_transfer, {True: [], False: []}

    def forward(self, batch, dataloader_idx):
        moved = self.transfer(batch, dataloader_idx)
        self.seen[self.data.trainer.training].append((batch[0], moved[0]))
        return moved


def train(steps, *callbacks, **kwargs):
    data = Shades()
    data.augmentation = Flip()
    recorder = Recorder(data)
    data.on_after_batch_transfer = recorder.forward
    trainer = fit(small_model(), steps, *callbacks, data=data, limit_val_batches=1, val_check_interval=2, **kwargs)
    return recorder.seen, trainer


def test_a_resumed_run_sees_the_same_images_and_validation_the_plain_ones(tmp_path):
    whole, _ = train(7)
    _, trainer = train(3)
    trainer.save_checkpoint(tmp_path / "at 3.ckpt")
    rest, _ = train(7, resume=tmp_path / "at 3.ckpt")
    assert len(rest[True]) == 4
    for (_, image), (_, expected) in zip(rest[True], whole[True][3:], strict=True):
        assert torch.equal(image, expected)
    assert any(not torch.equal(image, to_model_range(before)) for before, image in whole[True])
    assert whole[False]
    assert all(torch.equal(image, to_model_range(before)) for before, image in whole[False])
