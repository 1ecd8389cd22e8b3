"""Validation and the final test are one function, so that a curve and a table can never disagree about a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from genlab.bits import Tally, context_of, evaluate
from genlab.core import Likelihood


@dataclass(frozen=True)
class Judgement:
    """A number to minimise, under its name: `bits_per_dim` of a likelihood, else the mean objective `loss` in nats."""

    name: str
    value: float
    text: str
    details: dict[str, Any]


def judge(
    model: Any, data: Any, split: str, *, weights: str, seed: int, on_batch: Callable[[int], None] | None = None
) -> Judgement:
    """The model on every image of a split, in float32; call it on every rank with the same arguments.

    Models that draw noise draw the same at every call.
    """
    torch.manual_seed(seed)
    expected = len(data.split(split).labels)
    if isinstance(model, Likelihood):
        result = evaluate(
            model, data.batches(split), data.spec, split=split, data=data.name, weights=weights, precision="32",
            expected=expected, on_batch=on_batch,
        )  # fmt: skip
        return Judgement("bits_per_dim", result.bits_per_dim, f"bits/dim {result}", result.as_dict())
    device = next(model.parameters()).device
    tally = Tally()
    for batch in data.batches(split):
        context = context_of(model, batch)
        context = None if context is None else context.to(device)
        tally.add(batch.index, model.objective(batch.images.to(device), context)["loss"])
        if on_batch:
            on_batch(len(batch.index))
    _, losses = tally.gathered(expected)
    loss = losses.mean().item()
    details = {"loss": loss, "n": len(losses), "split": split, "data": data.name, "weights": weights, "precision": "32"}
    return Judgement("loss", loss, f"loss {loss:.4f} nats ({len(losses):,} images)", details)
