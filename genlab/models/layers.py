"""What an encoder's layers say on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def hidden_layers(encoder: Any, code: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Hidden layers of `encoder.layers` as the next one reads them, "encoder0" …, (B, D) or (B, D, h, w) each, while
    `code()` computes the "code" (B, L), which comes last.
    """
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=f"encoder{i}": found.__setitem__(name, out.relu()))
        for i, layer in enumerate(encoder.layers[:-1])
    ]
    try:
        found["code"] = code()
    finally:
        for hook in hooks:
            hook.remove()
    return found
