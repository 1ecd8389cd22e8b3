"""Autoencoders: an encoder, a code with a constraint, a decoder, and optionally a corruption that it learns to undo.

    h = code(encoder(corrupt(x))),   loss = reconstruction error of the clean x from h + penalty of h

The code must not simply copy the image. This is prevented by a narrow layer (bottleneck), by a penalty or a competition
of units (`code`), or by a corrupted input (`corruption`, Vincent et al. 2010, JMLR 11).

With a `head` the reconstruction error is -ln p(x | h) in nats. Without one it is half the squared error of values in
[0, 1], summed over the image. Up to a constant, this is -ln p(x | h) for a Gaussian of variance 1. There is no p(x),
because codes have no probability. So an autoencoder has no bits/dim.

`emphasis`: two weights of the reconstruction error at corrupted and at other values (Vincent et al. 2010, sec.
3.4). If a head models the colours of a pixel jointly, a pixel counts as corrupted if one of its colours is. It is only
for corruptions that leave some values unchanged.

Codes, penalties and reconstruction errors have the precision of the weights, also under autocast.

B images, L units, T steps of c values, D numbers a step that the head gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.core import Filters, ImageSpec, Repair, RequestError, declared, from_steps, to_steps
from genlab.models.base import ImageModel
from genlab.models.conditioning import check_context
from genlab.models.layers import hidden_layers
from genlab.models.noise import uniform

CONFIGURABLE = {"model": ("Autoencoder",)}


class Autoencoder(ImageModel):
    """Encoder, code and decoder.

    `encoder(spec=, outputs=)`, `code(units=)`, `decoder(spec=, inputs=, step_channels=, features=, tied=,
    unit_columns=)` and `head(width=, channels=, levels=)` are constructors; `corruption` is a module. `latent_dim`: L.
    `features`: D. `tied`: the decoder uses the encoder's weights, transposed.
    """

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
        super().__init__(spec)
        if latent_dim < 1 or features < 1:
            raise RequestError(f"an autoencoder needs latent_dim and features >= 1, got {latent_dim} and {features}")
        if len(emphasis) != 2 or min(emphasis) < 0 or max(emphasis) == 0:
            raise RequestError(f"emphasis is two weights, of corrupted and of other values; got {list(emphasis)}")
        if getattr(corruption, "everywhere", True) and tuple(emphasis) != (1, 1):
            raise RequestError("emphasis weighs corrupted values: it needs model/corruption=masking or salt_pepper")
        if tied and head is not None:
            raise RequestError("tied weights give the image itself, not a distribution: they need model/head=none")
        self.latent_dim, self.corruption, self.emphasis = latent_dim, corruption, tuple(emphasis)
        self.code: Any
        self.code = code(units=latent_dim)
        self.encoder: Any = encoder(spec=spec, outputs=latent_dim * self.code.inputs)
        jointly = head is None or declared(head, "chains_colours")
        self.step_channels = spec.channels if jointly else 1
        self.decoder: Any = decoder(
            spec=spec, inputs=latent_dim, step_channels=self.step_channels, tied=tied,
            features=self.step_channels if head is None else features, unit_columns=self.code.unit_columns,
        )  # fmt: skip
        self.head: Any
        self.head = None if head is None else head(width=features, channels=self.step_channels, levels=spec.levels)
        self.measured_in = "half squared error" if head is None else "nats"
        if tied:
            self._check_tied()

    @property
    def threshold(self) -> float:
        """A unit h of a code is active if |h| is above this."""
        return float(self.code.threshold)

    @property
    def targets(self) -> dict[str, float]:
        """The sparsity that the config sets as a target, by the name of the measure."""
        return dict(self.code.targets)

    # ---- training

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Each (B,): "loss" = "reconstruction" (nats, or half squared error) + "penalty"; "squared_error" of a value of
        the expected image, in units of the range squared; "active" (a share of the units) and "mean_activation" of h.

        With a head, "squared_error" is computed in evaluation mode only: its expected image is a sum over levels,
        which costs more than the likelihood.
        """
        check_context(context, self.conditioning, len(x))
        y = self.scaled(x)
        corrupt, touched = (y, None) if self.corruption is None or not self.training else self.corruption(y)
        h, penalty, active = self._coded(corrupt)
        decoded = self._decoded(h)
        reconstruction = self._reconstruction(decoded, x, touched)
        terms = {"reconstruction": reconstruction, "penalty": penalty}
        if self.head is None or not self.training:
            with torch.no_grad():
                terms["squared_error"] = (self._expected(decoded) - y).square().flatten(1).mean(1)
        active = (h.abs() > self.threshold).to(h.dtype).mean(1) if active is None else active
        terms |= {"active": active, "mean_activation": h.mean(1)}
        return {"loss": reconstruction + penalty, **{name: term.detach() for name, term in terms.items()}}

    # ---- codes

    def encode(self, x: Tensor, context: Tensor | None = None, *, corrupted: bool = False) -> Tensor:
        """Integers (B, C, H, W) -> codes (B, L), of the clean images unless `corrupted`."""
        check_context(context, self.conditioning, len(x))
        y = self.scaled(x)
        if corrupted and self.corruption is not None:
            y = self.corruption(y)[0]
        h: Tensor = self._coded(y).h
        return h

    def decode(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Codes (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        check_context(context, self.conditioning, len(h))
        return self._expected(self._decoded(h))

    def reconstruct(self, x: Tensor, context: Tensor | None = None, *, corrupted: bool = False) -> Tensor:
        """Integers (B, C, H, W) -> the integers nearest to the expected image given the code of x.

        If `corrupted`: given the code of a corrupted copy.
        """
        return self.quantised(self.decode(self.encode(x, context, corrupted=corrupted)))

    def repair(self, x: Tensor) -> Repair:
        """Corrupt integers (B, C, H, W) as in training and reconstruct them. Noise: torch's global generator."""
        y = self.scaled(x)
        y = y if self.corruption is None else self.corruption(y)[0]
        return Repair(self.quantised(y), self.quantised(self.denoise(y)))

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The "code" (B, L), and the encoder's hidden layers after their activation, "encoder0" …, (B, …) each."""
        return hidden_layers(self.encoder, lambda: self.encode(x, context))

    def filters(self) -> Tensor | None:
        """Weights of the encoder's first layer as images (N, C, h, w); None if they are not pictures."""
        return self.encoder.filters() if isinstance(self.encoder, Filters) else None

    # ---- drawing given a code

    def draw(self, h: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Codes (B, L) -> integers (B, C, H, W) drawn from p(x | h)^(1 / temperature), step by step.

        Without a head there is no such distribution. Then it returns the expected image, rounded, at every temperature.
        """
        if self.head is None:
            return self.quantised(self.decode(h))
        pixels = self.head(self._decoded(h))
        pixels = pixels if temperature == 1 else pixels.tempered(temperature)
        shape = len(h), self.spec.dims // self.step_channels, int(self.head.noise_size)
        return from_steps(pixels.sample(uniform(*shape, device=h.device, generator=generator)), self.spec)

    def denoise(self, y: Tensor) -> Tensor:
        """r(y): corrupted images (B, C, H, W), about [0, 1] -> expected clean ones, clamped to [0, 1].

        Expected images lie in [0, 1]. Without clamping, a chain of denoising steps could leave this range for good.
        """
        return self.decode(self.code(self.encoder(y)).h).clamp(0, 1)

    def renew(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Corrupted images (B, C, H, W), about [0, 1] -> clean images drawn from p(x | y).

        Without a head it returns the expected clean images.
        """
        if self.head is None:
            return self.denoise(y)
        return self.scaled(self.draw(self.code(self.encoder(y)).h, generator))

    # ---- parts

    def _coded(self, y: Tensor) -> Any:
        """Images (B, C, H, W) in [0, 1] -> code, penalty and active share (`codes/code.py`)."""
        return self.code(self.encoder(y).to(self.dtype))

    def _decoded(self, h: Tensor) -> Tensor:
        """Codes (B, L) -> features for the head (B, T, D); without a head, expected values in [0, 1], (B, T, c)."""
        decoded = self.decoder(h, self.encoder) if self.decoder.tied else self.decoder(h)
        return decoded.to(self.dtype)

    def _expected(self, decoded: Tensor) -> Tensor:
        """Output of the decoder -> expected image (B, C, H, W) in [0, 1]."""
        values = decoded if self.head is None else self.head(decoded).mean() / (self.spec.levels - 1)
        return from_steps(values, self.spec)

    def _reconstruction(self, decoded: Tensor, x: Tensor, touched: Tensor | None) -> Tensor:
        """Output of the decoder, clean integers and mask of corrupted values (B, C, H, W) -> the error (B,)."""
        target = to_steps(x, self.step_channels)
        if self.head is None:
            each = (target.to(decoded.dtype) / (self.spec.levels - 1) - decoded).square() / 2
        else:
            each = -self.head(decoded).log_prob(target)[..., None]
        if touched is not None and self.emphasis != (1, 1):
            of_touched, of_rest = self.emphasis
            where = to_steps(touched, self.step_channels)
            where = where if self.head is None else where.any(2, keepdim=True)
            each = each * torch.where(where, of_touched, of_rest)
        return each.sum((1, 2))

    def _check_tied(self) -> None:
        """Raise RequestError unless the decoder can use the encoder's weights."""
        try:
            self.decode(torch.zeros(1, self.latent_dim))
        except (RuntimeError, ValueError) as error:
            raise RequestError(
                "tied weights need a decoder that is the encoder's mirror image (the same hidden widths in "
                "reverse) and a code that takes one number a unit"
            ) from error
