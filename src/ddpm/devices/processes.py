"""Shares work on many batches between the processes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def map_over_processes(work: Callable[[Batch], Result], batches: Sequence[Batch]) -> list[Result]:
    """Return `work(batch)` for all batches, in order, in every process; each process computes its share.

    All processes must call this function with the same batches. With one process it is a plain `map`.
    """
    if not dist.is_initialized():
        return [work(batch) for batch in batches]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    shares: list[Any] = [None] * world_size
    dist.all_gather_object(shares, [work(batch) for batch in batches[rank::world_size]])
    return [shares[i % world_size][i // world_size] for i in range(len(batches))]
