"""The layers of a model: their names, the check of `layer=` in a request, and their features for a split.

N images, D features, B a batch. Features that a layer has at several positions are averaged over the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genlab.core import RequestError, RunError, nearest
from genlab.data.batches import Batch, context_of


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
    """Raise RequestError unless `layer` is None, one of the model's layers `names`, or one of the words `others`."""
    if layer is not None and layer not in (*names, *others):
        raise RequestError(f"layer={layer} is not in this model: {nearest(str(layer), [*names, *others])}")


@torch.no_grad()
def layer_features(
    model: Any,
    batches: Iterable[Batch],
    layer: str | None = None,
    on_batch: Callable[[int], object] = lambda done: None,
) -> dict[str, NDArray[np.float32]]:
    """Features of every image by layer, (N, D) each: of one `layer`, or of all if it is None.

    `on_batch(n)` is called after every n images. Raises RunError for features that are not finite.
    """
    device = next(model.parameters()).device
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for batch in batches:
        context = context_of(model, batch)
        by_layer = model.features(batch.images.to(device), None if context is None else context.to(device))
        for name in by_layer if layer is None else (layer,):
            h = pooled(by_layer[name]).float().cpu()
            if not h.isfinite().all():
                raise RunError(
                    f"layer {name} has features that are not finite numbers: nothing can be learnt from them"
                )
            parts.setdefault(name, []).append(h.numpy())
        on_batch(len(batch.index))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def pooled(h: Tensor) -> Tensor:
    """Features (B, D) unchanged; (B, T, D) and (B, D, H, W) averaged over positions: (B, D)."""
    if h.ndim == 2:
        return h
    if h.ndim in (3, 4):
        return h.mean(1) if h.ndim == 3 else h.mean((2, 3))
    raise ValueError(f"expected features (B, D), (B, T, D) or (B, D, H, W), got {tuple(h.shape)}")
