"""Evaluation of a model on every image of a split: one function for validation, the final test and `genlab eval`.

Every number is a mean over all images of the split, each image counted once. The result depends on the model:

- a likelihood (`core.Likelihood`): bits/dim.
- a GAN (`core.Adversarial`): the losses and scores of both players. They do not measure the quality of samples, so
  there is no number to minimise.
- a classifier (`core.Classifier`): cross entropy, and accuracy with its standard error over images.
- an autoencoder (`core.Coder`): its objective, and statistics of its L units:

      active, mean_activation         of the units of an image; asked_...: the target of the code for it
      dead_units, dead_share          units that are inactive for every image of the split

- any other model: the mean of every term of its objective.

For a model with an amortised posterior (`core.Latent`), there are also statistics of its L latent units:

    rate, distortion                  nats for each image: KL(q(z | x) || p(z)), and -log p(x | z)
    active_units                      units whose posterior mean varies over images by more than 0.01 (Burda et al.
                                      2016, arXiv:1509.00519)
    kl_per_unit                       nats, largest first; under a learnt prior each given the earlier units of one
                                      draw of z

B images in a batch, N in the split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.core import Adversarial, Classifier, Coder, Latent, Likelihood
from genlab.measure.bits import Tally, evaluate, inputs, seed_for
from genlab.system.device import precision_used, true_float32

ACTIVE_VARIANCE = 0.01  # a unit is active if its posterior mean has a larger variance over images

OnBatch = Callable[[int], None] | None  # called with the number of images just evaluated


@dataclass(frozen=True)
class Evaluation:
    """The result for one split.

    `value` is the number to minimise, and `name` its name: `bits_per_dim`, or the mean objective `loss` in nats.
    `value` is None if there is no such number (a GAN). `text` is the line for the user, `details` goes into a JSON
    file, `terms` are the numbers that are worth a curve over training.
    """

    name: str
    value: float | None
    text: str
    details: dict[str, Any]
    terms: dict[str, float]


@torch.no_grad()
@true_float32()
def evaluate_split(
    model: Any, data: Any, split: str, *, weights: str, seed: int, draws: int = 1, on_batch: OnBatch = None
) -> Evaluation:
    """Evaluate the model on every image of a split in float32. Call it on every rank with the same arguments.

    `weights` ("ema" or "raw") is only reported. `seed` determines the noise of models that draw any, so results are the
    same at every call. `draws`: of a bound on the likelihood. Raises RunError if a term is not finite.
    """
    if isinstance(model, Likelihood):
        result = evaluate(
            model, data.batches(split), data.spec, draws=draws, split=split, data=data.name, weights=weights,
            expected=len(data.split(split).labels), seed=seed, on_batch=on_batch,
        )  # fmt: skip
        usage = latent_usage(model, data, split, seed)
        curves = {name: value for name, value in usage.items() if name != "kl_per_unit"}
        return Evaluation(
            "bits_per_dim", result.bits_per_dim, f"bits/dim {result}", {**result.as_dict(), **usage},
            {"bits_per_dim": result.bits_per_dim, **curves},
        )  # fmt: skip
    values, ever_active = _objective_over(model, data, split, seed, on_batch)
    described = {
        "n": len(data.split(split).labels), "split": split, "data": data.name, "weights": weights,
        "precision": precision_used(next(model.parameters())),
    }  # fmt: skip
    if isinstance(model, Adversarial):
        return _of_gan(model, values, described)
    if isinstance(model, Classifier):
        return _of_classifier(values, described)
    if ever_active is not None:
        return _of_coder(model, values, ever_active, described)
    terms = _means(values)
    text = f"loss {terms['loss']:.4f} nats ({described['n']:,} images)"
    return Evaluation("loss", terms["loss"], text, {**terms, **described}, terms)


@torch.no_grad()
@true_float32()
def latent_usage(model: Any, data: Any, split: str, seed: int) -> dict[str, Any]:
    """How a `core.Latent` uses its units on a split, over all processes; an empty dict for another model."""
    if not isinstance(model, Latent):
        return {}
    device = next(model.parameters()).device  # type: ignore[attr-defined]
    unit_sums = torch.zeros(3, model.latent_dim, dtype=torch.double)  # of the posterior mean, its square, and the KL
    image_sums = torch.zeros(3, dtype=torch.double)  # of the rate, the distortion, and 1
    for batch in data.batches(split):
        seed_for(seed, batch)
        x, context = inputs(model, batch, device)
        mean = model.posterior(x, context)[0].double().cpu()
        terms = model.objective(x, context)  # type: ignore[attr-defined]
        kl = model.kl_per_unit(x, context).double().cpu()
        unit_sums += torch.stack([mean.sum(0), mean.square().sum(0), kl.sum(0)])
        image_sums += torch.stack([kl.sum(), terms["distortion"].double().sum().cpu(), torch.tensor(float(len(x)))])
    unit_sums, image_sums = sum(_gathered(unit_sums)), sum(_gathered(image_sums))
    (rate, distortion), n = image_sums[:2] / image_sums[2], image_sums[2]
    mean, square, kl = unit_sums / n
    return {
        "rate": rate.item(), "distortion": distortion.item(),
        "active_units": int((square - mean.square() > ACTIVE_VARIANCE).sum()),
        "kl_per_unit": [round(value, 4) for value in kl.sort(descending=True).values.tolist()],
    }  # fmt: skip


def _of_gan(model: Any, values: dict[str, Tensor], described: dict[str, Any]) -> Evaluation:
    # The loss of one player depends on the strength of the other, so neither is a number to minimise.
    terms = _means(values)
    conditioning = getattr(model, "conditioning", "none")
    listed = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in terms.items())
    details = {"kind": "adversarial", **terms, **described, "conditioning": conditioning}
    return Evaluation("none", None, f"{listed} ({described['n']:,} images)", details, terms)


def _of_classifier(values: dict[str, Tensor], described: dict[str, Any]) -> Evaluation:
    terms, n = _means(values), described["n"]
    error = math.sqrt(terms["accuracy"] * (1 - terms["accuracy"]) / n)
    text = f"accuracy {terms['accuracy']:.2%} ± {error:.2%}, cross entropy {terms['loss']:.4f} nats ({n:,} images)"
    details = {"kind": "classification", **terms, "standard_error": error, **described}
    return Evaluation("loss", terms["loss"], text, details, terms)


def _of_coder(model: Any, values: dict[str, Tensor], ever_active: Tensor, described: dict[str, Any]) -> Evaluation:
    """`ever_active` (L,) bool: units that are active for at least one image."""
    terms, n = _means(values), described["n"]
    dead, units = int((~ever_active).sum()), len(ever_active)
    terms |= {f"asked_{name}": target for name, target in model.targets.items()}
    terms |= {"dead_units": dead, "dead_share": dead / units}
    error = (values["reconstruction"].std() / math.sqrt(n)).item() if n > 1 else 0.0
    text = (
        f"reconstruction {terms['reconstruction']:.4f} ± {error:.4f} {model.measured_in} ({n:,} images), "
        f"squared error {terms['squared_error']:.5f} a value, {terms['active']:.1%} of {units} units on, {dead} dead"
    )
    kind = {"kind": "reconstruction", "measured_in": model.measured_in, "standard_error": error, "units": units}
    return Evaluation("loss", terms["loss"], text, {**terms, **kind, **described}, terms)


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.mean().item() for name, value in values.items()}


def _objective_over(
    model: Any, data: Any, split: str, seed: int, on_batch: OnBatch
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Terms of the objective for all images of all processes, each (N,) float64 in the order of the file; and for a
    coder the units that were active at least once, (L,) bool.
    """
    device = next(model.parameters()).device
    tallies: dict[str, Tally] = {}
    ever_active: Tensor | None = None
    for batch in data.batches(split):
        seed_for(seed, batch)
        x, context = inputs(model, batch, device)
        for name, term in _objective(model, x, context).items():
            tallies.setdefault(name, Tally(name)).add(batch.index, term)
        if isinstance(model, Coder):
            active = (model.encode(x, context=context).abs() > model.threshold).any(0).cpu()
            ever_active = active if ever_active is None else ever_active | active
        if on_batch:
            on_batch(len(batch.index))
    # A process without a batch gets the names of the terms from the other processes.
    names: list[str] = next(filter(None, _gathered(list(tallies))), [])
    expected = len(data.split(split).labels)
    values = {name: tallies.get(name, Tally(name)).gathered(expected)[1] for name in names}
    by_process = [units for units in _gathered(ever_active) if units is not None]
    return values, torch.stack(by_process).any(0) if by_process else None


def _objective(model: Any, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    """The terms of a model's objective, or of both players of a GAN, each (B,)."""
    if not isinstance(model, Adversarial):
        return model.objective(x, context)
    terms = model.turn("generator", x, context) | model.turn("discriminator", x, context)
    del terms["loss"]
    return terms


def _gathered(value: Any) -> list[Any]:
    """The values of all processes, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
