"""The hidden layers of an encoder as features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def hidden_layers(encoder: Any, code: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Hidden layers of `encoder.layers` after their activation, "encoder0" …, each (B, D) or (B, D, h, w).

    They are recorded while `code()` computes the "code" (B, L), which comes last.
    """
    features: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=f"encoder{i}": features.__setitem__(name, out.relu()))
        for i, layer in enumerate(encoder.layers[:-1])
    ]
    try:
        features["code"] = code()
    finally:
        for hook in hooks:
            hook.remove()
    return features
