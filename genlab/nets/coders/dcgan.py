"""Generator and discriminator of a deep convolutional GAN, for images of any size.

Radford et al. 2016 (DCGAN, arXiv:1511.06434). Generator: a linear layer to a small map, then transposed convolutions
that each double it, with batch norm and ReLU, and tanh at the end. Discriminator: strided convolutions that each halve
the image, with leaky ReLU, then a linear layer to one score. An odd size is rounded up when it is halved, and the
extra row or column is cut off when the map is doubled.

Ours differs in the discriminator, which has spectral norm (Miyato et al. 2018, arXiv:1802.05957) instead of batch norm:
a gradient penalty is defined for single images, and batch norm mixes the images of a batch. Initial weights are
PyTorch's.

Labels enter through a context part, as in Miyato & Koyama 2018 (arXiv:1802.05637):
- In the generator they choose gains and biases after every batch norm (de Vries et al. 2017, arXiv:1707.00683). Labels
  that are appended to z instead make the generator draw one image per class, whatever z is.
- In the discriminator they add <V e(label), phi(x)> to the score, where e is the embedding of the label and phi are
  the features that the score is linear in. Spectral norm is applied to e, too; otherwise its length dominates.

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
from genlab.nets.coders.conv import check_conv, pad_to_even, sizes

CONFIGURABLE = {"generator": ("DCGANGenerator",), "discriminator": ("DCGANDiscriminator",)}

SLOPE = 0.2  # of the leaky ReLU for negative inputs


class SpectralNorm(_SpectralNorm):
    """PyTorch's spectral norm, always in the precision of the weights.

    Under autocast, power iteration would run in bfloat16 and end far from the largest singular value.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """A matrix or kernel -> the same divided by its largest singular value."""
        device_type = "cpu" if weight.is_meta else weight.device.type  # there is no autocast for the meta device
        with torch.autocast(device_type, enabled=False):
            return super().forward(weight)  # type: ignore[no-any-return]


class DCGANGenerator(nn.Module):
    """Noise (B, L), and labels (B,) if there is a `context` part -> images (B, C, H, W).

    `widths`: channels from the largest map to the smallest, the order of the discriminator. `kernel`: an even number.
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
        modulated = () if context is None else widths[::-1]
        self.gains = nn.ModuleList(nn.Linear(context.width, 2 * width, bias=False) for width in modulated)  # type: ignore[union-attr, arg-type]
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, kernel, stride=2, padding=self.padding)
            for a, b in pairwise([*widths[::-1], spec.channels])
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, L), (B,) -> (B, C, H, W) in [-1, 1]."""
        embedding = None if self.context is None else self.context(label).flatten(1)
        h = self.first(z).view(len(z), -1, *self.sizes[0])
        for i, (norm, layer, (height, width)) in enumerate(zip(self.norms, self.layers, self.sizes[1:], strict=True)):
            h = norm(h)
            if embedding is not None:
                gain, bias = self.gains[i](embedding)[..., None, None].chunk(2, 1)
                h = h * (1 + gain) + bias
            h = layer(h.relu())[..., :height, :width]
        return h.tanh()


class DCGANDiscriminator(nn.Module):
    """Images (B, C, H, W), and labels (B,) if there is a `context` part -> scores (B,).

    `widths`: channels after each halving. `spectral_norm`: divide the weights of every layer by their largest singular
    value, which power iteration estimates, a step at every forward pass in training mode.
    """

    adamw_weights = ("layers.0.weight",)  # read the image: not for Muon

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
        """(B, C, H, W) -> the output of every convolution, (B, D, h, w) each."""
        outputs = []
        for layer in self.layers:
            y = F.leaky_relu(layer(pad_to_even(y)), SLOPE)
            outputs.append(y)
        return outputs

    def forward(self, y: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,) -> (B,), computed in the precision of the weights."""
        phi = self.maps(y)[-1].flatten(1)
        with torch.autocast(phi.device.type, enabled=False):  # bfloat16 would leave a score with 8 significant bits
            phi = phi.to(self.last.weight.dtype)
            score = self.last(phi).squeeze(1)
            if self.context is None or self.projection is None:
                return score
            return score + (self.projection(self.context(label).flatten(1)) * phi).sum(1)
