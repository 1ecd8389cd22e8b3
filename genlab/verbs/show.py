"""`genlab show`: pictures of what a model has learnt, one PNG each; `train` puts them into the run folder at its end.

    filters      weights of the first layer as images, each by its own largest: mid-grey is zero
    atoms        what each unit of the code adds to an image
    activating   images at which the liveliest units are largest, beside the unit's atom
    codes        histogram of the values of the code
    traversal    the decoded image while one unit goes through the range it has in the data
    plane        two numbers an image, coloured by class: the code, or its first two principal components
    between      decoded codes on the straight lines between those of two images
    sparsity     curves over training: how much of the code was in use

All but the first and the last are of any `core.Coder`; a conditional one decodes the code of an image given what the
image was given, and a code of no image given what the first image was. Of a model with an amortised
posterior (`core.Latent`) also:

    units        KL of every unit's posterior from the prior, nats: which units say something of an image
    manifold     of two units: decoded images at the quantiles of the prior

Of a model that makes images from normal numbers (`core.Pushforward`: latent Gaussian models, flows, GANs):

    walk         images on the way between two draws of the prior
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.build import find_checkpoint
from genlab.build.models import model_name
from genlab.core import Coder, Filters, ImageSpec, Latent, Pushforward, RequestError, nearest
from genlab.data.batches import Batch, context_of
from genlab.data.module import SPLITS
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least
from genlab.request.outputs import writable
from genlab.request.progress import with_progress
from genlab.viz import looks, plots, save_grid, signed, to_uint8

TILES, ROWS = 100, 12  # units in a picture of one tile each, of a row each
STEPS = 10  # of a traversal, of a way between two images
PAIRS, SIDE = 8, 20  # of images to go between, of images in a row of a manifold
Save = Callable[[Path], None]


@dataclass
class Subject:
    """A model and the split of its data to look at it with. `units`: how many; `metrics`: of its run."""

    model: Any
    data: Any
    split: str
    metrics: Path
    units: int | None = None

    @property
    def images(self) -> Tensor:
        """(N, C, H, W)."""
        return self._whole.images

    @property
    def context(self) -> Tensor | None:
        """What each of them is conditioned on (N, …), if the model wants to know."""
        return context_of(self.model, self._whole)

    @property
    def one(self) -> Tensor | None:
        """The context of the first image (1, …): what codes that are of no image are decoded with."""
        return None if self.context is None else self.context[:1]

    @cached_property
    def _whole(self) -> Batch:
        return self.data.first(self.split, len(self.data.split(self.split).labels))

    @cached_property
    def codes(self) -> Tensor:
        """(N, L)."""
        x = self.images
        return with_progress("encoding", len(x), lambda advance: looks.codes(self.model, x, advance, self.context))

    @property
    def liveliest(self) -> Tensor:
        """The units that get a row, those that vary most first."""
        found = looks.liveliest(self.codes, self.units or ROWS)
        if not len(found):
            raise RequestError(f"no unit of the code changes over the {self.split} images: there is nothing to show")
        return found


def command(request: Request) -> None:
    """Check everything, then draw picture by picture."""
    config, _ = split_hydra(request.config())
    if config.what != "all" and config.what not in ALL:
        choices = ["all", *ALL]
        raise RequestError(f"what={config.what} is not known: {nearest(str(config.what), choices)}")
    if config.split not in SPLITS:
        raise RequestError(f"split={config.split} does not exist: {nearest(str(config.split), SPLITS)}")
    if config.units is not None:
        check_at_least(config, "units", 1)
    folder = Path(str(config.out)).expanduser()
    for name in ALL if config.what == "all" else (str(config.what),):
        writable("out", str(folder / f"{name}.png"), ".png")
    model, run, _ = open_model(config, nn.Module, "be shown")
    names = everything(model) if config.what == "all" else [str(config.what)]
    metrics = find_checkpoint(config.ckpt).parent.parent / "metrics.csv"
    subject = Subject(model, open_data(config, run), str(config.split), metrics, config.units)
    drawn, left_out = draw(subject, names, folder)
    if not drawn:
        raise RequestError("; ".join(left_out))
    print("\n".join(drawn + [f"left out: {why}" for why in left_out]))


@torch.no_grad()
def draw(subject: Subject, names: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Write those of the pictures that the model has something for: (files written, why others were left out)."""
    drawn, left_out = [], []
    for name in names:
        try:
            ALL[name](subject)(folder / f"{name}.png")
            drawn.append(str(folder / f"{name}.png"))
        except RequestError as error:
            left_out.append(str(error))
    return drawn, list(dict.fromkeys(left_out))


