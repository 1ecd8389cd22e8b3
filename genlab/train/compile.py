"""`compile=true`: which parts of a model torch.compile gets."""

from __future__ import annotations

from typing import Any

from torch import nn

PARTS = ("net", "encoder", "decoder", "generator", "discriminator")


def networks(model: Any) -> list[nn.Module]:
    """The parts in which a model spends its time: what its method `networks` lists, else its attributes in `PARTS`."""
    if hasattr(model, "networks"):
        return list(model.networks())
    parts = (getattr(model, name, None) for name in PARTS)
    return [part for part in parts if isinstance(part, nn.Module)]


def compile_networks(model: Any) -> None:
    """Compile them in place: torch.compile(net) would rename the weights."""
    for net in networks(model):
        net.compile()
