"""Choose the object that draws the images of a request: the model itself, or for an autoencoder the sampler requested.

An autoencoder has no p(x), so it neither samples nor completes by itself. `code=` fits a density to the codes of its
training images (`genlab/models/code_sampler.py`). `chain=` repeats denoising (`genlab/models/chain_sampler.py`).
Completion by an autoencoder is such a chain as well. The verb's output names the sampler.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from genlab.build.models import model_name
from genlab.codes import Gaussian, support
from genlab.core import Completer, RequestError, Sampler, nearest
from genlab.models import Autoencoder
from genlab.models.chain_sampler import ChainSampler
from genlab.models.chains import STEP
from genlab.models.code_sampler import CodeSampler
from genlab.models.densities import fit_gaussian, fit_mixture
from genlab.request.checkpoints import open_data
from genlab.request.numbers import check_at_least
from genlab.request.progress import with_progress

CODES, CHAINS = ("gaussian", "gmm"), ("walkback", "langevin")
COMPONENTS, STEPS = 10, 200  # the defaults


def sampler_of(config: DictConfig, model: Any, run: dict[str, Any]) -> tuple[Sampler, str | None]:
    """(the model, None) if it draws images itself; for an autoencoder (a sampler, a description of it in words).

    Raises RequestError for keys of autoencoders with another model, and for a choice that is not possible.
    """
    if isinstance(model, Sampler):
        for key in ("code", "components", "chain", "steps"):
            if config[key] is not None:
                raise RequestError(
                    f"{key}={config[key]}: {model_name(model)} draws images by itself, this is for autoencoders"
                )
        return model, None
    _check_choice(config, model)
    return _chain_sampler(config, model) if config.chain is not None else _code_sampler(config, model, run)


def check_data_is_read(config: DictConfig, model: Any) -> None:
    """Raise RequestError for `data.…` in a request to draw images that reads no data: only `code=` does."""
    for key, value in config.data.items():
        if value is not None and isinstance(model, Sampler):
            raise RequestError(
                f"data.{key}={value}: {model_name(model)} draws images by itself, this is for autoencoders"
            )
        if value is not None and config.chain is not None and config.code is None:
            raise RequestError(f"data.{key}={value}: chain={config.chain} starts from noise, only code= reads data")


def completer_of(config: DictConfig, model: Any) -> Completer:
    """The model if it completes images, else chains of a denoising autoencoder.

    Raises RequestError for any other model, and for `particles=`, `steps=` or `temperature=` where they have no
    meaning.
    """
    if isinstance(model, Completer):
        if config.steps is not None:
            raise RequestError(
                f"steps={config.steps}: {model_name(model)} completes without a chain of denoising steps"
            )
        if config.particles is not None and model.completion not in ("ordered", "weighted"):
            raise RequestError(f"particles={config.particles}: {model_name(model)} completes without particles")
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
    return ChainSampler(model, _steps(config))


def _check_choice(config: DictConfig, model: Autoencoder) -> None:
    """Raise RequestError unless the request names exactly one way of sampling, and this autoencoder can do it."""
    code, chain = config.code, config.chain
    denoises = model.corruption is not None
    if code is None and chain is None:
        also = ", and chain=walkback|langevin iterates its denoising" if denoises else ""
        raise RequestError(
            "an autoencoder has no probability of codes: sample code=gaussian|gmm fits a density to the "
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
        raise RequestError(f"temperature={config.temperature}: only code=gaussian has one")
    if chain is not None and not denoises:
        raise RequestError(
            f"chain={chain} repeats denoising, and this autoencoder was trained on clean images: use code=gaussian|gmm"
        )
    if chain == "langevin" and not isinstance(model.corruption, Gaussian):
        raise RequestError(
            "chain=langevin needs the score, which is learnt only with gaussian corruption; this autoencoder was "
            f"trained with {_corruption_name(model)}: use chain=walkback"
        )


def _chain_sampler(config: DictConfig, model: Autoencoder) -> tuple[ChainSampler, str]:
    sampler = ChainSampler(model, _steps(config), langevin=config.chain == "langevin")
    if sampler.langevin:
        method = (
            f"{sampler.steps} Langevin steps of {STEP} sigma^2 from noise with the learnt score (r(y) - y) / sigma^2 "
            f"of images with noise of sigma={model.corruption.sigma:g}, shown denoised"  # type: ignore[union-attr]
        )
    else:
        method = (
            f"walk-back chains of {sampler.steps} steps from noise: corrupt by {_corruption_name(model)}, "
            f"{sampler.denoising}, again"
        )
    caution = "not a distribution the model has: it has none, and nothing says that the chains have settled"
    return sampler, f"{method}; {caution}"


def _code_sampler(config: DictConfig, model: Autoencoder, run: dict[str, Any]) -> tuple[CodeSampler, str]:
    """Fit the density that `code=` names to the codes of the clean training images."""
    components = 1
    if config.code == "gmm":
        if config.components is not None:
            check_at_least(config, "components", 1)
        components = config.components or COMPONENTS
    data = open_data(config, run)
    total = len(data.split("train").labels)
    if components > total:
        raise RequestError(f"components={components}: there are only {total} training images to fit them to")
    device = next(model.parameters()).device

    def encode(advance):  # type: ignore[no-untyped-def]
        codes = []
        for batch in data.batches("train"):
            codes.append(model.encode(batch.images.to(device)).cpu())
            advance(len(batch.index))
        return torch.cat(codes)

    with torch.no_grad():
        h = with_progress("encoding", total, encode)
    density = fit_gaussian(h) if config.code == "gaussian" else fit_mixture(h, components, seed=config.seed)
    to_codes, limits = support(model.code)
    sampler = CodeSampler(model, density, to_codes)
    name = "a Gaussian" if config.code == "gaussian" else f"{components} Gaussians"
    notes = [f"codes from {name} fitted to those of {total:,} training images, not a part of the model"]
    notes += [] if density.converged else ["EM had not converged"]
    notes += [limits] if limits else []
    active = (h != 0).double().mean().item()
    if active < 1:  # sparse codes: report if the drawn codes are as sparse
        trial = sampler.codes(1000, generator=torch.Generator().manual_seed(config.seed))
        notes.append(f"{(trial != 0).double().mean().item():.0%} of the units on, {active:.0%} in training images")
    notes.append("the expected image rounded" if model.head is None else "pixels drawn from p(x | code)")
    return sampler, "; ".join(notes)


def _steps(config: DictConfig) -> int:
    if config.steps is not None:
        check_at_least(config, "steps", 1)
    return config.steps or STEPS


def _corruption_name(model: Autoencoder) -> str:
    return f"{type(model.corruption).__name__} corruption"
