"""Images as a range code of an autoregressive model: about log2 1/p(x) bits for an image.

The encoder walks through the images as the sampler does: the model's cache gives the distribution of the next value of
every image, and the range coder codes the true value with it (Martin 1979; the coder is constriction's). The decoder
makes the very same steps and reads the values from the code. Encoding by one forward pass would be faster, but its
floats differ in the last places from those of the steps, and such a file would not decode.

A head that can tell P(x < edge) for a few edges is not asked for all K probabilities. There a value is coded as two
digits of base sqrt(K), the second given the first, which takes 30 edges instead of 256 levels.

n images, C channels, H x W pixels, K levels, E edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import constriction
import numpy as np
import torch
from torch import Tensor

from genlab.coding.tables import Plain, Portable

LEVELS = constriction.stream.model.Categorical(perfect=False)
LEAST = 1e-12  # probability of a digit before the coder's own rounding

Code = Callable[[np.ndarray, Tensor | None], Tensor]  # (probabilities (n, k), true values or None) -> values (n,)


@runtime_checkable
class Chained(Protocol):
    """A model that factorises p(x) into the conditional distributions of one value after another."""

    def walk(self, n: int, choose: Callable[[Any, list[Tensor]], Tensor], context: Tensor | None = None) -> Tensor:
        """n images (n, C, H, W), value by value. `choose` gets the distribution of a step, as the head returns it for
        features (n, D), and the values of this step so far, (n,) each; it returns the next value, integers (n,).
        """


def encode(model: Chained, x: Tensor, tables: Plain | Portable, context: Tensor | None = None) -> bytes:
    """Integers (n, C, H, W) -> the code. `tables` collects the exceptions that the decoder must know."""
    coder = constriction.stream.queue.RangeEncoder()
    values = iter(x.long().permute(0, 2, 3, 1).flatten(1).unbind(1))  # raster order, the channels of a pixel in turn
    levels = model.spec.levels  # type: ignore[attr-defined]

    def code(table: np.ndarray, true: Tensor | None) -> Tensor:
        assert true is not None
        coder.encode(true.cpu().numpy().astype(np.int32), LEVELS, table)
        return true

    model.walk(len(x), lambda pixels, before: coded(pixels, before, levels, tables, next(values), code), context)
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return words


def decode(model: Any, words: bytes, n: int, tables: Plain | Portable, context: Tensor | None = None) -> Tensor:
    """The code -> integers (n, C, H, W)."""
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))

    def code(table: np.ndarray, true: Tensor | None) -> Tensor:
        return torch.from_numpy(coder.decode(LEVELS, table)).long().to(model.device)

    def choose(pixels: Any, before: list[Tensor]) -> Tensor:
        return coded(pixels, before, model.spec.levels, tables, None, code)

    images: Tensor = model.walk(n, choose, context)
    return images


def coded(
    pixels: Any, before: list[Tensor], levels: int, tables: Plain | Portable, true: Tensor | None, code: Code
) -> Tensor:
    """Code the next value of a step, (n,). `pixels`: the head's distribution; `before`: the step's earlier values."""
    if isinstance(tables, Portable) or not hasattr(pixels, "next_below"):
        return code(tables.of(pixels.next_logits(before), true), true)
    below, base = pixels.next_below(before), math.isqrt(levels - 1) + 1
    n = pixels.parameters.shape[-1]
    zero = torch.zeros(1, n, dtype=pixels.parameters.dtype, device=pixels.parameters.device)
    edges = torch.arange(base, levels, base, device=zero.device)[:, None] + zero
    first = torch.zeros(1, n, dtype=torch.long, device=zero.device)
    if len(edges):  # with so few levels that one digit is enough, there are none
        high = code(_table([zero, below(edges), zero + 1]), None if true is None else true // base)
        first = (high * base)[None]
    edges = first + torch.arange(base + 1, device=zero.device)[:, None]
    p = torch.where(edges <= 0, 0.0, torch.where(edges >= levels, 1.0, below(edges.to(zero.dtype))))
    low = code(_table([p]), None if true is None else true - first[0])
    return first[0] + low


def _table(below: list[Tensor]) -> np.ndarray:
    """P(x < edge) at growing edges, (E, n) in parts -> probabilities between the edges (n, E - 1), not normalised."""
    return torch.cat(below).double().diff(dim=0).clamp_min(LEAST).T.contiguous().cpu().numpy()
