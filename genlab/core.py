"""What the parts of genlab agree on: the image, the protocols, the two ways to fail.

B images, C channels, H x W pixels, K levels, D features; T steps of c values each, T * c = C * H * W.
An image is an integer tensor (B, C, H, W) with values in 0..K-1, into and out of every public method.
Log-probabilities are nats, summed over the dimensions of an image: one number per image, (B,).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class RequestError(ValueError):
    """The request was wrong: one sentence for the user; the command line prints it and exits with status 2."""


class RunError(RuntimeError):
    """A run failed: one sentence for the user; the command line prints it and exits with status 1."""


class Interrupted(RunError):
    """A run was asked to stop by a signal, and says how to go on; the command line exits with status 128 + number, as
    a shell does, so that a script can tell a run to be continued from one that has failed.
    """

    def __init__(self, sentence: str, number: int = 0) -> None:
        super().__init__(sentence)
        self.number = number


# What an image may be, so that a spec out of a file cannot ask for more memory than there is: 3344 x 3344 in colour.
MOST_VALUES, MOST_LEVELS, MOST_CLASSES = 2**25, 2**16, 10**6


@dataclass(frozen=True)
class ImageSpec:
    """The one object that crosses from data to model: shape and alphabet of an image.

    `levels` K: pixel values are the integers 0..K-1. `classes`: number of labels, 0 without labels.
    `context`: shape and alphabet of the second image that comes with each image, if one does.
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    classes: int = 0
    context: ImageSpec | None = None

    def __post_init__(self) -> None:
        if isinstance(self.context, Mapping):  # as a checkpoint holds it
            object.__setattr__(self, "context", ImageSpec(**self.context))
        numbers = (self.channels, self.height, self.width, self.levels, self.classes)
        if not all(type(number) is int for number in numbers):
            raise RequestError(f"the sizes of an image are whole numbers, got {self}")
        if min(numbers[:3]) < 1 or self.levels < 2 or self.classes < 0:
            raise RequestError(f"an image needs at least 1 channel, 1x1 pixels, 2 levels and 0 classes, got {self}")
        if self.dims > MOST_VALUES or self.levels > MOST_LEVELS or self.classes > MOST_CLASSES:
            raise RequestError(
                f"an image may have at most {MOST_VALUES:,} values, {MOST_LEVELS:,} levels and {MOST_CLASSES:,} "
                f"classes, got {self}"
            )
        if self.context is not None and (not isinstance(self.context, ImageSpec) or self.context.context is not None):
            raise RequestError("the context of an image is an image without a context of its own")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """C * H * W: what bits/dim divides by."""
        return self.channels * self.height * self.width

    def check(self, x: Tensor) -> None:
        """Raise unless x is an integer image batch (B, C, H, W) of this spec. Values are not read (no device sync)."""
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(
                f"expected integer images in 0..{self.levels - 1}, got {x.dtype}; scaling belongs inside the model"
            )
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected images (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")


@runtime_checkable
class Trainable(Protocol):
    """Something with a loss."""

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Per-image training loss under the key "loss" (B,), in nats, beside anything worth plotting, each (B,)."""
        ...


@runtime_checkable
class Primed(Protocol):
    """Something that looks at the training images before its first step."""

    def check_images(self, n: int) -> None:
        """RequestError where n training images are too few to start from."""
        ...

    def prime(self, x: Tensor, *, seed: int) -> None:
        """Choose where to start from, by all training images (N, C, H, W), on the CPU; a function of them, the weights
        and the seed.
        """
        ...


@runtime_checkable
class Fitted(Protocol):
    """Something that can be trained by steps of its own on all training images, in place of an optimiser on batches.

    `fitted`: whether it is to be; a model may leave the choice to its config.
    """

    fitted: bool

    def fit_step(self, x: Tensor, *, seed: int) -> dict[str, Tensor]:
        """One step, on all training images (N, C, H, W); `seed` is the same at every step. Terms as of `objective`,
        (N,) each, of the model before the step.
        """
        ...


@runtime_checkable
class Likelihood(Protocol):
    """Something that gives images a probability."""

    exact: bool

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Nats per image (B,). If not `exact`: one draw of log w with E[w] = p(x)."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Something that makes images."""

    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n images (n, C, H, W), integers."""
        ...


class Completion(NamedTuple):
    """Completed images (B, C, H, W) and, per image, the smallest effective number of particles on the way (B,)."""

    images: Tensor
    effective_particles: Tensor


@runtime_checkable
class Completer(Protocol):
    """Something that draws unknown pixels given known ones."""

    @property
    def completion(self) -> str:
        """How far to trust it: "ordered" (exact where the known pixels come first in raster order, weighted particles
        elsewhere), "weighted" (particles, right as they grow), "exact" (always, without particles), or a sentence that
        begins "approximate: " (nor are there particles).
        """
        ...

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        context: Tensor | None = None,
        particles: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Completion:
        """Keep x (B, C, H, W) where known (B, H, W) is True and draw the rest given it."""
        ...


@runtime_checkable
class Features(Protocol):
    """Something whose inner representation can be looked at."""

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Named representations of the images, each (B, ...)."""
        ...


@runtime_checkable
class Coder(Protocol):
    """Something that writes an image as a vector and reads it back. `latent_dim`: L numbers.

    `on`: a number h of a code counts as on where |h| > on. `asked`: what its "active" or "mean_activation" should be.
    `measured_in`: the unit of its objective's "reconstruction".
    """

    latent_dim: int
    on: float
    asked: Mapping[str, float]
    measured_in: str

    def encode(self, x: Tensor, *, corrupted: bool = False, context: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> codes (B, L); `corrupted`: of copies corrupted as in training."""
        ...

    def decode(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Codes (B, L) -> expected images (B, C, H, W) in [0, 1]."""
        ...

    def reconstruct(self, x: Tensor, *, corrupted: bool = False, context: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> the integers nearest to what their codes decode to."""
        ...


class Repair(NamedTuple):
    """Corrupted copies of images, and what became of them: integers (B, C, H, W) each."""

    corrupted: Tensor
    repaired: Tensor


@runtime_checkable
class Latent(Protocol):
    """Something with an amortised posterior q(z | x) = N(mean, diag exp log_var) of L latent units.

    Its objective has the terms "rate", the KL of q(z | x) from the prior, and "distortion", -log p(x | z), in nats.
    """

    latent_dim: int

    def posterior(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> mean and log-variance of q(z | x), (B, L) each."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """A coder that may have been trained to undo a corruption; `corruption` is None if it was not."""

    corruption: Any

    def repair(self, x: Tensor) -> Repair:
        """Corrupt images (B, C, H, W) as in training, then reconstruct the clean ones; torch's own noise."""
        ...


class Reading(NamedTuple):
    """What a classifier makes of images: the features (B, D) that it reads labels off, log p(label | image) (B, M)."""

    features: Tensor
    log_probs: Tensor


@runtime_checkable
class Classifier(Protocol):
    """Something that says which of M classes an image is of; its objective's terms are "loss" and "accuracy"."""

    def read(self, x: Tensor) -> Reading:
        """Images (B, C, H, W) -> features and log-probabilities, nats."""
        ...


@runtime_checkable
class Pushforward(Protocol):
    """Something whose images are made from independent normal numbers z (B, L)."""

    def prior(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """n draws of z (n, L), N(0, I) at temperature 1."""
        ...

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (B, L) -> images (B, C, H, W) in [0, 1]: what they become, or its mean where that is random."""
        ...


@runtime_checkable
class Filters(Protocol):
    """Something whose first layer can be looked at."""

    def filters(self) -> Tensor | None:
        """Weights of the first layer as images (N, C, h, w); None where it has none that make a picture."""
        ...


@runtime_checkable
class Adversarial(Protocol):
    """Two players with a loss each (Goodfellow et al. 2014, arXiv:1406.2661), trained in turns: `critic_steps` of the
    discriminator's, then one of the generator's. Each player owns its weights; there is no loss of the two together.
    """

    generator: nn.Module
    discriminator: nn.Module
    critic_steps: int

    def turn(self, player: str, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """The loss "loss" (B,) that "generator" or "discriminator" descends on images x, beside anything worth
        plotting, each (B,). Noise is torch's own.
        """
        ...


def to_steps(x: Tensor, step_channels: int) -> Tensor:
    """Images (B, C, H, W) -> values in generation order (B, T, c): raster order, the channels of a pixel together."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, step_channels)


def from_steps(steps: Tensor, spec: ImageSpec) -> Tensor:
    """Inverse of `to_steps`: (B, T, c) -> (B, C, H, W)."""
    return steps.reshape(len(steps), spec.height, spec.width, spec.channels).permute(0, 3, 1, 2)


def nearest(name: object, choices: Iterable[str]) -> str:
    """`; did you mean …?` with the closest choice, or the whole list when nothing is close."""
    options = sorted(choices)
    close = get_close_matches(str(name), options, n=1, cutoff=0.5)  # 0 is a word, too, on the command line
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(options)}"
