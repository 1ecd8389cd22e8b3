"""`genlab features`: what a model makes of every image of a split, as an .npz file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from genlab.core import Features, RequestError, nearest
from genlab.data.batches import context_of
from genlab.data.module import SPLITS
from genlab.measure import probe
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.outputs import writable
from genlab.request.progress import with_progress
from genlab.train.checkpoint import atomically


def command(request: Request) -> None:
    """Check everything, then compute, then write."""
    config, _ = split_hydra(request.config())
    if config.split not in SPLITS:
        raise RequestError(f"split={config.split} does not exist: {nearest(str(config.split), SPLITS)}")
    out = writable("out", config.out, ".npz")
    model, run, _ = open_model(config, Features, "show its features")
    data = open_data(config, run)
    names = layers(model, data)
    layer = check_layer(config.layer, names, ("all",)) or natural(names)
    labels = data.split(config.split).labels

    def compute(advance):  # type: ignore[no-untyped-def]
        only = None if layer == "all" else layer
        return probe.features(model, data.batches(config.split), context_of, layer=only, on_batch=advance)  # type: ignore[arg-type]

    found = with_progress("features", len(labels), compute)
    arrays = found if layer == "all" else {"features": found[layer]}
    with atomically(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, labels=labels.cpu().numpy(), index=np.arange(len(labels)))
    shapes = ", ".join(f"{name} {of.shape}" for name, of in found.items())
    print(f"{out}: {shapes} of {data.name} {config.split} (means over positions where a layer has them)")


@torch.no_grad()
def layers(model: nn.Module, data: Any) -> list[str]:
    """Names of the model's layers, in order."""
    batch = data.first("valid", 1)
    device, context = next(model.parameters()).device, context_of(model, batch)
    return list(model.features(batch.images.to(device), None if context is None else context.to(device)))  # type: ignore[operator]


def natural(names: list[str]) -> str:
    """The layer to take when none is named: the code, or the middle block."""
    return "code" if "code" in names else names[len(names) // 2]


def check_layer(layer: str | None, names: list[str], others: tuple[str, ...]) -> str | None:
    """The layer asked for. RequestError unless it is one of the model's, or of `others`."""
    if layer is not None and layer not in (*names, *others):
        raise RequestError(f"layer={layer} is not in this model: {nearest(str(layer), [*names, *others])}")
    return layer
