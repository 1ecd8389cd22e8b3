"""`genlab probe`: what a model's frozen features are worth to a linear classifier, beside controls, as a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from genlab import probe
from genlab.bits import context_of
from genlab.build import build, find_checkpoint
from genlab.compose import Request, split_hydra
from genlab.core import Features, RequestError
from genlab.data.module import SPLITS
from genlab.probe import Array, Labelled, Probe
from genlab.tasks.common import at_least, data_of, open_model, with_progress, writable
from genlab.tasks.features import check_layer, layers
from genlab.train.checkpoint import write_json

EVERY = ("best", "all")


@dataclass
class Images:
    """What is probed: data, labels of every split, and which training images have one to learn from, for every seed."""

    data: Any
    labels: dict[str, Array]
    drawn: list[Array]

    @property
    def used(self) -> Array:
        """Positions of all training images that any seed draws."""
        return np.unique(np.concatenate(self.drawn))

    def features(self, model: nn.Module, layer: str | None) -> dict[str, dict[str, Array]]:
        """Features by layer and split: of the training images `used` and of all others."""
        by_split = {}
        for split in SPLITS:
            index = torch.from_numpy(self.used) if split == "train" else None
            total = len(self.labels[split] if index is None else index)
            batches = self.data.batches(split, index)

            def compute(advance, batches=batches):  # type: ignore[no-untyped-def]
                return probe.features(model, batches, context_of, layer=layer, on_batch=advance)  # type: ignore[arg-type]

            by_split[split] = with_progress(f"features of {split}", total, compute)
        return {name: {split: of[name] for split, of in by_split.items()} for name in by_split["train"]}

    def of_all(self, arrays: dict[str, Array]) -> dict[str, dict[str, Array]]:
        """One layer, "-", from features of every image."""
        return {"-": {**arrays, "train": arrays["train"][self.used]}}

    def probes(self, features: dict[str, dict[str, Array]], seed: int) -> dict[str, Probe]:
        """Every layer, with the labels of that seed."""
        drawn = np.searchsorted(self.used, self.drawn[seed])
        found = {}
        for layer, x in features.items():
            train = Labelled(x["train"][drawn], self.labels["train"][self.drawn[seed]])
            valid, test = (Labelled(x[split], self.labels[split]) for split in ("valid", "test"))
            found[layer] = probe.probe(layer, train, valid, test)
        return found


def command(request: Request) -> None:
    """Check everything, then compute, then write and print."""
    config, _ = split_hydra(request.config())
    out = writable("out", config.out, ".json")
    at_least(config, "seeds", 1)
    if config.per_class is not None:
        at_least(config, "per_class", 1)
    model, run, spec = open_model(config, Features, "show its features")
    if getattr(model, "conditioning", "none") == "label":
        raise RequestError("this model is given the label of an image: a probe of it would only read that back")
    data = data_of(config, run)
    if not data.class_names:
        raise RequestError(f"{data.name} has no labels: there is nothing to predict from features")
    layer = check_layer(config.layer, layers(model, data), EVERY)
    only = None if layer in EVERY else layer
    images = _images(data, config)

    def fresh(seed: int) -> dict[str, dict[str, Array]]:
        torch.manual_seed(seed)
        untrained = build(run["model"], spec, config.trust).to(next(model.parameters()).device).eval()
        return images.features(untrained, only)

    found = images.features(model, only)
    records = [_record("network", lambda seed: found, images, config.seeds)]
    if config.controls:
        width = int(np.median([p["width"] for p in records[0]["probes"]]))
        pictures = {split: data.split(split).images.cpu() for split in SPLITS}
        raw = images.of_all({split: probe.pixels(of) for split, of in pictures.items()})
        pca = images.of_all(probe.components(pictures, width))
        records += [
            _record("raw pixels", lambda seed: raw, images, config.seeds),
            _record("PCA", lambda seed: pca, images, config.seeds),
            _record("random patches", lambda s: images.of_all(probe.patches(pictures, s)), images, config.seeds, True),
            _record("untrained network", fresh, images, config.seeds, True),
        ]
    write_json(
        out,
        {
            "model": run["names"]["model"], "checkpoint": str(find_checkpoint(config.ckpt)), "data": data.name,
            "labels": "all" if config.per_class is None else f"{config.per_class} a class",
            "labelled_images": len(images.drawn[0]), "test_images": len(images.labels["test"]), "records": records,
        },
    )  # fmt: skip
    _show(records, every=layer == "all")


def _images(data: Any, config: Any) -> Images:
    labels = {split: data.split(split).labels.cpu().numpy() for split in SPLITS}
    y = labels["train"]
    drawn = (
        [np.arange(len(y))] * config.seeds
        if config.per_class is None
        else [probe.few(y, config.per_class, seed) for seed in range(config.seeds)]
    )
    return Images(data, labels, drawn)


def _record(
    name: str, features: Callable[[int], dict[str, dict[str, Array]]], images: Images, seeds: int, random: bool = False
) -> dict[str, Any]:
    """Probe one representation; once only where no seed would change anything."""
    changes = random or len(images.drawn[0]) < len(images.labels["train"])
    every = [images.probes(features(seed), seed) for seed in range(seeds if changes else 1)]
    best = [probe.chosen(probes.values()) for probes in every]
    tests = [p.test for p in best]
    return {
        "features": name, "accuracy": float(np.mean(tests)),
        "interval": probe.interval(tests, len(images.labels["test"])), "seeds": len(every),
        "probes": [p._asdict() for p in best],
        "layers": {
            layer: {k: float(np.mean([getattr(probes[layer], k) for probes in every])) for k in ("valid", "test")}
            for layer in every[0]
        },
    }  # fmt: skip


def _show(records: list[dict[str, Any]], every: bool) -> None:
    console = Console()
    rows = [("features", "layer", "width", "test accuracy, %", "seeds")]
    for r in records:
        first, accuracy = r["probes"][0], f"{100 * r['accuracy']:.2f} ± {100 * r['interval']:.2f}"
        chosen = " or ".join(dict.fromkeys(p["layer"] for p in r["probes"]))
        rows.append((r["features"], chosen, str(first["width"]), accuracy, str(r["seeds"])))
        if every and len(r["layers"]) > 1:
            for layer, of in r["layers"].items():
                rows.append((f"  {r['features']}", layer, "", f"{100 * of['test']:.2f}", ""))
    if console.is_terminal:
        table = Table(*rows[0], title="linear probe; ± is a 95 % interval", title_justify="left")
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    else:
        for row in rows[1:]:
            print("\t".join(row))
    if unfinished := [r["features"] for r in records if not all(p["converged"] for p in r["probes"])]:
        print(f"genlab: L-BFGS stopped before it converged for {', '.join(unfinished)}", file=sys.stderr)
