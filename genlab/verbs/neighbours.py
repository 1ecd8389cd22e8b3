"""`genlab neighbours`: the nearest training images of images, in pixels and in features, or their near duplicates."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.core import Features, ImageSpec, RequestError
from genlab.measure.layers import check_layer, default_layer, layer_names, pooled
from genlab.measure.nearest import Neighbours, nearest, nearest_others, pixels, share_nearer, standardised
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.image_set import ImageSet, read_image_set
from genlab.request.numbers import check_at_least
from genlab.request.outputs import output
from genlab.request.progress import with_progress
from genlab.request.set_labels import labels_of
from genlab.system.atomic import atomically
from genlab.viz import save_grid

BATCH = 200
SHOWN = 16  # rows of the picture
SUSPICIOUS = 0.01  # share of held-out images nearer to a training image, below which an image may be a copy
DUPLICATE = 0.25  # times the median distance to the nearest other image, below which two images may be duplicates


def command(request: Request) -> None:
    """Check the request, search, write the files and print what was found."""
    config, _ = split_hydra(request.config())
    out = output(config, "neighbours.csv", ".png")
    for key, least in (("k", 1), ("held_out", 1)):
        check_at_least(config, key, least)
    if not isinstance(config.within, bool):
        raise RequestError(f"within={config.within}: expected true or false")
    model, run, spec = open_model(config, Features, "show its features")
    images = read_image_set("of", str(config.of), spec, config.data, config.trust, fit=True)
    labels = labels_of(config, model, run, images, "of")
    if config.within and len(images) < 2:
        raise RequestError(f"of={config.of}: one image has no duplicate among itself")
    data = open_data(config, run, splits=("train", "valid"))
    names = layer_names(model, data)
    check_layer(config.layer, names, ())
    layer = config.layer or default_layer(names)
    x = images.part(0, len(images)).long()

    def features(x: Tensor, labels: Tensor | None, advance: Callable[[int], Any]) -> np.ndarray:
        parts = []
        for start in range(0, len(x), config.batch_size or BATCH):
            here = slice(start, start + (config.batch_size or BATCH))
            context = None if labels is None else labels[here].to(model.device)
            with torch.no_grad():
                h = model.features(x[here].long().to(model.device), context)[layer]
            parts.append(pooled(h).float().cpu().numpy())
            advance(len(x[here]))
        return np.concatenate(parts)

    if config.within:
        h = with_progress("features", len(x), lambda advance: features(x, labels, advance))
        found = {
            "pixels": nearest_others(pixels(x, spec), config.k),
            layer: nearest_others(standardised(h)[0], config.k),
        }
        _write(out, images, found, {})
        _picture(out, x, {name: (x, each) for name, each in found.items()}, spec, _closest(found["pixels"]))
        _print_duplicates(images, found, out)
        return
    train, valid = data.split("train"), data.split("valid").take(slice(config.held_out))
    conditional = labels is not None

    def compute(advance):  # type: ignore[no-untyped-def]
        sets = [(train.images, train.labels), (x, labels), (valid.images, valid.labels)]
        return [features(images, y if conditional else None, advance) for images, y in sets]

    total = len(train.images) + len(x) + len(valid.images)
    h_train, h, h_valid = standardised(*with_progress("features", total, compute))
    spaces = {
        "pixels": (pixels(x, spec), pixels(train.images, spec), pixels(valid.images, spec)),
        layer: (h, h_train, h_valid),
    }
    found, shares = {}, {}
    for name, (queries, candidates, held_out) in spaces.items():
        found[name] = nearest(queries, candidates, config.k)
        shares[name] = share_nearer(found[name].distances[:, 0], nearest(held_out, candidates, 1).distances[:, 0])
    _write(out, images, found, shares)
    order = np.argsort(shares["pixels"], kind="stable")
    _picture(out, x, {name: (train.images, each) for name, each in found.items()}, spec, order)
    _print_copies(images, found, shares, len(valid.images), out)


def _write(out: Path, images: ImageSet, found: dict[str, Neighbours], shares: dict[str, np.ndarray]) -> None:
    """A CSV file with a row for every image: its nearest candidate in each space, the distance, and the share."""
    with atomically(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ("nearest", "distance", "share_nearer")[: 3 if shares else 2]
        writer.writerow(["image", *(f"{name}_{column}" for name in found for column in columns)])
        for i in range(len(images)):
            row = [images.name(i)]
            for name, each in found.items():
                number = int(each.numbers[i, 0])
                row += [str(number) if shares else images.name(number), f"{each.distances[i, 0]:.6g}"]
                row += [f"{shares[name][i]:.6g}"] if shares else []
            writer.writerow(row)


def _picture(
    out: Path, x: Tensor, spaces: dict[str, tuple[Tensor, Neighbours]], spec: ImageSpec, order: np.ndarray
) -> None:
    """Rows of an image, its nearest candidates in pixels, and those in features."""
    rows = []
    for i in order[:SHOWN]:
        rows.append(x[int(i)][None].long())
        for candidates, each in spaces.values():
            rows.append(candidates[torch.from_numpy(each.numbers[i])].long())
    columns = 1 + sum(each.numbers.shape[1] for _, each in spaces.values())
    save_grid(out.with_suffix(".png"), torch.cat(rows), spec, columns)


def _closest(found: Neighbours) -> np.ndarray:
    return np.argsort(found.distances[:, 0], kind="stable")


def _print_copies(
    images: ImageSet, found: dict[str, Neighbours], shares: dict[str, np.ndarray], held_out: int, out: Path
) -> None:
    print(
        f"{out} and {out.with_suffix('.png').name} (an image, then its nearest training images): {len(images)} images"
    )
    for name, share in shares.items():
        distances = found[name].distances[:, 0]
        print(
            f"{name}: median distance {np.median(distances):.4g}; for {np.mean(share < 0.5):.0%} of the images it is "
            f"below the median of {held_out} held-out images"
        )
        copies = [i for i in np.argsort(share, kind="stable") if share[i] < SUSPICIOUS][:10]
        told = ", ".join(f"{images.name(i)} (train {found[name].numbers[i, 0]}, {distances[i]:.4g})" for i in copies)
        print(f"{name}: nearer than 99 % of the held-out images: {told or 'none'}")


def _print_duplicates(images: ImageSet, found: dict[str, Neighbours], out: Path) -> None:
    print(f"{out} and {out.with_suffix('.png').name} (an image, then the nearest others): {len(images)} images")
    for name, each in found.items():
        distances = each.distances[:, 0]
        pairs: dict[tuple[int, int], float] = {}
        for i in np.argsort(distances, kind="stable"):
            if distances[i] <= DUPLICATE * np.median(distances):
                pairs.setdefault((min(i, int(each.numbers[i, 0])), max(i, int(each.numbers[i, 0]))), distances[i])
        told = ", ".join(f"{images.name(a)} and {images.name(b)} ({d:.4g})" for (a, b), d in list(pairs.items())[:10])
        print(f"{name}: pairs nearer than a quarter of the median, {np.median(distances):.4g}: {told or 'none'}")
