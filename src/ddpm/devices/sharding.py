"""Fully sharded data parallel training (FSDP2): each process keeps its share of the weights and of the optimizer."""

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from .precision import TrainerAutocast


class FullyShardedStrategy(TrainerAutocast, ModelParallelStrategy):
    """For `Trainer`, on any device, over all processes. The module shards itself in `configure_model`:

        if self.device_mesh is not None:
            shard(self.network, self.device_mesh["data_parallel"])

    Checkpoints are those of the whole model, in one file: one process, or DDP, goes on from them, and the reverse.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network in place: the members of its `ModuleList`s, its blocks, one by one, and what remains at once.

    The whole weights of a block exist while it computes, in each process; all processes must call it together.
    """
    if isinstance(network, FSDPModule):
        return
    for blocks in network.modules():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                if not isinstance(block, nn.ModuleList):
                    fully_shard(block, mesh=mesh)
    # By itself the outermost part would stay whole after a forward pass without a backward pass.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def register() -> None:
    """Make "fsdp2" a strategy of Lightning's Trainer."""
    StrategyRegistry.register("fsdp2", FullyShardedStrategy, description="FSDP2 over all processes")
