"""One gated residual block at one pixel, as eight operations on preallocated buffers.

    x + a * sigmoid(b),  (a, b) = second(concat_elu(hidden)),  hidden = first(concat_elu(source), …)

concat_elu is two operations on one buffer: times (1, -1), and elu in place. Biases ride along in the products; so does
what pixels of the row above have added, where a product adds to what is there. The same eight serve 2x2 convolutions
(a product with the left pixel and its own), 1x1 ones, and those of all blocks at once, stacked.

B images (or L x B, stacked over blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.nets.layers.shifted import ShiftedConv2d


class Gated(NamedTuple):
    """Operands of one gated block x + a * sigmoid(b) in the order of use, for inputs (B, n): views and weights."""

    source: Tensor  # (B, 1, n)
    signed: Tensor  # where its concat_elu goes, (B, 2, n)
    inner: Tensor  # the same as (B, 2 n)
    base: Tensor  # bias, or what is there already: where pixels of the row above have entered (B, n')
    read: Tensor  # concat_elu of all that the first product reads (B, k)
    first: Tensor  # (k, n')
    hidden: Tensor  # (B, n')
    hidden_rows: Tensor  # (B, 1, n')
    hidden_signed: Tensor  # the next four: as above
    hidden_inner: Tensor
    hidden_base: Tensor  # (B, 2 n')
    hidden_read: Tensor  # (B, k')
    second: Tensor  # (k', 2 n')
    gated: Tensor  # (B, 2 n')
    gate: Tensor  # its halves (B, n')
    x: Tensor  # what the block adds to (B, n')
    value: Tensor
    out: Tensor  # (B, n')


def gated_step(
    source: Tensor,
    into: Tensor,
    first: tuple[Tensor, Tensor, Tensor],
    hidden: Tensor,
    hidden_into: Tensor,
    second: tuple[Tensor, Tensor, Tensor],
    gated: Tensor,
    x: Tensor,
    out: Tensor,
) -> Gated:
    """Operands, with the views that differ in shape alone.

    concat_elu of `source` and `hidden` goes `into` (…, 2 n); `first` and `second` are (base, read, weight) of the two
    products, whose results are `hidden` and `gated`.
    """
    value, gate = gated.chunk(2, -1)
    signed, hidden_signed = into.unflatten(-1, (2, -1)), hidden_into.unflatten(-1, (2, -1))
    before = source.unsqueeze(-2), signed, into, *first, hidden
    return Gated(*before, hidden.unsqueeze(-2), hidden_signed, hidden_into, *second, gated, gate, x, value, out)


def compute(
    operands: Gated,
    signs: Tensor,
    product: Callable[..., Tensor] = torch.addmm,
    mul: Callable[..., Tensor] = torch.mul,
    elu_: Callable[..., Tensor] = F.elu_,
    addcmul: Callable[..., Tensor] = torch.addcmul,
) -> None:
    """One gated block. Functions are arguments so that they are looked up once."""
    (
        source, signed, inner, base, read, first, hidden,
        hidden_rows, hidden_signed, hidden_inner, hidden_base, hidden_read, second, gated,
        gate, x, value, out,
    ) = operands  # fmt: skip
    mul(source, signs, out=signed)
    elu_(inner)
    product(base, read, first, out=hidden)
    mul(hidden_rows, signs, out=hidden_signed)
    elu_(hidden_inner)
    product(hidden_base, hidden_read, second, out=gated)
    gate.sigmoid_()
    addcmul(x, value, gate, out=out)


def matrix(conv: ShiftedConv2d) -> Tensor:
    """Weights of a 1x1 convolution for products (B, k) @ (k, n)."""
    return conv.normed_weight[:, :, 0, 0].T.contiguous()


def stacked(convs: Sequence[ShiftedConv2d]) -> tuple[Tensor, Tensor]:
    """Weights (L, k, n) and biases (L, 1, n) of 1x1 convolutions."""
    return torch.stack([matrix(conv) for conv in convs]), torch.stack([conv.bias for conv in convs])[:, None]


def pair(conv: ShiftedConv2d) -> Tensor:
    """Weights of a 2x2 convolution on the left pixel and its own: (2 k, n)."""
    return conv.normed_weight[:, :, 1].permute(2, 1, 0).flatten(0, 1).contiguous()


def above(convs: Sequence[ShiftedConv2d]) -> Tensor:
    """Weights of 2x2 convolutions on the pixel above the left one and the pixel above: (2, N, k, n)."""
    return torch.stack([conv.normed_weight[:, :, 0].permute(2, 1, 0) for conv in convs], 1).contiguous()
