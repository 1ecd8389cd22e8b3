"""Dequantisation: noise u in (0, 1) turns an integer x into a real number y = x + u.

    log P(x) >= E_q(u|x) [log p(x + u) - log q(u | x)],    and p(x + u) / q(u | x) has the mean P(x)

Theis et al. 2016 (arXiv:1511.01844) for uniform noise; Ho et al. 2019 (Flow++, arXiv:1902.00275) for a learnt q. The
bound makes the bits/dim of a flow comparable with those of models of integers. Several draws of u make it tighter.

`Variational`: u is the sigmoid of logistic noise that went through affine couplings, which see features of x. Flow++
starts from Gaussian noise. Our couplings start as the identity, so q starts as uniform noise. An odd height or width is
padded to an even one; the u of the added pixels is not used.
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

CONFIGURABLE = {"dequantisation": ("Uniform", "Variational")}

EDGE = 2.0**-16  # float32 has no number between 256 - 2^-16 and 256


class Uniform(Layer):
    """Uniform noise: u is uniform on (0, 1), and log q(u | x) = 0."""

    exact = False

    def __init__(self, *, shape: Shape, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integers 0..K-1 as floats (B, C, H, W) -> numbers in (0, K). Noise comes from torch's global generator."""
        return y + torch.rand_like(y).clamp(EDGE, 1 - EDGE), y.new_zeros(len(y))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Real numbers (B, C, H, W) -> integers 0..K-1 as floats."""
        return z.floor().clamp(0, self.levels - 1)


class Variational(Uniform):
    """Learnt noise u ~ q(u | x).

    `net(inputs=, outputs=, size=, context_width=)` makes the nets. `width`: features of x. `steps`: number of
    couplings, which change the two diagonals of squares of 2 x 2 pixels in turn.
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
        self.flow = Stack([*layers, Mixing(_inverse_order(diagonals, turn, steps))])

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Integers 0..K-1 as floats (B, C, H, W) -> numbers in (0, K), and the log-weight -log q(u | x)."""
        noise = torch.rand(len(y), *self.padded, dtype=y.dtype, device=y.device).clamp(EDGE, 1 - EDGE).logit()
        v, log_det = self.flow(self.squeeze(noise)[0], self.features(y))
        # log q(v) = log logistic(noise) - log_det, and du/dv = logistic(v), the density of the logistic distribution.
        log_weight = total(_log_logistic(v)) - total(_log_logistic(noise)) + log_det
        u = self.squeeze.inverse(v)[..., : y.shape[2], : y.shape[3]].sigmoid()
        return y + u.clamp(EDGE, 1 - EDGE), log_weight

    def features(self, y: Tensor) -> Tensor:
        """What the couplings see of integers 0..K-1 as floats (B, C, H, W): (B, `width`, H / 2, W / 2), rounded up."""
        _, height, width = self.padded
        x = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2])) * (2 / (self.levels - 1)) - 1
        features: Tensor = self.look(self.squeeze(x)[0]).to(y.dtype)
        return features


def _log_logistic(v: Tensor) -> Tensor:
    """The log-density of the standard logistic distribution, elementwise."""
    return F.logsigmoid(v) + F.logsigmoid(-v)


def _inverse_order(first: list[int], turn: list[int], steps: int) -> list[int]:
    """The order of channels that undoes the mixings of all steps: `first` once, then `turn` for each further step."""
    order = first
    for _ in range(steps - 1):
        order = [order[i] for i in turn]
    return sorted(range(len(order)), key=order.__getitem__)
