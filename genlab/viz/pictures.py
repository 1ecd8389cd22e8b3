"""The pictures of `genlab show`, which `genlab train` also draws at its end: one PNG for each name in `PICTURES`.

Of every model that can show the weights of its first layer (`core.Filters`):

    filters      the weights as images, each scaled by its own largest magnitude; mid-grey is zero

Of every autoencoder and latent model (`core.Coder`):

    atoms        what each unit of the code adds to an image
    activating   the images for which the most varying units are largest, beside the unit's atom
    codes        histogram of the values of the code
    traversal    decoded images while one unit goes through its range in the data
    plane        two numbers for each image, coloured by class: the code, or its first two principal components
    between      decoded codes on straight lines between the codes of two images
    sparsity     curves over training: the share of active units, and the mean activation

A conditional model decodes the code of an image under the context of that image. Codes that belong to no image are
decoded under the context of the first image.

Of every model with an amortised posterior (`core.Latent`):

    units        KL of every unit's posterior from the prior, in nats: the information of the unit on an image
    manifold     for a model with two units: decoded images at the quantiles of the prior

Of every model that makes images from normal numbers (`core.Pushforward`: latent Gaussian models, flows, GANs):

    walk         interpolation between two draws of the prior, along the noise that it makes them from

Of every autoregressive model (`generation.py`, `timing.py`), of every model with a bound (`bounds.py`), and of every
model on data whose distribution is known (`density.py`):

    receptive_field  which pixels reach a pixel, layer by layer, and which earlier ones never do
    attention        where a pixel looks, for every layer and head
    order            images as they are generated, and the bits that each pixel takes
    timing           seconds an image with and without the cache; only if it is asked for by name
    bounds           bits per dimension over the number of draws
    density          the distribution of the model beside the true one

Shapes: N images of the split (N, C, H, W), codes (N, L) of L units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.build.models import model_name
from genlab.core import Coder, Filters, Latent, Likelihood, Pushforward, RequestError
from genlab.viz import plots, representations
from genlab.viz.bounds import bounds
from genlab.viz.density import density, has_density
from genlab.viz.generation import attention, is_autoregressive, order, receptive_field
from genlab.viz.grids import save_grid, signed, to_uint8
from genlab.viz.subject import Picture, Save, Subject, figure, labelled, spec_8_bit, to_8_bit
from genlab.viz.timing import timing

MAX_TILES = 100  # units in a picture that has one tile for each
STEPS = 10  # images of a traversal or an interpolation
PAIRS = 8  # interpolations in one picture
MANIFOLD_SIDE = 20  # images in a row of the manifold


@torch.no_grad()
def draw(subject: Subject, names: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Write the pictures of these names into `folder`, except those that the model does not have.

    Returns the files written and, for the pictures that were left out, the reasons, each once.
    """
    written, reasons = [], []
    for name in names:
        path = folder / f"{name}.png"
        try:
            PICTURES[name](subject)(path)
            written.append(str(path))
        except RequestError as error:
            reasons.append(str(error))
    return written, list(dict.fromkeys(reasons))


def everything(model: Any, data: Any = None) -> list[str]:
    """Names of the pictures that a model of this kind may have, on this data."""
    return [
        *GENERAL,
        *(GENERATION if is_autoregressive(model) else ()),
        *(("bounds",) if isinstance(model, Likelihood) and not model.exact else ()),
        *(("density",) if has_density(data) else ()),
        *(LATENT if isinstance(model, Latent) else ()),
        *(PRIOR if isinstance(model, Pushforward) else ()),
    ]


def filters(subject: Subject) -> Save:
    """Weights of the first layer."""
    model = subject.model
    weights = model.filters() if isinstance(model, Filters) else None
    if weights is None:
        raise RequestError(f"{model_name(model)} has no filters to show: its first layer cannot be drawn as pictures")
    return _signed_tiles(weights[: subject.units or MAX_TILES])


def atoms(subject: Subject) -> Save:
    """The atom of each unit: what the unit adds to an image."""
    coder = _coder(subject)
    units = torch.arange(min(subject.units or MAX_TILES, coder.latent_dim))
    return _signed_tiles(representations.atoms(coder, units, subject.first_context))


def activating(subject: Subject) -> Save:
    """A row for each unit: its atom, then the images for which it is largest. Grey where the unit is exactly 0."""
    coder, x, h = _coder(subject), subject.images, subject.codes
    units = subject.most_varying_units
    best = representations.most_activating(h, units)  # (U, 9)
    images = to_uint8(x[best.flatten().to(x.device)], coder.spec).long().view(*best.shape, *x.shape[1:])
    images[h[best, units[:, None]] == 0] = 128
    sheet = torch.cat([signed(representations.atoms(coder, units, subject.first_context))[:, None], images], 1)
    rows = [f"unit {u}\nat most {h[:, u].max():.3g}" for u in units.tolist()]
    columns = ["adds", *(str(i + 1) for i in range(best.shape[1]))]
    return labelled(
        sheet, rows, columns, below=f"images of the {subject.split} split at which a unit is largest, largest first"
    )


def codes(subject: Subject) -> Save:
    """Histogram of the values of the code."""
    _coder(subject)
    return figure(plots.histogram(subject.codes, subject.split))


def traversal(subject: Subject) -> Save:
    """A row for each unit: the decoded code of the first image, then decoded codes with other values of the unit.

    The values go from the unit's smallest to its largest in the split.
    """
    coder, h = _coder(subject), subject.codes
    units = subject.most_varying_units.tolist()
    lows, highs = h.amin(0), h.amax(0)
    images = []
    for u in units:
        values = torch.cat([h[:1, u], torch.linspace(lows[u].item(), highs[u].item(), STEPS)])
        images.append(representations.traversal(coder, h[0], u, values, subject.first_context))
    rows = [f"unit {u}\n{lows[u]:.2f} … {highs[u]:.2f}" for u in units]
    columns = ["as it is", "least", *[""] * (STEPS - 2), "largest"]
    below = f"first image of the {subject.split} split, with one unit from its least to its largest value in the split"
    return labelled(to_8_bit(torch.stack(images)), rows, columns, below=below)


