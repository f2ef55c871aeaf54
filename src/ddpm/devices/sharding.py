"""Fully sharded data parallel training (FSDP2): each process stores a part of the weights and optimizer states."""

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from .precision import TrainerAutocast


class FullyShardedStrategy(TrainerAutocast, ModelParallelStrategy):
    """For `Trainer`, on any device, over all processes. The module shards itself in `configure_model`:

        if self.device_mesh is not None:
            shard(self.network, self.device_mesh["data_parallel"])

    A checkpoint is one file with the whole model. One process or DDP can resume from it, and FSDP2 from theirs.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network in place: each block (member of a `ModuleList`) by itself, then the remaining weights together.

    While a block computes, each process holds all weights of the block. All processes must call the network together.
    """
    if isinstance(network, FSDPModule):
        return
    for blocks in network.modules():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                if not isinstance(block, nn.ModuleList):
                    fully_shard(block, mesh=mesh)
    # By default the outermost part stays unsharded after a forward pass without a backward pass.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def register() -> None:
    """Register "fsdp2" as a strategy of Lightning's Trainer."""
    StrategyRegistry.register("fsdp2", FullyShardedStrategy, description="FSDP2 over all processes")
