"""The buffers of a model that change in training: those in its state_dict (running statistics, counters).

A buffer that is not in the state_dict (`persistent=False`: masks, tables, places of pixels) is a constant, which the
constructor derives from the sizes. Constants are the same in every copy of a model and on every rank. So they are not
saved before a step, copied to the averaged weights or sent to other ranks. The mask of a wide layer is as large as its
weights.
"""

from __future__ import annotations

from torch import Tensor, nn


def varying(model: nn.Module) -> list[Tensor]:
    """The buffers that change in training, in the order of the modules."""
    return [
        buffer
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]
