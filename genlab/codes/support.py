"""Which vectors are codes: what a vector that was drawn must go through before the decoder may read it.

A density fitted to codes gives any vector, and codes are often not any vector: at most k units that are not zero, none
below zero, all between 0 and 1. Nothing turns a Gaussian into a sparse code, though: a unit that is exactly zero for
nine images in ten is, after a ReLU, still on for about half of the draws.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from genlab.codes.penalised import KL, Dense, Penalised
from genlab.codes.selective import Lifetime, TopK

RANGES = {nn.ReLU: (0.0, None), nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}


def support(code: nn.Module) -> tuple[Callable[[Tensor], Tensor], str]:
    """(any vectors (B, L) -> vectors that could be codes, what that does in words; "" where any vector could)."""
    if isinstance(code, TopK):
        return lambda h: code(h).h, f"all but the {code.k} largest units set to 0"
    low, high = None, None
    if isinstance(code, (Penalised, Lifetime)):
        low = 0.0
    elif isinstance(code, KL):
        low, high = 0.0, 1.0
    elif isinstance(code, Dense):
        low, high = RANGES.get(type(code.activation), (None, None))
    if low is None:
        return lambda h: h, ""
    return lambda h: h.clamp(low, high), "units below 0 set to 0" if high is None else f"units cut to {low:g}..{high:g}"
