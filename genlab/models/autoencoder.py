"""Autoencoders: an encoder, a code that must be cheap, a decoder; perhaps a corruption to undo.

    h = code(encoder(corrupt(x))),   loss = reconstruction of the clean x from h + penalty of h

What keeps the code from copying: a narrow layer (bottleneck), a price or a competition (`code`), or a corrupted input
(`corruption`, Vincent et al. 2010, JMLR 11). With a `head` the reconstruction is -ln p(x | h) in nats, else half the
squared error of values scaled to [0, 1], summed over the image: the same thing for a Gaussian of variance 1, up to a
constant. There is no p(x): nothing says how probable a code is, so an autoencoder has no bits/dim.

`emphasis`: weights of the reconstruction at touched and untouched values (Vincent et al. 2010, sec. 3.4), or of pixels
where a head gives the colours of a pixel jointly; only for corruptions that leave some values alone.

Codes, penalties and reconstructions are of the weights' precision, also under autocast.

B images, L units, T steps of c values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Filters, ImageSpec, Repair, RequestError, from_steps, to_steps
from genlab.models.conditioning import suited
from genlab.models.layers import hidden_layers
from genlab.system.device import moved


class Autoencoder(nn.Module):
    """Encoder, code and decoder.

    `encoder(spec=, outputs=)`, `code(units=)`, `decoder(spec=, inputs=, step_channels=, features=, tied=,
    unit_columns=)` and `head(width=, channels=, levels=)` arrive unfinished; `corruption` as it is. `latent_dim`: L;
    `features`: per step, for the head.
    """

    conditioning = "none"

    def __init__(
        self,
        spec: ImageSpec,
        *,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        code: Callable[..., nn.Module],
        latent_dim: int,
        head: Callable[..., nn.Module] | None = None,
        features: int = 8,
        corruption: nn.Module | None = None,
        emphasis: Sequence[float] = (1.0, 1.0),
        tied: bool = False,
    ) -> None:
        super().__init__()
        if latent_dim < 1 or features < 1:
            raise RequestError(f"an autoencoder needs latent_dim and features >= 1, got {latent_dim} and {features}")
        if len(emphasis) != 2 or min(emphasis) < 0 or max(emphasis) == 0:
            raise RequestError(f"emphasis is two weights, of touched and of untouched values; got {list(emphasis)}")
        if getattr(corruption, "everywhere", True) and tuple(emphasis) != (1, 1):
            raise RequestError("emphasis weighs corrupted values: it needs model/corruption=masking or salt_pepper")
        if tied and head is not None:
            raise RequestError("tied weights end in the image itself: they go with model/head=none")
        self.spec, self.latent_dim, self.corruption = spec, latent_dim, corruption
        self.emphasis = tuple(emphasis)
        self.code: Any
        self.code = code(units=latent_dim)
        self.encoder: Any = encoder(spec=spec, outputs=latent_dim * self.code.inputs)
        chained = getattr(getattr(head, "func", head), "chains_colours", head is None)
        self.step_channels = spec.channels if chained else 1
        self.decoder: Any = decoder(
            spec=spec, inputs=latent_dim, step_channels=self.step_channels, tied=tied,
            features=self.step_channels if head is None else features, unit_columns=self.code.unit_columns,
        )  # fmt: skip
        self.head = None if head is None else head(width=features, channels=self.step_channels, levels=spec.levels)
        self.measured_in = "half squared error" if head is None else "nats"
        if tied:
            try:
                self.decode(torch.zeros(1, latent_dim))
            except (RuntimeError, ValueError) as error:
                raise RequestError(
                    "tied weights need a decoder that is the encoder's mirror image (the same hidden widths in "
                    "reverse) and a code that takes one number a unit"
                ) from error

    @property
    def on(self) -> float:
        """A unit counts as on where |h| is above this."""
        return float(self.code.on)

    @property
    def asked(self) -> dict[str, float]:
        """The sparsity that was asked of the code, by the name of the measure that should reach it."""
        return dict(self.code.asked)

    def scaled(self, x: Tensor) -> Tensor:
        """Integers (B, C, H, W) -> [0, 1]."""
        self.spec.check(x)
        return x.to(self.dtype) / (self.spec.levels - 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Each (B,): "loss" = "reconstruction" (nats, or half squared error) + "penalty"; "squared_error" per value of
        the expected image from the clean one, in units of the range squared; "active" and "mean_activation" of h.

        A head's expected image is a sum over levels, dearer than its likelihood: "squared_error" then only after
        training.
        """
        suited(context, self.conditioning, len(x))
        y = self.scaled(x)
        corrupt, touched = (y, None) if self.corruption is None or not self.training else self.corruption(y)
        h, penalty, active = self._coded(corrupt)
        found = self._decoded(h)
        reconstruction = self._reconstruction(found, x, touched)
        terms = {"reconstruction": reconstruction, "penalty": penalty}
        if self.head is None or not self.training:
            with torch.no_grad():
                terms["squared_error"] = (self._expected(found) - y).square().flatten(1).mean(1)
        active = (h.abs() > self.on).to(h.dtype).mean(1) if active is None else active
        terms |= {"active": active, "mean_activation": h.mean(1)}
        return {"loss": reconstruction + penalty, **{name: term.detach() for name, term in terms.items()}}

    def encode(self, x: Tensor, *, corrupted: bool = False, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> codes (B, L), of the clean images unless `corrupted`."""
        suited(context, self.conditioning, len(x))
        y = self.scaled(x)
        if corrupted and self.corruption is not None:
            y = self.corruption(y)[0]
        h: Tensor = self._coded(y).h
        return h

    def decode(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Codes (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        suited(context, self.conditioning, len(h))
        return self._expected(self._decoded(h))

    def reconstruct(self, x: Tensor, *, corrupted: bool = False, context: Tensor | None = None) -> Tensor:
        """Integers (B, C, H, W) -> the levels nearest to the expected image, from x or from a corrupted copy of it."""
        return self.quantised(self.decode(self.encode(x, corrupted=corrupted, context=context)))

    def repair(self, x: Tensor) -> Repair:
        """Integers (B, C, H, W) -> corrupted copies as in training, and the clean images as reconstructed from them."""
        y = self.scaled(x)
        y = y if self.corruption is None else self.corruption(y)[0]
        return Repair(self.quantised(y), self.quantised(self.denoise(y)))

    def filters(self) -> Tensor | None:
        """Weights of the encoder's first layer as images (N, C, h, w), if it has such."""
        found: Tensor | None = self.encoder.filters() if isinstance(self.encoder, Filters) else None
        return found

    def quantised(self, y: Tensor) -> Tensor:
        """Images in [0, 1], or a little beyond -> integers (B, C, H, W)."""
        top = self.spec.levels - 1
        return (y * top).round().clamp(0, top).long()

    def draw(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes (B, L) -> integers (B, C, H, W) drawn from p(x | h); without a head, which has none, the expected image
        rounded. Noise is drawn where the generator lives.
        """
        if self.head is None:
            return self.quantised(self.decode(h))
        pixels = self.head(self._decoded(h))
        size = len(h), self.spec.dims // self.step_channels, int(self.head.noise_size)  # type: ignore[arg-type]
        device = h.device if generator is None else generator.device
        noise = torch.rand(*size, generator=generator, device=device, dtype=torch.float)
        return from_steps(pixels.sample(moved(noise, h.device)), self.spec)

    def denoise(self, y: Tensor) -> Tensor:
        """r(y): corrupted images (B, C, H, W), about [0, 1] -> expected clean ones, cut to [0, 1], where expectations
        of images are: a chain that is let out of it does not come back.
        """
        return self.decode(self.code(self.encoder(y)).h).clamp(0, 1)

    def renew(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Corrupted images (B, C, H, W), about [0, 1] -> clean ones, drawn from p(x | y); without a head, which has
        none, the expected ones.
        """
        if self.head is None:
            return self.denoise(y)
        return self.scaled(self.draw(self.code(self.encoder(y)).h, generator))

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Hidden layers of the encoder as the next one reads them, "encoder0" …, each (B, D) or (B, D, h, w), and the
        "code" (B, L).
        """
        return hidden_layers(self.encoder, lambda: self.encode(x, context=context))

    def _coded(self, y: Tensor) -> Any:
        """Images (B, C, H, W) in [0, 1] -> what the code makes of them (see codes/code.py)."""
        return self.code(self.encoder(y).to(self.dtype))

    def _decoded(self, h: Tensor) -> Tensor:
        """Codes (B, L) -> what the head gets, or without one the expected values in [0, 1]: (B, T, D)."""
        found = self.decoder(h, self.encoder) if self.decoder.tied else self.decoder(h)
        return found.to(self.dtype)

    def _expected(self, found: Tensor) -> Tensor:
        """(B, T, D) -> expected image (B, C, H, W) in [0, 1]."""
        values = found if self.head is None else self.head(found).mean() / (self.spec.levels - 1)
        return from_steps(values, self.spec)

    def _reconstruction(self, found: Tensor, x: Tensor, touched: Tensor | None) -> Tensor:
        """(B, T, D), the clean image and which values of it were touched (B, C, H, W) -> (B,)."""
        target = to_steps(x, self.step_channels)
        if self.head is None:
            each = (target.to(found.dtype) / (self.spec.levels - 1) - found).square() / 2
        else:
            each = -self.head(found).log_prob(target)[..., None]
        if touched is not None and self.emphasis != (1, 1):
            of_touched, of_rest = self.emphasis
            where = to_steps(touched, self.step_channels)
            where = where if self.head is None else where.any(2, keepdim=True)
            each = each * torch.where(where, of_touched, of_rest)
        return each.sum((1, 2))
