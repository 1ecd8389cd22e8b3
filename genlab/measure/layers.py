"""The layers of a model: their names, the default one, and the check of `layer=` in a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genlab.core import RequestError, nearest
from genlab.data.batches import context_of


@torch.no_grad()
def layer_names(model: Any, data: Any) -> list[str]:
    """The names of the layers that `model.features` (`core.Features`) returns, in the model's order.

    They are found by running the model on the first validation image of `data`.
    """
    batch = data.first("valid", 1)
    device, context = next(model.parameters()).device, context_of(model, batch)
    return list(model.features(batch.images.to(device), None if context is None else context.to(device)))


def default_layer(names: Sequence[str]) -> str:
    """The layer to take if the request names none: the code if there is one, or else the middle layer."""
    return "code" if "code" in names else names[len(names) // 2]


def check_layer(layer: str | None, names: Sequence[str], others: Sequence[str]) -> None:
    """RequestError unless `layer` is None, one of the model's layers `names`, or one of the words `others`."""
    if layer is not None and layer not in (*names, *others):
        raise RequestError(f"layer={layer} is not in this model: {nearest(str(layer), [*names, *others])}")