def plane(subject: Subject) -> Save:
    """A point for each image."""
    _coder(subject)
    points, variance_share = representations.plane(subject.codes)
    labels = subject.data.split(subject.split).labels.cpu()
    return figure(plots.scatter(points, variance_share, labels, subject.data.class_names, subject.split))


def between(subject: Subject) -> Save:
    """A row for each pair of images: the first, decoded codes on the line between their codes, the second.

    All codes of a row are decoded under the context of the first image.
    """
    coder, x, context = _coder(subject), subject.images[: 2 * PAIRS], subject.context
    if len(x) < 2:
        raise RequestError(f"the {subject.split} split has a single image, and an interpolation needs two")
    x = x[: len(x) // 2 * 2]
    h = subject.codes[: len(x)]
    t = torch.linspace(0, 1, STEPS)[:, None]
    decoded = []
    for i in range(0, len(x), 2):
        line = h[i] + t * (h[i + 1] - h[i])
        decoded.append(representations.decode_all(coder, line, None if context is None else context[i : i + 1]))
    images = to_uint8(x.cpu(), coder.spec).long()
    sheet = torch.cat([images[::2, None], to_8_bit(torch.stack(decoded)), images[1::2, None]], 1)
    return labelled(
        sheet, [""] * len(sheet), ["image", "decoded", *[""] * (STEPS - 2), "decoded", "image"],
        below=f"codes on the straight line between two images of the {subject.split} split",
    )  # fmt: skip


def sparsity(subject: Subject) -> Save:
    """Curves of the run's metrics.csv."""
    _coder(subject)
    return figure(plots.sparsity(subject.metrics))


def units(subject: Subject) -> Save:
    """A bar for each unit, the largest first."""
    model = _latent(subject)
    return figure(plots.bars(representations.kl_per_unit(model, subject.images, subject.context), subject.split))


def manifold(subject: Subject) -> Save:
    """Images decoded on a grid of quantiles of the prior: of the first unit, and of the second given the first."""
    model = _latent(subject)
    if model.latent_dim != 2 or not isinstance(model, Coder):
        raise RequestError(f"a manifold needs model.latent_dim=2, and this model has {model.latent_dim}")
    quantiles = torch.special.ndtri((torch.arange(MANIFOLD_SIDE) + 0.5) / MANIFOLD_SIDE)
    noise = torch.cartesian_prod(-quantiles, quantiles).flip(1)  # the second unit grows upwards
    z = representations.from_noise(model, noise.to(next(subject.model.parameters())))
    sheet = to_8_bit(representations.decode_all(model, z, subject.first_context))
    return lambda path: save_grid(path, sheet, spec_8_bit(sheet), MANIFOLD_SIDE)


def walk(subject: Subject) -> Save:
    """A row for each pair of draws of the prior; in a class-conditional model, row i is of class i."""
    model = subject.model
    if not isinstance(model, Pushforward):
        raise RequestError(f"{model_name(model)} does not make images from normal numbers: there is no walk")
    conditioning = getattr(model, "conditioning", "none")
    if conditioning == "image":
        raise RequestError("a walk is not possible for a model that is conditioned on a second image")
    ends = model.prior(2 * PAIRS, generator=torch.Generator().manual_seed(0))
    rows, labels = [""] * PAIRS, None
    if conditioning == "label":
        labels = torch.arange(PAIRS) % model.spec.classes  # type: ignore[attr-defined]
        rows = [subject.data.class_names[i] for i in labels.tolist()]
    images = representations.prior_interpolation(model, ends[:PAIRS], ends[PAIRS:], STEPS, labels)
    return labelled(
        to_8_bit(images).unflatten(0, (PAIRS, STEPS)), rows, ["a draw", *[""] * (STEPS - 2), "another"],
        below="noise on the great circle between two draws of the prior: each picture is a draw, too",
    )  # fmt: skip


GENERAL: dict[str, Picture] = {
    "filters": filters, "atoms": atoms, "activating": activating, "codes": codes, "traversal": traversal,
    "plane": plane, "between": between, "sparsity": sparsity,
}  # fmt: skip
GENERATION: dict[str, Picture] = {"receptive_field": receptive_field, "attention": attention, "order": order}
LATENT: dict[str, Picture] = {"units": units, "manifold": manifold}
PRIOR: dict[str, Picture] = {"walk": walk}
PICTURES: dict[str, Picture] = {
    **GENERAL, **GENERATION, "timing": timing, "bounds": bounds, "density": density, **LATENT, **PRIOR,
}  # fmt: skip


def _latent(subject: Subject) -> Any:
    """The model, which must be a `core.Latent`."""
    if not isinstance(subject.model, Latent):
        raise RequestError(f"{model_name(subject.model)} has no posterior over latents to show")
    return subject.model


def _coder(subject: Subject) -> Any:
    """The model, which must be a `core.Coder`."""
    if not isinstance(subject.model, Coder):
        names = "|".join(["filters", *(PRIOR if isinstance(subject.model, Pushforward) else ())])
        raise RequestError(f"{model_name(subject.model)} has no code to show: what={names} is all there is of it")
    return subject.model


def _signed_tiles(weights: Tensor) -> Save:
    """A grid of weights (N, C, h, w), in which mid-grey is zero."""
    return lambda path: save_grid(path, signed(weights), spec_8_bit(weights))
