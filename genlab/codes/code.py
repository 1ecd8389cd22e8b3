"""The interface of a code: the encoder's outputs -> the code that the decoder gets, and a penalty.

A code is the activation of the hidden layer of an autoencoder together with a penalty on the activations.

B images in a batch, L units (`units`); the encoder has `inputs` outputs for each unit.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Coded(NamedTuple):
    """The result of a code.

    `h`: the code (B, L). `penalty`: the term that is added to the training loss, in the units of the reconstruction
    (nats with a head), (B,). `active`: the share of an image's units that are active (B,), where it cannot be counted
    in h, else None.
    """

    h: Tensor
    penalty: Tensor
    active: Tensor | None = None


class Code(Protocol):
    """A hidden layer with a penalty.

    `inputs`: how many outputs of the encoder belong to a unit. `unit_columns`: True if the weights that leave a unit of
    the decoder must have length 1. Otherwise a penalty on h could be avoided by a small h and large weights. (The
    weights of a head are not affected; only weight decay keeps them small.) `threshold`: a unit counts as active
    where |h| > threshold. `targets`: the sparsity that the config sets as a target, by the name of the measure, or {}.
    """

    inputs: int
    unit_columns: bool
    threshold: float
    targets: dict[str, float]

    def __call__(self, a: Tensor) -> Coded:
        """Outputs of the encoder (B, inputs * L) -> the code. Training and evaluation mode may differ."""
        ...
