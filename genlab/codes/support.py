"""The support of a code: which vectors can be codes, and how to turn any vector into one of them.

To sample images, codes are drawn from a density that was fitted to codes. Its draws can be any vector, but codes often
cannot: they have at most k units that are not zero, or none below zero, or all between 0 and 1. So a draw is mapped to
the support before it is decoded. That does not make it a typical code: a unit that is exactly zero for nine images in
ten is, after a ReLU of Gaussian draws, still active in about half of them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from genlab.codes.penalised import KL, Dense, Penalised
from genlab.codes.selective import Lifetime, TopK

RANGES = {nn.ReLU: (0.0, None), nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}


def support(code: nn.Module) -> tuple[Callable[[Tensor], Tensor], str]:
    """(a function from any vectors (B, L) to vectors in the support of the code, a description of it for the user).

    The description is "" if every vector is in the support.
    """
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
