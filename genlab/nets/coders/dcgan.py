"""The two players of a deep convolutional GAN (Radford et al. 2016, arXiv:1511.06434), for images of any size.

Generator: a linear layer to a small map, then transposed convolutions that each double it, with batch norm and ReLU,
and tanh at the end. Discriminator: strided convolutions that each halve the image, with leaky ReLU, then a linear
layer to one score. Odd sizes are rounded up on the way down and cut on the way up.

Differs from the paper: the discriminator has no batch norm (which a gradient penalty, being one image's own, rules
out) but spectral norm (Miyato et al. 2018, arXiv:1802.05957); PyTorch's initial weights.

Labels, through a context part, as Miyato & Koyama 2018 (arXiv:1802.05637): in the generator they choose gains and
biases after every batch norm (de Vries et al. 2017, arXiv:1707.00683), which leaves it to z where strokes go; given
beside z instead, they make it draw one image a class. To the discriminator's score is added <V e(label), phi(x)>, phi
being what the score is linear in; spectral norm takes e too, whose length would outweigh the rest.

B images y (B, C, H, W) in [-1, 1]; noise z (B, L); labels (B,).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import register_parametrization

from genlab.core import ImageSpec
from genlab.nets.coders.coder import check_conv, sizes

SLOPE = 0.2  # of the leaky ReLU


class SpectralNorm(_SpectralNorm):
    """PyTorch's, in the precision of the weights whatever the autocast: power iteration in bfloat16 ends far from the
    largest singular value.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """A matrix or kernel, divided by its largest singular value."""
        kind = "cpu" if weight.is_meta else weight.device.type  # a sketch of a model has no autocast
        with torch.autocast(kind, enabled=False):
            return super().forward(weight)  # type: ignore[no-any-return]


class DCGANGenerator(nn.Module):
    """Noise (B, L) and perhaps labels -> images. `widths`: channels from the largest map to the smallest, as the
    discriminator's; `kernel`: 4, or any even number.
    """

    def __init__(
        self,
        *,
        spec: ImageSpec,
        latent_dim: int,
        context: nn.Module | None = None,
        widths: Sequence[int] = (64, 128, 256),
        kernel: int = 4,
    ) -> None:
        super().__init__()
        check_conv(widths, kernel)
        self.sizes, self.padding = sizes(spec, len(widths))[::-1], kernel // 2 - 1
        self.context = context
        area = self.sizes[0][0] * self.sizes[0][1]
        self.first = nn.Linear(latent_dim, widths[-1] * area)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[::-1])
        told = () if context is None else widths[::-1]
        self.gains = nn.ModuleList(nn.Linear(context.width, 2 * width, bias=False) for width in told)  # type: ignore[union-attr, arg-type]
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, kernel, stride=2, padding=self.padding)
            for a, b in pairwise([*widths[::-1], spec.channels])
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, L), (B,) -> (B, C, H, W) in [-1, 1]."""
        given = None if self.context is None else self.context(label).flatten(1)
        h = self.first(z).view(len(z), -1, *self.sizes[0])
        for i, (norm, layer, (height, width)) in enumerate(zip(self.norms, self.layers, self.sizes[1:], strict=True)):
            h = norm(h)
            if given is not None:
                gain, bias = self.gains[i](given)[..., None, None].chunk(2, 1)
                h = h * (1 + gain) + bias
            h = layer(h.relu())[..., :height, :width]
        return h.tanh()


class DCGANDiscriminator(nn.Module):
    """Images and perhaps labels -> scores (B,). `widths`: channels after each halving; `spectral_norm`: every layer's
    weights are divided by their largest singular value, which power iteration follows in training.
    """

    def __init__(
        self,
        *,
        spec: ImageSpec,
        context: nn.Module | None = None,
        widths: Sequence[int] = (64, 128, 256),
        kernel: int = 4,
        spectral_norm: bool = True,
    ) -> None:
        super().__init__()
        check_conv(widths, kernel)
        self.context = context
        rows, columns = sizes(spec, len(widths))[-1]
        features = widths[-1] * rows * columns
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel, stride=2, padding=kernel // 2 - 1) for a, b in pairwise([spec.channels, *widths])
        )
        self.last = nn.Linear(features, 1)
        self.projection = None if context is None else nn.Linear(context.width, features, bias=False)  # type: ignore[arg-type]
        for module in list(self.modules()) if spectral_norm else ():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
                register_parametrization(module, "weight", SpectralNorm(module.weight))

    def maps(self, y: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> what each convolution makes of it, (B, D, h, w)."""
        found = []
        for layer in self.layers:
            y = F.leaky_relu(layer(F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2))), SLOPE)
            found.append(y)
        return found

    def forward(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,) -> (B,)."""
        phi = self.maps(y)[-1].flatten(1)
        with torch.autocast(phi.device.type, enabled=False):  # a score of bfloat16 would have 8 bits
            phi = phi.to(self.last.weight.dtype)
            score = self.last(phi).squeeze(1)
            if self.context is None or self.projection is None:
                return score
            return score + (self.projection(self.context(label).flatten(1)) * phi).sum(1)
