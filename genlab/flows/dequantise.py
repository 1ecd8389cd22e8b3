"""Dequantisation: an integer x becomes a real number y = x + u of its bin, u in (0, 1).

    log P(x) >= E_q(u|x) [log p(x + u) - log q(u | x)],    and p(x + u) / q(u | x) has the mean P(x)

(Theis et al. 2016, arXiv:1511.01844, for uniform noise; Ho et al. 2019, Flow++, arXiv:1902.00275, for a learnt q.) So
a flow of real numbers has bits/dim that compare with those of models of integers, as a bound; several draws tighten it.

`Variational`: u is the sigmoid of logistic noise that went through affine couplings with features of x. Flow++ starts
from Gaussian noise; ours, whose couplings start as the identity, starts as uniform dequantisation. Odd sizes are made
even by noise that nothing reads: an invisible pixel with a uniform u.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.flows.coupling import AffineCoupling
from genlab.flows.layer import Layer, Shape, Stack, total
from genlab.flows.mixing import Mixing
from genlab.flows.pad import even
from genlab.flows.squeeze import Squeeze

EDGE = 2.0**-16  # float32 has no number between 256 - 2^-16 and 256


class Uniform(Layer):
    """u uniform: the log-weight is 0."""

    exact = False

    def __init__(self, *, shape: Shape, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whole numbers 0..K-1 (B, C, H, W), as floats -> (0, K). Noise from torch's global generator."""
        return y + torch.rand_like(y).clamp(EDGE, 1 - EDGE), y.new_zeros(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The bin's number, 0..K-1."""
        return z.floor().clamp(0, self.levels - 1)


class Variational(Uniform):
    """u ~ q(u | x), learnt. `net(inputs=, outputs=, size=, context_width=)` arrives unfinished.

    `width`: features of x; `steps`: couplings, which take turns with the diagonals of 2 x 2 squares.
    """

    def __init__(
        self, *, shape: Shape, levels: int, net: Callable[..., nn.Module], width: int = 32, steps: int = 2
    ) -> None:
        super().__init__(shape=shape, levels=levels)
        self.padded = channels, height, breadth = even(shape)
        squeezed = 4 * channels, height // 2, breadth // 2
        self.squeeze = Squeeze()
        self.look = net(inputs=4 * channels, outputs=width, size=squeezed[1:], context_width=0, quiet=False)
        diagonals = [part * channels + c for part in (0, 2, 1, 3) for c in range(channels)]
        turn = [(i + 2 * channels) % (4 * channels) for i in range(4 * channels)]
        layers: list[Layer] = []
        for step in range(steps):
            layers += [Mixing(turn if step else diagonals), AffineCoupling(squeezed, net=net, context_width=width)]
        self.flow = Stack([*layers, Mixing(_back(diagonals, turn, steps))])

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Uniform`'s, with the log-weight -log q(u | x)."""
        _, height, width = self.padded
        x = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])) * (2 / (self.levels - 1)) - 1
        features = self.look(self.squeeze(x)[0]).to(y.dtype)
        noise = torch.rand_like(x).clamp(EDGE, 1 - EDGE).logit()
        v, log_det = self.flow(self.squeeze(noise)[0], features)
        # log q(v) = log logistic(noise) - log_det; du/dv is the logistic density, too.
        log_weight = total(_log_logistic(v)) - total(_log_logistic(noise)) + log_det
        u = self.squeeze.inverse(v)[..., : y.shape[2], : y.shape[3]].sigmoid()
        return y + u.clamp(EDGE, 1 - EDGE), log_weight


def _log_logistic(v: Tensor) -> Tensor:
    return F.logsigmoid(v) + F.logsigmoid(-v)


def _back(first: list[int], turn: list[int], steps: int) -> list[int]:
    """The order that undoes what the mixings of all steps did."""
    order = first
    for _ in range(steps - 1):
        order = [order[i] for i in turn]
    return sorted(range(len(order)), key=order.__getitem__)
