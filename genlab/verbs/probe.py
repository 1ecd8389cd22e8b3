"""`genlab probe`: what a model's frozen features are worth to a linear classifier, beside controls, as a table.

What a seed changes: which training images have a label, if not all do; the random patches; the untrained weights.
Where it changes nothing, one classifier is fitted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from genlab.build import build, find_checkpoint, read_checkpoint
from genlab.core import Features, RequestError
from genlab.data.batches import context_of
from genlab.data.module import SPLITS
from genlab.measure import probe
from genlab.measure.layers import check_layer, layer_names
from genlab.measure.probe import Array, Labelled, Probe
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least
from genlab.request.outputs import writable
from genlab.request.progress import with_progress
from genlab.train.checkpoint import write_json

EVERY = ("best", "all")


class Represented(NamedTuple):
    """Features by layer and split; of the training split, those of the images at `positions`, which are sorted."""

    positions: Array
    layers: dict[str, dict[str, Array]]


@dataclass
class Images:
    """What is probed: data, labels of every split, and which training images have one to learn from, for every seed."""

    data: Any
    labels: dict[str, Array]
    drawn: list[Array]

    @property
    def all_labelled(self) -> bool:
        """Whether no draw of labelled images differs from another."""
        return len(self.drawn[0]) == len(self.labels["train"])

    def features(self, model: nn.Module, layer: str | None, positions: Array) -> Represented:
        """Of one layer or of every one."""
        by_split = {}
        for split in SPLITS:
            index = torch.from_numpy(positions) if split == "train" else None
            total = len(self.labels[split] if index is None else index)
            batches = self.data.batches(split, index)

            def compute(advance, batches=batches):  # type: ignore[no-untyped-def]
                return probe.features(model, batches, context_of, layer=layer, on_batch=advance)  # type: ignore[arg-type]

            by_split[split] = with_progress(f"features of {split}", total, compute)
        return Represented(positions, {name: {s: of[name] for s, of in by_split.items()} for name in by_split["train"]})

    def of_all(self, arrays: dict[str, Array]) -> Represented:
        """One layer, "-", from features of every image."""
        return Represented(np.arange(len(self.labels["train"])), {"-": arrays})

    def probes(self, features: Represented, seed: int) -> dict[str, Probe]:
        """Every layer, with the labels of that seed."""
        train = self.drawn[seed]
        rows = np.searchsorted(features.positions, train)

        def fit(advance):  # type: ignore[no-untyped-def]
            found = {}
            for layer, x in features.layers.items():
                valid, test = (Labelled(x[split], self.labels[split]) for split in ("valid", "test"))
                found[layer] = probe.probe(layer, Labelled(x["train"][rows], self.labels["train"][train]), valid, test)
                advance(1)
            return found

        return with_progress("classifiers", len(features.layers), fit)


def command(request: Request) -> None:
    """Check everything, then compute, then write and print."""
    config, _ = split_hydra(request.config())
    out = writable("out", config.out, ".json")
    for key in ("seeds", "per_class", "train", "batch_size"):
        if config[key] is not None:
            check_at_least(config, key, 1)
    if config.per_class is not None and config.train is not None:
        raise RequestError(f"per_class={config.per_class} and train={config.train} both say how many labels: give one")
    model, run, spec = open_model(config, Features, "show its features")
    given = getattr(model, "conditioning", "none")
    if given == "label":
        raise RequestError("this model is given the label of an image: a probe of it would only read that back")
    data = open_data(config, run)
    if not data.class_names:
        raise RequestError(f"{data.name} has no labels: there is nothing to predict from features")
    labels = {split: data.split(split).labels.cpu().numpy() for split in SPLITS}
    drawn = [
        probe.drawn(labels["train"], seed, per_class=config.per_class, count=config.train)
        for seed in range(config.seeds)
    ]
    images = Images(data, labels, drawn)
    layer = config.layer
    check_layer(layer, layer_names(model, data), EVERY)
    only = None if layer in EVERY else layer

    def fresh(seed: int) -> Represented:
        torch.manual_seed(seed)
        untrained = build(run["model"], spec, config.trust).to(next(model.parameters()).device).eval()
        return images.features(untrained, only, drawn[seed])

    found = images.features(model, only, np.unique(np.concatenate(drawn)))
    records = [_record("network", lambda seed: found, images)]
    if config.controls:
        pictures = {split: data.split(split).images.cpu() for split in SPLITS}
        raw = images.of_all({split: probe.pixels(of) for split, of in pictures.items()})
        pca = images.of_all(probe.components(pictures, records[0]["width"]))
        records += [
            _record("raw pixels", lambda seed: raw, images),
            _record("PCA", lambda seed: pca, images),
            _record("random patches", lambda s: images.of_all(probe.patches(pictures, spec.levels, s)), images, True),
            _record("untrained network", fresh, images, True),
        ]
    how_many = {"per_class": config.per_class, "train": config.train, "labelled_images": len(drawn[0])}
    write_json(
        out,
        {
            "model": run["names"]["model"], "checkpoint": str(find_checkpoint(config.ckpt)),
            "step": read_checkpoint(config.ckpt)[0]["genlab"]["step"], "weights": model.weights, "given": given,
            "data": data.name, "other_data": data.others, **how_many,
            "valid_images": len(labels["valid"]), "test_images": len(labels["test"]),
            "penalties": probe.PENALTIES, "tolerance": probe.TOLERANCE, "records": records,
        },
    )  # fmt: skip
    _show(records, images, every=layer == "all")
    if given == "image":
        print("the network is also given a second image, which the other features are not made of")


def _record(name: str, features: Callable[[int], Represented], images: Images, random: bool = False) -> dict[str, Any]:
    """Probe a representation with every seed, or once where a seed changes nothing; its layer is one for all seeds."""
    seeds = range(len(images.drawn) if random or not images.all_labelled else 1)
    every = [images.probes(features(seed), seed) for seed in seeds]
    layer = probe.chosen(every)
    best = [probes[layer] for probes in every]
    tests = [p.test for p in best]
    return {
        "features": name, "layer": layer, "width": best[0].width, "accuracy": float(np.mean(tests)),
        "interval": probe.interval(tests, len(images.labels["test"])), "seeds": len(every),
        "probes": [p._asdict() for p in best],
        "layers": {
            layer: {key: float(np.mean([getattr(probes[layer], key) for probes in every])) for key in ("valid", "test")}
            | {"width": probe_.width}
            for layer, probe_ in every[0].items()
        },
    }  # fmt: skip


def _show(records: list[dict[str, Any]], images: Images, every: bool) -> None:
    """A row for every representation; with `every` also one for every layer of it, the chosen one marked."""
    several = {r["features"]: every and len(r["layers"]) > 1 for r in records}
    rows = [
        (r["features"], layer, of["width"], of["valid"], of["test"], r["interval"], r["seeds"], layer == r["layer"])
        for r in records
        for layer, of in r["layers"].items()
        if layer == r["layer"] or several[r["features"]]
    ]
    labels, test = (f"{len(x):,}" for x in (images.drawn[0], images.labels["test"]))
    about = f"accuracy in %, {labels} labels, {test} test images; ± is a 95 % interval of test images and seeds"
    console = Console()
    table = Table("features", "layer", "width", "valid", "test", "seeds", title=about, title_justify="left")
    for name, layer, width, valid, accuracy, interval, seeds, best in rows:
        mark = " (chosen)" if best and several[name] else ""
        measured = f"{100 * accuracy:.2f}" + (f" ± {100 * interval:.2f}" if best else "")
        table.add_row(name, layer + mark, str(width), f"{100 * valid:.2f}", measured, str(seeds))
        if not console.is_terminal:
            where = "" if layer == "-" else f" {layer}{mark}"
            print(
                f"{name}{where}: test accuracy {measured} %, valid {100 * valid:.2f} % (width {width}, seeds {seeds})"
            )
    if console.is_terminal:
        console.print(table)
    else:
        print(about)
    if unfinished := [r["features"] for r in records if not all(p["converged"] for p in r["probes"])]:
        print(f"genlab: L-BFGS stopped before it converged for {', '.join(unfinished)}", file=sys.stderr)
