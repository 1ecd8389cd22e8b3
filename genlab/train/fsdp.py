"""Split a model's weights, gradients and optimiser state over the ranks: FSDP2 (Zhao et al. 2023, arXiv:2304.11277).

PyTorch gathers sharded weights around `forward`; genlab's models are called through the methods of `core`'s protocols,
so those are registered too. One unit per model: between steps each rank holds 1/n of everything, during a step the
whole model's weights. (Finer units would need every network to be entered through `forward`, which cached sampling,
one step at a time, is not.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

METHODS = ("objective", "log_prob", "sample", "complete", "reconstruct", "features")


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard in place over a one-dimensional mesh. After a backward pass, or `whole`, each rank has its part again."""
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in METHODS:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gather the weights of a sharded model for as long as the block lasts.

    Gathering takes all ranks, but the last validation batches may be had by only some: so not once per call.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
