"""`genlab score`: how odd is every image of a set to a model? `genlab/measure/oddness.py` describes the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from genlab.build import restore
from genlab.core import Coder, ImageSpec, Likelihood, RequestError
from genlab.measure.oddness import BATCH, PixelLikelihood, auroc, bit_maps, scores
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.image_set import Images, ImageSet, read_image_set
from genlab.request.numbers import check_at_least
from genlab.request.other_images import other_images
from genlab.request.outputs import new_folder, output, save_columns
from genlab.request.progress import with_progress
from genlab.request.set_labels import labels_of
from genlab.request.tables import print_table
from genlab.viz.heat_maps import save_beside

SHOWN = 24  # images at each end of the sheet, 8 in a row
ENDS, ODDEST = 5, 3  # images that are named at both ends of the ranking, and by each other score


def command(request: Request) -> None:
    """Check the request, compute the scores, write the files and print what was found."""
    config, _ = split_hydra(request.config())
    out = output(config, "scores.csv", ".png")
    check_at_least(config, "reference", 0)
    folder = None if config.maps is None else new_folder("maps", config.maps)
    model, run, spec = open_model(config, Likelihood, "give images a probability", Coder)
    if folder is not None and not isinstance(model, PixelLikelihood):
        raise RequestError(f"maps={config.maps}: this model has no likelihood of single pixels; leave maps= out")
    images = read_image_set(
        "images", str(config.images), spec, config.data, config.trust, limit=config.data.limit, fit=True
    )
    labels = labels_of(config, model, run, images, "images")
    background = _background(config, spec)
    typical = _typical_bits(config, model, run)
    against = [str(name) for name in OmegaConf.to_container(config.against)]  # type: ignore[union-attr]
    if against and labels is not None:
        raise RequestError("against=: other images have no labels for a class-conditional model; leave against= out")
    others = {name: other_images(name, images, config.data, config.trust, len(images)) for name in against}

    def compute(set_: ImageSet, set_labels: Tensor | None = None) -> dict[str, np.ndarray]:
        return with_progress(  # type: ignore[no-any-return]
            f"scoring {set_.source}", len(set_),
            lambda advance: scores(
                model, set_, set_labels, background=background, typical_bits=typical, advance=advance
            ),
        )  # fmt: skip

    columns = compute(images, labels)
    save_columns(out, images, columns)
    ranking = "bits" if "bits" in columns else "reconstruction"
    order = np.argsort(columns[ranking], kind="stable")
    _sheet(out.with_suffix(".png"), model, images, labels, order)
    if folder is not None:
        _maps(folder, model, images, labels)
    _print_ends(images, columns, order, ranking, out)
    if others:
        _print_aurocs(columns, {name: compute(other) for name, other in others.items()}, images)


def _background(config: DictConfig, spec: ImageSpec) -> Any:
    """The model of `background=`, or None."""
    if config.background is None:
        return None
    try:
        model, _ = restore(config.background, trust=config.trust)
    except RequestError as error:
        raise RequestError(str(error).replace("ckpt=", "background=", 1)) from error
    if not isinstance(model, Likelihood) or getattr(model, "conditioning", "none") != "none":
        raise RequestError(f"background={config.background} is no unconditional model with a likelihood")
    other: Any = model.spec
    if (other.shape, other.levels) != (spec.shape, spec.levels):
        raise RequestError(f"background={config.background} is a model of other images than ckpt={config.ckpt}")
    return model


def _typical_bits(config: DictConfig, model: Any, run: dict[str, Any]) -> float | None:
    """Mean bits of the first validation images of the run. None without a likelihood, and where they are not wanted."""
    if not isinstance(model, Likelihood) or not config.reference or getattr(model, "conditioning", "none") != "none":
        return None
    places = {**config, "data": {**config.data, "limit": None, "path": None}, "split": "valid", "batch_size": None}
    data = open_data(OmegaConf.create(places), run, warn=False)
    valid = data.split("valid").images[: config.reference]
    return float(scores(model, Images("valid", model.spec, valid), None)["bits"].mean())  # type: ignore[attr-defined]


def _sheet(path: Path, model: Any, images: ImageSet, labels: Tensor | None, order: np.ndarray) -> None:
    """The least surprising images, then the most surprising ones, with heat maps of their bits if there are any."""
    ends = order if len(order) <= 2 * SHOWN else np.concatenate([order[:SHOWN], order[-SHOWN:]])
    x = torch.cat([images.part(int(i), int(i) + 1) for i in ends]).long()
    maps = _bits_of_pixels(model, x, None if labels is None else labels[torch.from_numpy(ends.copy())])
    save_beside(path, x, maps, images.spec, _brightest(maps), min(8, len(x)))


def _bits_of_pixels(model: Any, x: Tensor, labels: Tensor | None) -> Tensor | None:
    if not isinstance(model, PixelLikelihood):
        return None
    device = model.device  # type: ignore[attr-defined]
    return bit_maps(model, x.to(device), None if labels is None else labels.to(device))


def _brightest(maps: Tensor | None) -> float:
    """The number of bits that is drawn white: all but a thousandth of the pixels take fewer."""
    return 1.0 if maps is None else max(1.0, float(np.quantile(maps.numpy(), 0.999)))


def _maps(folder: Path, model: Any, images: ImageSet, labels: Tensor | None) -> None:
    folder.mkdir(exist_ok=True)
    most = 0.0
    for start in range(0, len(images), BATCH):
        x = images.part(start, min(start + BATCH, len(images))).long()
        maps = _bits_of_pixels(model, x, None if labels is None else labels[start : start + len(x)])
        most = most or _brightest(maps)  # one scale for all pictures
        for i in range(len(x)):
            assert maps is not None
            path = folder / f"{start + i:05}.png"
            save_beside(path, x[i : i + 1], maps[i : i + 1], images.spec, most, 1)


def _print_ends(images: ImageSet, columns: dict[str, np.ndarray], order: np.ndarray, ranking: str, out: Path) -> None:
    unit = "bits/dim" if "bits_per_dim" in columns else ranking
    values = columns.get("bits_per_dim", columns[ranking])
    print(f"{out} and {out.with_suffix('.png').name}: {len(images):,} images, mean {values.mean():.4f} {unit}")
    for title, ends in (("most surprising", order[::-1][:ENDS]), ("least surprising", order[:ENDS])):
        print(f"{title}: " + ", ".join(f"{images.name(int(i))} ({values[i]:.3f})" for i in ends))
    for name, column in columns.items():  # each score may find other images odd
        if name not in (ranking, "bits_per_dim", "png_bits"):
            first = np.argsort(-column, kind="stable")[:ODDEST]
            print(f"highest {name}: " + ", ".join(f"{images.name(int(i))} ({column[i]:.5g})" for i in first))


def _print_aurocs(own: dict[str, np.ndarray], others: dict[str, dict[str, np.ndarray]], images: ImageSet) -> None:
    """A row for every score, a column for every other set."""
    found = {name: auroc(own, columns) for name, columns in others.items()}
    names = list(dict.fromkeys(score for each in found.values() for score in each))
    rows = [(score, *(f"{found[name].get(score, float('nan')):.3f}" for name in found)) for score in names]
    lines = [
        f"{row[0]}: " + ", ".join(f"{cell} {name}" for name, cell in zip(found, row[1:], strict=True)) for row in rows
    ]
    title = f"AUROC: other images found among {images.source} (0.5 is chance; below it, the score is wrong)"
    print_table(title, ("score", *found), rows, lines)