def filters(subject: Subject) -> Save:
    """Weights of the first layer."""
    model = subject.model
    found = model.filters() if isinstance(model, Filters) else None
    if found is None:
        raise RequestError(f"{model_name(model)} has no filters to show: its first layer makes no picture")
    return _tiles(found[: subject.units or TILES])


def atoms(subject: Subject) -> Save:
    """What every unit adds."""
    coder = _coder(subject)
    return _tiles(looks.atoms(coder, torch.arange(min(subject.units or TILES, coder.latent_dim)), subject.one))


def activating(subject: Subject) -> Save:
    """A row a unit: its atom, then the images at which it is largest; where it is zero there is none."""
    coder, x, h = _coder(subject), subject.images, subject.codes
    units = subject.liveliest
    best = looks.most_activating(h, units)  # (U, 9)
    pictures = to_uint8(x[best.flatten().to(x.device)], coder.spec).long().view(*best.shape, *x.shape[1:])
    off = h[best, units[:, None]] == 0
    pictures[off] = 128
    sheet = torch.cat([signed(looks.atoms(coder, units, subject.one))[:, None], pictures], 1)
    rows = [f"unit {u}\nat most {h[:, u].max():.3g}" for u in units.tolist()]
    columns = ["adds", *(str(i + 1) for i in range(best.shape[1]))]
    below = f"images of the {subject.split} split at which a unit is largest, largest first"
    return _figure(plots.labelled_grid(sheet.flatten(0, 1), _grey(sheet), rows, columns, below=below))


def codes(subject: Subject) -> Save:
    """Histogram of values."""
    _coder(subject)
    return _figure(plots.histogram(subject.codes, subject.split))


def traversal(subject: Subject) -> Save:
    """A row a unit: the first image of the split as reconstructed, then with the unit from its least to its largest."""
    coder, h = _coder(subject), subject.codes
    units = subject.liveliest.tolist()
    lows, highs = h.amin(0), h.amax(0)
    rows = []
    for u in units:
        values = torch.cat([h[:1, u], torch.linspace(lows[u].item(), highs[u].item(), STEPS)])
        rows.append(looks.traversal(coder, h[0], u, values, subject.one))
    sheet = (torch.stack(rows) * 255).round().clamp(0, 255).long()
    names = [f"unit {u}\n{lows[u]:.2f} … {highs[u]:.2f}" for u in units]
    columns = ["as it is", "least", *[""] * (STEPS - 2), "largest"]
    below = f"first image of the {subject.split} split, with one unit from its least to its largest value in the split"
    return _figure(plots.labelled_grid(sheet.flatten(0, 1), _grey(sheet), names, columns, below=below))


def plane(subject: Subject) -> Save:
    """A point an image."""
    _coder(subject)
    points, kept = looks.plane(subject.codes)
    labels = subject.data.split(subject.split).labels.cpu()
    return _figure(plots.scatter(points, kept, labels, subject.data.class_names, subject.split))


def between(subject: Subject) -> Save:
    """A row a pair of images: the first, its code on the way to that of the second, the second."""
    coder, x, given = _coder(subject), subject.images[: 2 * PAIRS], subject.context
    if len(x) < 2:
        raise RequestError(f"the {subject.split} split has a single image: there is nothing between one")
    x, h = x[: len(x) // 2 * 2], subject.codes[: len(x) // 2 * 2]
    way = torch.linspace(0, 1, STEPS)[:, None]
    ways = [a + way * (b - a) for a, b in zip(h[::2], h[1::2], strict=True)]  # given what the first is given
    firsts = [None if given is None else given[i : i + 1] for i in range(0, len(x), 2)]
    steps = torch.cat([looks.decoded(coder, each, first) for each, first in zip(ways, firsts, strict=True)])
    sheet = (steps * 255).round().clamp(0, 255).long().view(-1, STEPS, *x.shape[1:])
    ends = to_uint8(x.cpu(), coder.spec).long()
    sheet = torch.cat([ends[::2, None], sheet, ends[1::2, None]], 1)
    columns = ["image", "decoded", *[""] * (STEPS - 2), "decoded", "image"][: STEPS + 2]
    below = f"codes on the straight line between two images of the {subject.split} split"
    return _figure(plots.labelled_grid(sheet.flatten(0, 1), _grey(sheet), [""] * len(sheet), columns, below=below))


def sparsity(subject: Subject) -> Save:
    """Curves out of metrics.csv."""
    _coder(subject)
    return _figure(plots.sparsity(subject.metrics))


def units(subject: Subject) -> Save:
    """A bar a unit, the largest first."""
    model = _latent(subject)
    return _figure(plots.bars(looks.kl_per_unit(model, subject.images, subject.context), subject.split))


def manifold(subject: Subject) -> Save:
    """Decoded at the quantiles of a standard normal in two dimensions."""
    model = _latent(subject)
    if model.latent_dim != 2 or not isinstance(model, Coder):
        raise RequestError(f"a manifold is of model.latent_dim=2, and this is of {model.latent_dim}")
    quantiles = torch.special.ndtri((torch.arange(SIDE) + 0.5) / SIDE)
    z = torch.cartesian_prod(-quantiles, quantiles).flip(1)  # the second unit grows upwards
    sheet = (looks.decoded(model, z, subject.one) * 255).round().clamp(0, 255).long()
    return lambda path: save_grid(path, sheet, _grey(sheet), SIDE)


def walk(subject: Subject) -> Save:
    """A row a pair of draws, of the class of that number where the model is told one."""
    model = subject.model
    if not isinstance(model, Pushforward):
        raise RequestError(f"{model_name(model)} does not make images from normal numbers: there is no walk")
    told = getattr(model, "conditioning", "none")
    if told == "image":
        raise RequestError("a walk from image to image needs no second image, and this model is given one")
    ends = model.prior(2 * PAIRS, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(PAIRS) % max(1, model.spec.classes)  # type: ignore[attr-defined]
    sheet = looks.walk(model, ends[:PAIRS], ends[PAIRS:], STEPS, labels if told == "label" else None)
    names = [subject.data.class_names[i] for i in labels.tolist()] if told == "label" else [""] * PAIRS
    columns = ["a draw", *[""] * (STEPS - 2), "another"]
    sheet = (sheet * 255).round().clamp(0, 255).long()
    below = "latents on the great circle between two draws of the prior: each is as likely as a draw"
    return _figure(plots.labelled_grid(sheet, _grey(sheet), names, columns, below=below))


PICTURES: dict[str, Callable[[Subject], Save]] = {
    picture.__name__: picture for picture in (filters, atoms, activating, codes, traversal, plane, between, sparsity)
}
OF_LATENTS: dict[str, Callable[[Subject], Save]] = {picture.__name__: picture for picture in (units, manifold)}


OF_PRIORS: dict[str, Callable[[Subject], Save]] = {"walk": walk}
ALL = {**PICTURES, **OF_LATENTS, **OF_PRIORS}


def everything(model: Any) -> list[str]:
    """Names of the pictures that there may be of a model."""
    return [
        *PICTURES,
        *(OF_LATENTS if isinstance(model, Latent) else ()),
        *(OF_PRIORS if isinstance(model, Pushforward) else ()),
    ]


def _latent(subject: Subject) -> Any:
    if not isinstance(subject.model, Latent):
        raise RequestError(f"{model_name(subject.model)} has no posterior over latents to show")
    return subject.model


def _coder(subject: Subject) -> Any:
    if not isinstance(subject.model, Coder):
        rest = "|".join(["filters", *(OF_PRIORS if isinstance(subject.model, Pushforward) else ())])
        raise RequestError(f"{model_name(subject.model)} has no code to show: what={rest} is all there is of it")
    return subject.model


def _tiles(weights: Tensor) -> Save:
    return lambda path: save_grid(path, signed(weights), _grey(weights))


def _figure(figure: Any) -> Save:
    return lambda path: plots.save_figure(path, figure)


def _grey(sheet: Tensor) -> ImageSpec:
    """8-bit images of these channels and this size (…, C, H, W)."""
    return ImageSpec(*sheet.shape[-3:])
