"""Images from a denoising autoencoder by a chain of denoising steps (`genlab/models/chains.py`).

Chains start at an image whose pixels are uniformly random levels, not at a training image: after a few hundred steps a
chain would still resemble the image that it started from, and would be mistaken for a good sample. The autoencoder
has no `sample` and no `complete` of its own, so that these images are not taken for samples of the model.

n or B images, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genlab.core import Completion, Draw, RequestError
from genlab.models import chains
from genlab.models.autoencoder import Autoencoder


@dataclass
class ChainSampler:
    """A `core.Sampler` and an approximate `core.Completer` that run chains of `steps` steps from noise.

    With `langevin`, `sample` takes Langevin steps, which need Gaussian corruption. Otherwise a step corrupts the image
    and then denoises it (a walk-back chain).
    """

    model: Autoencoder
    steps: int
    langevin: bool = False

    @property
    def completion(self) -> str:
        """As `core.Completer.completion`: a sentence that says how the approximate completions are computed."""
        return (
            f"approximate: chains of {self.steps} steps from noise that corrupt the image, {self.denoising} and "
            "put the known pixels back; not a conditional distribution of the model, which has none"
        )

    @property
    def denoising(self) -> str:
        """How a step of the walk-back chain denoises the image, in words."""
        if self.model.head is None:
            return "take the expected clean image"
        return "draw a clean image from p(x | corrupted)"

    def sample(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """n images (n, C, H, W), integers.

        Raises RequestError for a temperature other than 1: a chain has no distribution to temper.
        """
        generator = _generator(Draw.of(draw, **keywords))
        x = self.noise(n, generator)
        if not self.langevin:
            return self.model.quantised(self.walkback(x, generator))
        corruption: Any = self.model.corruption
        y = chains.denoising_langevin(
            corruption(x, generator)[0], denoise=self.model.denoise, sigma=corruption.sigma, steps=self.steps,
            generator=generator,
        )  # fmt: skip
        return self.model.quantised(self.model.denoise(y))

    def complete(self, x: Tensor, known: Tensor, draw: Draw | None = None, **keywords: Any) -> Completion:
        """As `core.Completer.complete`, by walk-back chains without particles.

        Raises RequestError for a temperature other than 1.
        """
        generator = _generator(Draw.of(draw, **keywords))
        known = known[:, None].to(next(self.model.parameters()).device)
        x = x.to(known.device)
        start = torch.where(known, self.model.scaled(x), self.noise(len(x), generator))
        filled = self.model.quantised(self.walkback(start, generator, known))
        return Completion(torch.where(known, x, filled), None)

    def noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n images (n, C, H, W) of uniformly random levels, scaled to [0, 1]."""
        spec = self.model.spec
        x = torch.randint(spec.levels, (n, *spec.shape), generator=generator)
        return self.model.scaled(x.to(next(self.model.parameters()).device))

    def walkback(self, x: Tensor, generator: torch.Generator | None, known: Tensor | None = None) -> Tensor:
        """The last images (B, C, H, W) in [0, 1] of walk-back chains from x; pixels in known (B, 1, H, W) are kept."""
        corruption: Any = self.model.corruption
        return chains.walkback_chain(
            x, corrupt=lambda y: corruption(y, generator)[0], renew=partial(self.model.renew, generator=generator),
            steps=self.steps, known=known,
        )  # fmt: skip


def _generator(draw: Draw) -> torch.Generator | None:
    """The generator of a drawing. Raises RequestError for a temperature other than 1."""
    if draw.temperature != 1:
        raise RequestError(f"temperature={draw.temperature:g}: the chain of an autoencoder has none")
    return draw.generator
