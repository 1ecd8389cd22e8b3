"""What stands in for `sample` and `complete` of an autoencoder, which has no p(x), and the words that say so.

`code=`: a density fitted to its codes after training, then the decoder (`genlab/models/densities.py`). `chain=`, and
completion: denoising repeated (`genlab/models/chains.py`), from an image of uniformly random levels. Not from data: a
chain of a few hundred steps that began at a training image would still resemble it, and pass for a good sample.

The model itself has no such methods, so that training draws no pictures by them and nobody takes them for its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from genlab.codes import Gaussian, support
from genlab.core import Completer, Completion, Draw, RequestError, Sampler, nearest
from genlab.models import Autoencoder
from genlab.models.chains import STEP, denoising_langevin, walkback_chain
from genlab.models.densities import Mixture, fit_gaussian, fit_mixture
from genlab.request.common import at_least, called, data_of, with_progress

CODES, CHAINS = ("gaussian", "gmm"), ("walkback", "langevin")
COMPONENTS, STEPS = 10, 200  # where nothing else is asked for


@dataclass
class FromCodes:
    """Images of codes drawn from a density; `fits` makes codes of the vectors drawn."""

    model: Autoencoder
    density: Mixture
    fits: Callable[[Tensor], Tensor]

    def sample(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """As `core.Sampler`. The temperature is that of the codes and of the pixels given a code."""
        draw = Draw.of(draw, **keywords)
        return self.model.draw(self.codes(n, draw.temperature, draw.generator), draw.generator, draw.temperature)

    def codes(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """(n, L), what the decoder gets."""
        h = self.density.sample(n, temperature=temperature, generator=generator)
        return self.fits(h.to(next(self.model.parameters())))


@dataclass
class FromNoise:
    """Images of a chain of `steps` steps from noise; `score`: of Langevin steps, else corrupting and denoising."""

    model: Autoencoder
    steps: int
    score: bool = False

    @property
    def completion(self) -> str:
        """What its completions are."""
        return (
            f"approximate: chains of {self.steps} steps from noise that corrupt the image, {_renews(self.model)} and "
            "put the known pixels back; not a conditional distribution of the model, which has none"
        )

    def sample(self, n: int, draw: Draw | None = None, **keywords: Any) -> Tensor:
        """As `core.Sampler`. RequestError for a temperature: a chain has no distribution to temper."""
        generator = self._generator(Draw.of(draw, **keywords))
        x = self.noise(n, generator)
        if not self.score:
            return self.model.quantised(self.walked(x, generator))
        corruption: Any = self.model.corruption
        y = denoising_langevin(
            corruption(x, generator)[0], denoise=self.model.denoise, sigma=corruption.sigma, steps=self.steps,
            generator=generator,
        )  # fmt: skip
        return self.model.quantised(self.model.denoise(y))

    def complete(self, x: Tensor, known: Tensor, draw: Draw | None = None, **keywords: Any) -> Completion:
        """As `core.Completer`, but approximate: nothing is weighted. RequestError for a temperature."""
        generator = self._generator(Draw.of(draw, **keywords))
        known = known[:, None].to(next(self.model.parameters()).device)
        x = x.to(known.device)
        start = torch.where(known, self.model.scaled(x), self.noise(len(x), generator))
        filled = self.model.quantised(self.walked(start, generator, known))
        return Completion(torch.where(known, x, filled), None)

    @staticmethod
    def _generator(draw: Draw) -> torch.Generator | None:
        if draw.temperature != 1:
            raise RequestError(f"temperature={draw.temperature:g}: the chain of an autoencoder has none")
        return draw.generator

    def noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Images (n, C, H, W) of uniformly random levels, scaled."""
        spec = self.model.spec
        x = torch.randint(spec.levels, (n, *spec.shape), generator=generator)
        return self.model.scaled(x.to(next(self.model.parameters()).device))

    def walked(self, x: Tensor, generator: torch.Generator | None, known: Tensor | None = None) -> Tensor:
        """The end of a chain of corrupting and denoising."""
        corruption: Any = self.model.corruption
        return walkback_chain(
            x, corrupt=lambda y: corruption(y, generator)[0], renew=partial(self.model.renew, generator=generator),
            steps=self.steps, known=known,
        )  # fmt: skip


def sampler_of(config: DictConfig, model: Any, run: dict[str, Any]) -> tuple[Sampler, str]:
    """(the model, "") if it draws images, else what stands in for it and what it is; a RequestError in one sentence."""
    data = [f"data.{key}={value}" for key, value in config.data.items() if value is not None]
    if isinstance(model, Sampler):
        keys = [f"{key}={config[key]}" for key in ("code", "components", "chain", "steps") if config[key] is not None]
        for given in keys + data:
            raise RequestError(f"{given}: {called(model)} draws images by itself, this is for autoencoders")
        return model, ""
    _check_ways(config, model)
    if config.chain is not None:
        for given in data:
            raise RequestError(f"{given}: chain={config.chain} starts from noise, only code= looks at data")
        return _chain(config, model)
    return _codes(config, model, run)


