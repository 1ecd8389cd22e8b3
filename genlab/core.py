"""The interfaces of genlab: the spec of an image, the options of a drawing, the protocols of models, and the errors.

B images, C channels, H x W pixels, K levels, D features; T steps of c values each, T * c = C * H * W. Every public
method takes and returns images as integer tensors (B, C, H, W) with values in 0..K-1. Log-probabilities are nats,
summed over the dimensions of an image: one number per image, (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class RequestError(ValueError):
    """The request was wrong: one sentence for the user, which the command line prints before it exits with status 2."""


class RunError(RuntimeError):
    """A run failed: one sentence for the user, which the command line prints before it exits with status 1."""


class Interrupted(RunError):
    """A signal stopped a run; the sentence says how to continue it. The command line then exits with status
    128 + `number` of the signal, as a shell does, so that scripts can tell this from a failure.
    """

    def __init__(self, sentence: str, number: int = 0) -> None:
        super().__init__(sentence)
        self.number = number


# Bounds of an image (3344 x 3344 pixels in colour), so that a spec from a file cannot demand more memory than there is.
MOST_VALUES, MOST_LEVELS, MOST_CLASSES = 2**25, 2**16, 10**6


@dataclass(frozen=True)
class ImageSpec:
    """Shape and number of levels of an image. A model gets nothing else of the data when it is built.

    `levels` K: pixel values are the integers 0..K-1. `classes`: number of labels, 0 without labels. `context`: the spec
    of the second image that comes with each image, or None. Raises RequestError for sizes that are not possible.
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
            raise RequestError("the context of an image must be an image without a context")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """C * H * W, the number of values of an image."""
        return self.channels * self.height * self.width

    def check(self, x: Tensor) -> None:
        """Raise TypeError or ValueError unless x is a batch of integer images (B, C, H, W) of this spec.

        Values are not read, because the host would have to wait for a GPU.
        """
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(
                f"expected integer images in 0..{self.levels - 1}, got {x.dtype}; scaling belongs inside the model"
            )
        if x.ndim != 4 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected images (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")


@dataclass(frozen=True, eq=False)
class Draw:
    """The options of a drawing, the same in every family.

    `context`: what the images are conditioned on, one for each image, or None. `generator`: the source of random
    numbers, on any device; None for torch's own. `particles`: number of weighted particles of a completion; drawings
    without weights ignore it.

    `temperature` T: every distribution that is drawn from becomes proportional to p^(1/T). Below 1, images vary less.

        a Gaussian, of latents too      its covariance is multiplied by T, deviations by sqrt(T)
        a pixel value with K levels     p(x)^(1/T), normalised over the K levels
        the component z of a mixture    p(z)^(1/T), normalised over the components

    If several distributions are drawn from in turn (z, then pixels given z; one pixel after another), each of them is
    tempered given what was drawn before. Then whole images do not follow p(x)^(1/T). A sampler without a
    distribution to temper raises RequestError for T other than 1.
    """

    context: Tensor | None = None
    temperature: float = 1.0
    generator: torch.Generator | None = None
    particles: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise RequestError(f"temperature={self.temperature}: expected a number above 0 (1 is the model's own)")
        if self.particles < 1:
            raise RequestError(f"particles={self.particles}: expected at least 1")

    @classmethod
    def of(cls, draw: Draw | None = None, *, seed: int | None = None, **fields: Any) -> Draw:
        """`draw`, or the default, with some fields replaced. `seed` makes a generator on the CPU. Raises TypeError for
        another keyword, RequestError for a seed and a generator.
        """
        if seed is not None:
            if fields.get("generator") is not None:
                raise RequestError("give a seed or a generator, not both")
            fields["generator"] = torch.Generator().manual_seed(seed)
        return replace(cls() if draw is None else draw, **fields)


@runtime_checkable
class Trainable(Protocol):
    """A model with a training loss."""

    def objective(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Training loss of every image, "loss" (B,) in nats, and other numbers worth plotting, (B,) each."""


@runtime_checkable
class Primed(Protocol):
    """A model that chooses its initial weights from the training images."""

    def check_images(self, n: int) -> None:
        """Raise RequestError if n training images are too few for that."""

    def prime(self, x: Tensor, *, seed: int) -> None:
        """Set the initial weights from all training images (N, C, H, W), on the CPU. Equal seeds give equal weights."""


@runtime_checkable
class Fitted(Protocol):
    """A model with its own training steps on all training images, instead of an optimiser's steps on batches.
    `fitted`: True if it is trained by these steps; a model may leave the choice to its config.
    """

    fitted: bool

    def fit_step(self, x: Tensor, *, seed: int) -> dict[str, Tensor]:
        """One step on all training images (N, C, H, W); `seed` is the same at every step. Returns the terms of
        `objective` before the step, (N,) each.
        """


@runtime_checkable
class Likelihood(Protocol):
    """A model that gives images a probability."""

    exact: bool

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> log p(x) in nats (B,). If not `exact`: one draw of log w with E[w] = p(x)."""


@runtime_checkable
class Sampler(Protocol):
    """A model or an algorithm that draws images."""

    def sample(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """n images (n, C, H, W), integers. `keywords` are those of `Draw.of`, for example seed=0."""


class Completion(NamedTuple):
    """Completed images (B, C, H, W), and for each image the smallest effective number of particles (B,). For weights w
    it is (sum w)^2 / sum w^2. None if there were no weights.
    """

    images: Tensor
    effective_particles: Tensor | None


@runtime_checkable
class Completer(Protocol):
    """A model or an algorithm that draws unknown pixels given known ones."""

    @property
    def completion(self) -> str:
        """How far completions can be trusted.

        "exact": they follow the conditional distribution. "weighted": they approach it with many particles. "ordered":
        exact if the known pixels come first in raster order, else weighted. Otherwise a sentence that begins with
        "approximate: ".
        """

    def complete(self, x: Tensor, known: Tensor, draw: Draw | None = None, **keywords: Any) -> Completion:
        """Keep x (B, C, H, W) where known (B, H, W) is True; draw the other values. `keywords` as in `sample`."""


@runtime_checkable
class Features(Protocol):
    """A model with named inner representations."""

    def features(self, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Named representations of the images, each (B, ...)."""


@runtime_checkable
class Coder(Protocol):
    """A model that encodes an image as a vector of L numbers and decodes it again. `latent_dim`: L.

    `threshold`: a unit h of a code is active if |h| > threshold. `targets`: the config's target sparsity, by the name
    of the measure ("active", "mean_activation"). `measured_in`: the unit of the objective's "reconstruction".
    """

    latent_dim: int
    threshold: float
    targets: Mapping[str, float]
    measured_in: str

    def encode(self, x: Tensor, context: Tensor | None = None, *, corrupted: bool = False) -> Tensor:
        """Images (B, C, H, W) -> codes (B, L). `corrupted`: encode copies that are corrupted as in training."""

    def decode(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        """Codes (B, L) -> expected images (B, C, H, W) in [0, 1]."""

    def reconstruct(self, x: Tensor, context: Tensor | None = None, *, corrupted: bool = False) -> Tensor:
        """Images (B, C, H, W) -> integers (B, C, H, W), the nearest to the images that are decoded from their codes."""


class Repair(NamedTuple):
    """Corrupted copies of images and their reconstructions, integers (B, C, H, W) each."""

    corrupted: Tensor
    repaired: Tensor


@runtime_checkable
class Latent(Protocol):
    """A model with an amortised posterior q(z | x) = N(mean, diag exp log_var) of L latent units. Its objective has the
    terms "rate", the KL of q(z | x) from the prior, and "distortion", -log p(x | z), in nats.
    """

    latent_dim: int

    def posterior(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> mean and log-variance of q(z | x), (B, L) each."""

    def kl_per_unit(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> the terms of the rate, nats (B, L); from one draw of z if the prior is learnt."""


@runtime_checkable
class Denoiser(Protocol):
    """A coder that may be trained to undo a corruption. `corruption`: None if it is not."""

    corruption: Any

    def repair(self, x: Tensor) -> Repair:
        """Corrupt images (B, C, H, W) as in training and reconstruct them. Noise: torch's global generator."""


class Reading(NamedTuple):
    """Output of a classifier: the features (B, D) before its last layer, and log p(label | image) in nats (B, M)."""

    features: Tensor
    log_probs: Tensor


@runtime_checkable
class Classifier(Protocol):
    """A model that predicts the class of an image, out of M. Its objective's terms are "loss" and "accuracy"."""

    def read(self, x: Tensor) -> Reading:
        """Images (B, C, H, W) -> features (B, D) and log-probabilities (B, M), nats."""


@runtime_checkable
class Pushforward(Protocol):
    """A model that draws latents z (B, L) from its prior, N(0, I) or a learnt one, and decodes them to images."""

    def prior(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """n draws of z (n, L) at temperature T. `keywords` are those of `Draw.of`."""

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """z (B, L) -> images (B, C, H, W) in [0, 1]; the expected images if pixels are random given z."""


@runtime_checkable
class Filters(Protocol):
    """A model whose first layer can be drawn as pictures."""

    def filters(self) -> Tensor | None:
        """Weights of the first layer as images (N, C, h, w); None if they are not pictures."""


@runtime_checkable
class Adversarial(Protocol):
    """Two players with their own weights and losses (Goodfellow et al. 2014, arXiv:1406.2661), trained in turns:
    `critic_steps` turns of the discriminator, then one of the generator.
    """

    generator: nn.Module
    discriminator: nn.Module
    critic_steps: int

    def turn(self, player: str, x: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Loss of a player ("generator" or "discriminator") on images x (B, C, H, W), "loss" (B,), and other numbers
        worth plotting, (B,) each. Noise comes from torch's global generator.
        """


def to_steps(x: Tensor, step_channels: int) -> Tensor:
    """Images (B, C, H, W) -> values in generation order (B, T, c): raster order, the channels of a pixel together."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, step_channels)


def from_steps(steps: Tensor, spec: ImageSpec) -> Tensor:
    """Inverse of `to_steps`: (B, T, c) -> (B, C, H, W)."""
    return steps.reshape(len(steps), spec.height, spec.width, spec.channels).permute(0, 3, 1, 2)


def declared(part: Callable[..., Any], name: str, default: Any = False) -> Any:
    """The attribute `name` of a class `part`, or of `functools.partial` of it. It tells a family what it must know
    before the part is built, e.g. that a head models the colours jointly.
    """
    return getattr(part.func if isinstance(part, partial) else part, name, default)


def nearest(name: object, choices: Iterable[str]) -> str:
    """Either "did you mean …?" with the closest choice, or the list of all choices if none is close."""
    options = sorted(choices)
    close = get_close_matches(str(name), options, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(options)}"
