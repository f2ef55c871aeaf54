from itertools import chain

import pytest
import torch

from ddpm.data.batches import TrainBatches, batches_in_order


def indices(num_images=103, batch_size=12, seed=0, epoch=0, done=0, rank=0, world_size=1):
    batches = TrainBatches(num_images, batch_size, seed, lambda: (epoch, done), rank, world_size)
    return [batch.tolist() for batch in batches]


def test_every_image_is_seen_at_most_once_an_epoch_in_full_batches():
    batches = indices()
    seen = list(chain(*batches))
    assert [len(batch) for batch in batches] == [12] * 8
    assert len(set(seen)) == 96
    assert set(seen) <= set(range(103))


def test_every_image_is_seen_once_where_batches_divide_them():
    assert sorted(chain(*indices(num_images=96))) == list(range(96))


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = indices(seed=3, epoch=2)
    torch.manual_seed(2)
    assert indices(seed=3, epoch=2) == first
    assert indices(seed=3, epoch=3) != first
    assert indices(seed=4, epoch=2) != first


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_parts_in_a_row_are_the_global_batch(world_size):
    ranks = [indices(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == indices()


@pytest.mark.parametrize("done", [0, 3, 8])
def test_an_epoch_goes_on_where_it_was_stopped(done):
    assert indices(done=done) == indices()[done:]
    assert len(TrainBatches(103, 12, 0, lambda: (0, done))) == 8  # of the whole epoch


def test_the_position_is_asked_when_the_iteration_starts():
    position = [0, 5]
    batches = iter(TrainBatches(103, 12, 0, lambda: (position[0], position[1])))
    position[1] = 7
    assert [batch.tolist() for batch in batches] == indices(done=5)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_sees_every_image_once_in_order(world_size):
    ranks = [batches_in_order(103, 12, rank, world_size) for rank in range(world_size)]
    for rank, batches in enumerate(ranks):
        assert torch.cat(batches).tolist() == list(range(103))[rank::world_size]
        assert {len(batch) for batch in batches[:-1]} == {12 // world_size}