def completer_of(config: DictConfig, model: Any) -> Completer:
    """The model if it completes images, else what stands in for it; a RequestError otherwise."""
    if isinstance(model, Completer):
        if config.steps is not None:
            raise RequestError(f"steps={config.steps}: {called(model)} completes without a chain of denoising steps")
        if config.particles is not None and model.completion not in ("ordered", "weighted"):
            raise RequestError(f"particles={config.particles}: {called(model)} completes without particles")
        return model
    if model.corruption is None:
        raise RequestError(
            "this autoencoder was trained on clean images and cannot fill in unknown pixels: only a denoising one "
            "(model/corruption=…) can, approximately"
        )
    if config.particles is not None:
        raise RequestError(f"particles={config.particles}: an autoencoder has no likelihood to weigh particles by")
    if config.temperature != 1:
        raise RequestError(f"temperature={config.temperature}: the chain of an autoencoder has none")
    steps = _steps(config)
    return FromNoise(model, steps)


def _check_ways(config: DictConfig, model: Autoencoder) -> None:
    """RequestError unless one way of sampling is asked for, one that this autoencoder has."""
    code, chain = config.code, config.chain
    denoises = model.corruption is not None
    if code is None and chain is None:
        also = ", and chain=walkback|langevin iterates its denoising" if denoises else ""
        raise RequestError(
            "an autoencoder says nothing about how probable a code is: sample code=gaussian|gmm fits a density to the "
            f"codes of its training images{also}"
        )
    if code is not None and chain is not None:
        raise RequestError(f"code={code} and chain={chain} are two ways of sampling: give one of them")
    for key, value, choices in (("code", code, CODES), ("chain", chain, CHAINS)):
        if value is not None and value not in choices:
            raise RequestError(f"{key}={value} is not known: {nearest(str(value), choices)}")
    if config.components is not None and code != "gmm":
        raise RequestError(f"components={config.components}: only code=gmm has components")
    if config.steps is not None and chain is None:
        raise RequestError(f"steps={config.steps}: only chain=walkback|langevin has steps")
    if config.temperature != 1 and code != "gaussian":
        raise RequestError(f"temperature={config.temperature}: only code=gaussian has one, which scales the covariance")
    if chain is not None and not denoises:
        raise RequestError(
            f"chain={chain} repeats denoising, and this autoencoder was trained on clean images: use code=gaussian|gmm"
        )
    if chain == "langevin" and not isinstance(model.corruption, Gaussian):
        raise RequestError(
            "chain=langevin needs the score, which only gaussian corruption teaches; this autoencoder was trained with "
            f"{_corruption(model)}: use chain=walkback"
        )


def _chain(config: DictConfig, model: Autoencoder) -> tuple[FromNoise, str]:
    steps = _steps(config)
    if config.chain == "langevin":
        how = (
            f"{steps} Langevin steps of {STEP} sigma^2 from noise with the learnt score (r(y) - y) / sigma^2 of images "
            f"with noise of sigma={model.corruption.sigma:g}, shown denoised"  # type: ignore[union-attr]
        )
    else:
        how = f"walk-back chains of {steps} steps from noise: corrupt by {_corruption(model)}, {_renews(model)}, again"
    caution = "not a distribution the model has: it has none, and nothing says that the chains have settled"
    return FromNoise(model, steps, config.chain == "langevin"), f" ({how}; {caution})"


def _codes(config: DictConfig, model: Autoencoder, run: dict[str, Any]) -> tuple[FromCodes, str]:
    """Encode the clean training images, fit; how sparse what is drawn is, where codes are sparse."""
    components = 1
    if config.code == "gmm":
        if config.components is not None:
            at_least(config, "components", 1)
        components = config.components or COMPONENTS
    data = data_of(config, run)
    total = len(data.split("train").labels)
    if components > total:
        raise RequestError(f"components={components}: there are only {total} training images to fit them to")
    device = next(model.parameters()).device

    def encode(advance):  # type: ignore[no-untyped-def]
        found = []
        for batch in data.batches("train"):
            found.append(model.encode(batch.images.to(device)).cpu())
            advance(len(batch.index))
        return torch.cat(found)

    with torch.no_grad():
        h = with_progress("encoding", total, encode)
    density = fit_gaussian(h) if config.code == "gaussian" else fit_mixture(h, components, seed=config.seed)
    fits, cut = support(model.code)
    sampler = FromCodes(model, density, fits)
    name = "a Gaussian" if config.code == "gaussian" else f"{components} Gaussians"
    says = [f"codes from {name} fitted to those of {total:,} training images, not a part of the model"]
    says += [] if density.converged else ["EM had not converged"]
    says += [cut] if cut else []
    on = (h != 0).double().mean().item()
    if on < 1:
        trial = sampler.codes(1000, generator=torch.Generator().manual_seed(config.seed))
        says.append(f"{(trial != 0).double().mean().item():.0%} of the units on, {on:.0%} in training images")
    says.append("the expected image rounded" if model.head is None else "pixels drawn from p(x | code)")
    return sampler, f" ({'; '.join(says)})"


def _steps(config: DictConfig) -> int:
    if config.steps is not None:
        at_least(config, "steps", 1)
    return config.steps or STEPS


def _renews(model: Autoencoder) -> str:
    return "take the expected clean image" if model.head is None else "draw a clean image from p(x | corrupted)"


def _corruption(model: Autoencoder) -> str:
    return f"{type(model.corruption).__name__} corruption"
