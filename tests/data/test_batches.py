from itertools import chain, islice

import pytest
import torch

from ddpm.data.batches import TrainBatches, batches_in_order


def indices(num_images=103, batch_size=12, seed=0, epoch=0, done=0, rank=0, world_size=1, num_batches=8):
    """Returns the first batches of the stream, by default those of one epoch."""
    batches = TrainBatches(num_images, batch_size, seed, lambda: (epoch, done), rank, world_size)
    return [batch.tolist() for batch in islice(batches, num_batches)]


def test_an_epoch_has_each_image_at_most_once_in_full_batches():
    batches = indices()
    seen = list(chain(*batches))
    assert [len(batch) for batch in batches] == [12] * 8
    assert len(set(seen)) == 96
    assert set(seen) <= set(range(103))


def test_an_epoch_has_all_images_if_batches_divide_their_number():
    assert sorted(chain(*indices(num_images=96))) == list(range(96))


def test_the_order_depends_only_on_seed_and_epoch():
    torch.manual_seed(1)
    first = indices(seed=3, epoch=2)
    torch.manual_seed(2)
    assert indices(seed=3, epoch=2) == first
    assert indices(seed=3, epoch=3) != first
    assert indices(seed=4, epoch=2) != first


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_parts_of_the_ranks_form_the_global_batch(world_size):
    ranks = [indices(rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == indices()


def test_the_stream_goes_through_the_epochs():
    assert indices(num_batches=20) == [*indices(), *indices(epoch=1), *indices(epoch=2, num_batches=4)]


@pytest.mark.parametrize("done", [0, 3, 8])
def test_an_epoch_continues_at_the_given_position(done):
    assert indices(done=done, num_batches=12) == indices(num_batches=done + 12)[done:]


def test_the_position_is_read_when_the_iteration_starts():
    position = [0, 5]
    batches = iter(TrainBatches(103, 12, 0, lambda: (position[0], position[1])))
    position[1] = 7
    assert next(batches).tolist() == indices(done=5)[0]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_images", [97, 103])  # of 97, the first rank would have a batch more than the others
def test_evaluation_has_every_image_once_in_order(num_images, world_size):
    ranks = [batches_in_order(num_images, 12, rank, world_size) for rank in range(world_size)]
    assert len(set(map(len, ranks))) == 1
    for rank, batches in enumerate(ranks):
        assert torch.cat(batches).tolist() == list(range(num_images))[rank::world_size]
        assert {len(batch) for batch in batches[:-1]} == {12 // world_size}
