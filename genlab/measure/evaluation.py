"""Validation and the final test are one function, so that a curve and a table can never disagree about a number.

A likelihood is judged by its bits/dim. Anything else by its objective, every term of which is a mean over all images of
the split, each image counted once. A GAN has no number to be judged by: its players' losses and scores are such means,
worth a curve, and how good its samples are is another question. An autoencoder (`core.Coder`) also by what its L units
do:

    active, mean_activation                of an image's units; asked_…: what the code was asked for
    dead_units, dead_share                 units that are off on every image of the split

a classifier (`core.Classifier`) by its cross entropy, and by its accuracy, whose standard error is over images;
and a model with an amortised posterior (`core.Latent`) by how it uses its L units:

    rate, distortion                       nats an image: KL of q(z | x) from the prior, -log p(x | z)
    active_units                           whose mean of q varies over images by more than 0.01 (Burda et al. 2016)
    kl_per_unit                            nats, the largest first
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
from genlab.data.batches import context_of
from genlab.measure.bits import Tally, evaluate, seed_for
from genlab.system.device import moved, precision_used, true_float32

ACTIVE = 0.01  # variance over images of the mean of q, above which a unit is active


@dataclass(frozen=True)
class Evaluation:
    """A number to minimise, under its name: `bits_per_dim` of a likelihood, else the mean objective `loss` in nats;
    None where there is no such number (a GAN).

    `terms`: every number of the split that is worth a curve. `text`: the line for the user. `details`: for a JSON file.
    """

    name: str
    value: float | None
    text: str
    details: dict[str, Any]
    terms: dict[str, float]


@torch.no_grad()
@true_float32()
def evaluate_split(
    model: Any, data: Any, split: str, *, weights: str, seed: int, on_batch: Callable[[int], None] | None = None
) -> Evaluation:
    """The model on every image of a split, in float32; call it on every rank with the same arguments.

    Models that draw noise draw the same at every call. RunError when a term is not finite.
    """
    expected = len(data.split(split).labels)
    if isinstance(model, Likelihood):
        result = evaluate(
            model, data.batches(split), data.spec, split=split, data=data.name, weights=weights,
            expected=expected, seed=seed, on_batch=on_batch,
        )  # fmt: skip
        value, latent = result.bits_per_dim, latent_usage(model, data, split, seed)
        terms = {"bits_per_dim": value, **{name: each for name, each in latent.items() if name != "kl_per_unit"}}
        return Evaluation("bits_per_dim", value, f"bits/dim {result}", {**result.as_dict(), **latent}, terms)
    values, ever_on = _over(model, data, split, expected, seed, on_batch)
    terms = {name: each.mean().item() for name, each in values.items()}
    n = expected
    described = {"n": n, "split": split, "data": data.name, "weights": weights}
    described["precision"] = precision_used(next(model.parameters()))
    if isinstance(model, Adversarial):
        # The players' losses are relative to each other: neither says how good the samples are.
        details = {"kind": "adversarial", **terms, **described, "conditioning": getattr(model, "conditioning", "none")}
        listed = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in terms.items())
        return Evaluation("none", None, f"{listed} ({n:,} images)", details, terms)
    if isinstance(model, Classifier):
        error = math.sqrt(terms["accuracy"] * (1 - terms["accuracy"]) / n)
        text = f"accuracy {terms['accuracy']:.2%} ± {error:.2%}, cross entropy {terms['loss']:.4f} nats ({n:,} images)"
        return Evaluation(
            "loss", terms["loss"], text,
            {"kind": "classification", **terms, "standard_error": error, **described}, terms,
        )  # fmt: skip
    if ever_on is None:
        details = {"loss": terms["loss"], **terms, **described}
        return Evaluation("loss", terms["loss"], f"loss {terms['loss']:.4f} nats ({n:,} images)", details, terms)
    dead, units = int((~ever_on).sum()), len(ever_on)
    terms |= {f"asked_{name}": asked for name, asked in model.asked.items()}
    terms |= {"dead_units": dead, "dead_share": dead / units}
    error = (values["reconstruction"].std() / math.sqrt(n)).item() if n > 1 else 0.0
    what = {"kind": "reconstruction", "measured_in": model.measured_in, "standard_error": error, "units": units}
    text = (
        f"reconstruction {terms['reconstruction']:.4f} ± {error:.4f} {model.measured_in} ({n:,} images), "
        f"squared error {terms['squared_error']:.5f} a value, {terms['active']:.1%} of {units} units on, {dead} dead"
    )
    return Evaluation("loss", terms["loss"], text, {**terms, **what, **described}, terms)


@torch.no_grad()
@true_float32()
def latent_usage(model: Any, data: Any, split: str, seed: int) -> dict[str, Any]:
    """How a `core.Latent` uses its units on a split, over all processes; nothing for another model."""
    if not isinstance(model, Latent):
        return {}
    device = next(model.parameters()).device  # type: ignore[attr-defined]
    units = torch.zeros(3, model.latent_dim, dtype=torch.double)  # sums of the mean, its square, the KL
    image = torch.zeros(3, dtype=torch.double)  # sums of the rate, the distortion, and 1
    for batch in data.batches(split):
        seed_for(seed, batch)
        x, context = moved(batch.images, device), context_of(model, batch)
        context = None if context is None else moved(context, device)
        mean, log_var = (part.double().cpu() for part in model.posterior(x, context))
        kl = (mean.square() + log_var.exp() - 1 - log_var) / 2
        terms = model.objective(x, context)  # type: ignore[attr-defined]
        units += torch.stack([mean.sum(0), mean.square().sum(0), kl.sum(0)])
        image += torch.stack([kl.sum(), terms["distortion"].double().sum().cpu(), torch.tensor(float(len(x)))])
    units, image = sum(_of_all(units)), sum(_of_all(image))
    (rate, distortion), n = image[:2] / image[2], image[2]
    mean, square, kl = units / n
    return {
        "rate": rate.item(), "distortion": distortion.item(),
        "active_units": int((square - mean.square() > ACTIVE).sum()),
        "kl_per_unit": [round(each, 4) for each in kl.sort(descending=True).values.tolist()],
    }  # fmt: skip


def _over(
    model: Any, data: Any, split: str, expected: int, seed: int, on_batch: Callable[[int], None] | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Terms of the objective of every image of all processes, each (N,) float64 in the order of the file; and which
    units of a coder were ever on, (L,) bool.
    """
    device = next(model.parameters()).device
    tallies: dict[str, Tally] = {}
    ever_on: Tensor | None = None
    for batch in data.batches(split):
        seed_for(seed, batch)
        x, context = moved(batch.images, device), context_of(model, batch)
        context = None if context is None else moved(context, device)
        terms = _objective(model, x, context)
        for name, each in terms.items():
            tallies.setdefault(name, Tally(name)).add(batch.index, each)
        if isinstance(model, Coder):
            on = (model.encode(x, context=context).abs() > model.on).any(0).cpu()
            ever_on = on if ever_on is None else ever_on | on
        if on_batch:
            on_batch(len(batch.index))
    # A process without a batch of its own learns from the others which terms there are.
    names: list[str] = next(filter(None, _of_all(list(tallies))), [])
    values = {name: tallies.get(name, Tally(name)).gathered(expected)[1] for name in names}
    every = [on for on in _of_all(ever_on) if on is not None]
    return values, torch.stack(every).any(0) if every else None


def _objective(model: Any, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    """The terms of a model's objective, or of both players'."""
    if not isinstance(model, Adversarial):
        return model.objective(x, context)
    terms = model.turn("generator", x, context) | model.turn("discriminator", x, context)
    del terms["loss"]
    return terms


def _of_all(own: Any) -> list[Any]:
    """What every process has, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts
