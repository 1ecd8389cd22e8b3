"""VQ-VAE: an image as a grid of discrete codes, and an autoregressive prior of the codes (van den Oord, Vinyals,
Kavukcuoglu 2017, arXiv:1711.00937).

    e = encoder(x)    codes = nearest vectors of the codebook    p(x | codes): decoder and head    p(codes): prior

The likelihood of an image is a sum over all grids of codes. Its term for the grid of the encoder,

    log p(x) >= log p(x | codes) + log p(codes)

is a lower bound, and the only one here: more draws do not tighten it, because nothing is drawn. The paper trains the
prior after the rest. Ours trains both in one run: the prior's loss has no gradient to the codes, so the codes are those
that the paper would learn, and the prior follows them. The codebook begins as outputs of the encoder.

At a temperature T, prior and pixels are tempered as in every family (`core.Draw`).

B images, T steps of c values, D numbers of a vector, K codes, h x w places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Completion, Draw, ImageSpec, RequestError, declared, from_steps, to_steps
from genlab.models.base import GenerativeModel
from genlab.models.codebook import Codebook
from genlab.models.noise import uniform
from genlab.system.device import moved

CONFIGURABLE = {"model": ("VQVAE",)}

FIRST = 256  # training images that the codebook begins with
FILLS = 5  # times the unknown pixels are filled in before the codes of a completion are read


class VQVAE(GenerativeModel):
    """Encoder, codebook, decoder, head, and a prior of the codes.

    `encoder(spec=, outputs=)` with an attribute `grid`, `decoder(spec=, inputs=, step_channels=, features=)`,
    `head(width=, channels=, levels=)` and `prior(spec=, context=)` are constructors; the prior is an autoregressive
    model of images with one channel and K levels. A `context` is for the prior: given the codes, pixels do not depend
    on it. `codes`: K. `code_width`: D. `commitment`: weight of the encoder's distance.
    """

    exact = False
    completion = (
        "approximate: codes of wholly known places are kept, the others are drawn from the prior given them, and then "
        "the unknown pixels given all codes"
    )

    def __init__(
        self,
        spec: ImageSpec,
        *,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        head: Callable[..., nn.Module],
        prior: Callable[..., nn.Module],
        codes: int = 128,
        code_width: int = 16,
        features: int = 8,
        commitment: float = 0.25,
        context: Callable[..., nn.Module] | None = None,
    ) -> None:
        if head is None:
            raise RequestError("a VQ-VAE needs a model/head= other than none: it is p(x | codes)")
        if prior is None or declared(prior, "of_reals"):
            raise RequestError(
                "the codes of a VQ-VAE are whole numbers: choose an autoregressive model of images as model/prior=, "
                "for example gated_pixelcnn (normal and autoregressive are priors of model=latent_gaussian)"
            )
        if min(code_width, features) < 1 or codes < 2 or commitment <= 0:
            raise RequestError(
                "a VQ-VAE needs codes >= 2, code_width and features >= 1 and commitment > 0, got "
                f"{codes}, {code_width}, {features} and {commitment}"
            )
        super().__init__(spec)
        self.commitment = commitment
        self.encoder: Any
        self.encoder = encoder(spec=spec, outputs=code_width)
        self.codebook = Codebook(codes, code_width)
        jointly = declared(head, "chains_colours") or declared(head, "independent")
        self.step_channels = spec.channels if jointly else 1
        self.decoder: Any = decoder(spec=spec, inputs=code_width, step_channels=self.step_channels, features=features)
        self.head: Any = head(width=features, channels=self.step_channels, levels=spec.levels)
        height, width = (int(n) for n in self.encoder.grid)
        of_codes = ImageSpec(1, height, width, codes, spec.classes, spec.context)
        self.prior: Any = prior(spec=of_codes, context=context)
        self.conditioning = str(self.prior.conditioning)

    # ---- the codebook's start

    def check_images(self, n: int) -> None:
        """Any number of images will do."""

    @torch.no_grad()
    def prime(self, x: Tensor, *, seed: int) -> None:
        """Take the codebook from the encoder's outputs for some training images (N, C, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(x), generator=generator)[:FIRST]
        e = self.encoder(self.scaled(x[chosen].to(self.device))).to(self.dtype)
        self.codebook.start_from(e.cpu(), generator)

    # ---- likelihood

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Nats (B,) each: "loss"; "distortion", -log p(x | codes); "rate", -log p(codes).

        In training mode the loss also has the two distances of the codebook. In evaluation mode it is the bound.
        """
        e = self._encoded(self.scaled(x))
        codes = self.codebook.nearest(e)
        z, distances = self.codebook.straight_through(e, codes, self.commitment)
        distortion, rate = -self._log_likelihood(x, z), -self.prior.log_prob(codes, context)
        loss = distortion + rate + (distances if self.training else 0)
        return {"loss": loss, "distortion": distortion.detach(), "rate": rate.detach()}

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> a lower bound of log p(x), nats (B,)."""
        codes = self.codes(x)
        nats: Tensor = self._log_likelihood(x, self.codebook.look_up(codes)) + self.prior.log_prob(codes, context)
        return nats

    def codes(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> codes (B, 1, h, w), integers in 0..K - 1."""
        return self.codebook.nearest(self._encoded(self.scaled(x)))

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The encoder's output "encoded" and the vectors of the codes "quantised", (B, D, h, w) each."""
        self._condition(context, len(x))
        e = self._encoded(self.scaled(x))
        return {"encoded": e, "quantised": self.codebook.look_up(self.codebook.nearest(e))}

    # ---- drawing

    def _sample(self, n: int, draw: Draw, condition: Tensor | None) -> Tensor:
        """Codes from the prior, then pixels given the codes."""
        return self._pixels(self.prior.sample(n, draw), draw)

    def _complete(self, x: Tensor, known: Tensor, draw: Draw, condition: Tensor | None) -> Completion:
        """See `completion`. The codes of known places are read from an image whose unknown pixels are filled in."""
        where = moved(known, self.device)[:, None].expand_as(x)
        y = self.scaled(x)
        filled = torch.where(where, y, 0.5)
        for _ in range(FILLS):
            codes = self.codebook.nearest(self._encoded(filled))
            filled = torch.where(where, y, self._expected(codes))
        whole = self._whole_places(known)
        codes, effective = self.prior.complete(codes, whole, draw)
        drawn = self._pixels(codes, draw)
        return Completion(torch.where(where, x, drawn), effective)

    def _whole_places(self, known: Tensor) -> Tensor:
        """Known pixels (B, H, W) -> the places of the grid (B, h, w) all of whose pixels are known."""
        sizes = [-(-n // places) for n, places in zip(known.shape[1:], self.encoder.grid, strict=True)]
        unknown = torch.nn.functional.max_pool2d((~known)[:, None].float(), sizes, ceil_mode=True)
        return unknown[:, 0] == 0

    def _pixels(self, codes: Tensor, draw: Draw) -> Tensor:
        """Codes (B, 1, h, w) -> integers (B, C, H, W) from p(x | codes) at the temperature of the draw."""
        pixels = self._given(self.codebook.look_up(codes))
        pixels = pixels if draw.temperature == 1 else pixels.tempered(draw.temperature)
        shape = len(codes), self.spec.dims // self.step_channels, self.head.noise_size
        noise = uniform(*shape, device=self.device, generator=draw.generator).to(self.dtype)
        return from_steps(pixels.sample(noise), self.spec)

    # ---- parts

    def _encoded(self, y: Tensor) -> Tensor:
        """Images in [0, 1] -> grids (B, D, h, w), in the precision of the weights."""
        e: Tensor = self.encoder(y).to(self.dtype)
        return e

    def _given(self, z: Tensor) -> Any:
        """Grids (B, D, h, w) -> p(x | z) of every step."""
        return self.head(self.decoder(z).to(self.dtype))

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), nats (B,)."""
        nats: Tensor = self._given(z).log_prob(to_steps(x, self.step_channels)).sum(1)
        return nats

    def _expected(self, codes: Tensor) -> Tensor:
        """Codes (B, 1, h, w) -> expected images (B, C, H, W) in [0, 1]."""
        mean = self._given(self.codebook.look_up(codes)).mean()
        return from_steps(mean / (self.spec.levels - 1), self.spec).to(self.dtype)
