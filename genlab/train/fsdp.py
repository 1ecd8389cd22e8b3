"""Split weights, gradients and optimiser state over the ranks: PyTorch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277).

PyTorch gathers sharded weights around `forward`. genlab's models are called through the methods of `core`'s protocols,
so these are registered as well. The whole model is one unit: between steps each rank holds 1/n of everything, and
during a step all weights of the model. (Finer units would need every network to be called through `forward`, and cached
sampling, one step at a time, is not.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

METHODS = ("objective", "log_prob", "sample", "complete", "reconstruct", "features")


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard in place over a one-dimensional mesh.

    After a backward pass, or at the end of `unsharded`, each rank holds its own part again.
    """
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in METHODS:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather the weights of a sharded model for the duration of the block. Other models do not change.

    All ranks must enter the block together, because each holds a part of the weights. So this is done once for a whole
    validation and not once for each batch: the last batches may be on some of the ranks only.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
