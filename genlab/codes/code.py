"""What a code is: numbers of an encoder -> the code that the decoder gets, and what it costs.

A code owns the activation of the hidden layer and the price of using it. Everything here is about one batch:
B images, L units (`units`), `inputs` numbers of the encoder for each unit.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Coded(NamedTuple):
    """Code h (B, L) and what is added to the training loss (B,), nats.

    `active`: the share of an image's units that are on (B,), where that cannot be counted in h.
    """

    h: Tensor
    penalty: Tensor
    active: Tensor | None = None


class Code(Protocol):
    """A hidden layer with a price.

    `inputs`: numbers that the encoder gives for a unit. `unit_columns`: whether the decoder's weights of every unit
    must have length 1, without which a penalty on h is dodged by a small h and large weights. (A head has weights of
    its own: with one, only weight decay holds them.) `on`: a unit counts as on where |h| > on. `asked`: the sparsity
    that was asked for, under the name of the measure that should reach it, if any.
    """

    inputs: int
    unit_columns: bool
    on: float
    asked: dict[str, float]

    def __call__(self, a: Tensor) -> Coded:
        """What the encoder says (B, inputs * L) -> the code. May differ in training and evaluation mode."""
        ...
