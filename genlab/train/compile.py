"""`compile=true`: choose the networks of a model and compile them with torch.compile."""

from __future__ import annotations

from typing import Any

from torch import nn

PARTS = ("net", "encoder", "decoder", "generator", "discriminator")


def networks(model: Any) -> list[nn.Module]:
    """The networks of a model: those that its method `networks` lists, else its attributes in `PARTS`."""
    if hasattr(model, "networks"):
        return list(model.networks())
    parts = (getattr(model, name, None) for name in PARTS)
    return [part for part in parts if isinstance(part, nn.Module)]


def compile_networks(model: Any) -> None:
    """Compile the networks in place. (torch.compile(net) would rename the weights.)"""
    for net in networks(model):
        net.compile()
