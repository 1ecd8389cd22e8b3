"""Images from an autoencoder by a density of its codes: draw a code, then decode it.

An autoencoder has no p(x). A density is fitted to the codes of the training images after training
(`genlab/models/densities.py`; Ghosh et al. 2020, arXiv:1903.12436, do this for regularised autoencoders). The
autoencoder has no `sample` of its own, so that these images are not taken for samples of the model.

n images, C channels, H x W pixels, L units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.core import Draw
from genlab.models.autoencoder import Autoencoder
from genlab.models.densities import Mixture


@dataclass
class CodeSampler:
    """A `core.Sampler` that decodes codes drawn from `density`.

    `to_codes` turns vectors (n, L) drawn from the density into vectors that the encoder could have produced: for
    example, it sets all but the k largest units to 0.
    """

    model: Autoencoder
    density: Mixture
    to_codes: Callable[[Tensor], Tensor]

    def sample(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """n images (n, C, H, W), integers. The temperature applies to codes and to pixels given a code."""
        draw = Draw.of(draw, **keywords)
        return self.model.draw(self.codes(n, draw.temperature, draw.generator), draw.generator, draw.temperature)

    def codes(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw n codes (n, L) for the decoder."""
        h = self.density.sample(n, temperature=temperature, generator=generator)
        return self.to_codes(h.to(next(self.model.parameters())))
