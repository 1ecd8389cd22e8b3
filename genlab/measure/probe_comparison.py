"""Linear probes of a network's features and of four controls, for `genlab probe`.

    network             features of the trained network, of one layer or of the best one
    raw pixels          the pixels
    PCA                 whitened principal components, as many as the probed layer has features
    random patches      see `probe_controls.py`
    untrained network   the same network with its initial weights, its layer chosen in the same way

Seeds. A seed determines which training images have a label (if not all have), the random patches, and the initial
weights of the untrained network. Where the seed has no effect, one classifier is fitted.

Features that need no labels (the network, PCA, patches) use all training images, even if few of them have a label. The
layer and the penalty are chosen with all labels of the validation split. So accuracies with few labels can be compared
with each other, but not with those of a method that uses no other labels.

N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from genlab.core import RequestError
from genlab.data.module import SPLITS
from genlab.measure import probe_controls
from genlab.measure.layers import layer_features
from genlab.measure.probe import Array, Labelled, Probe, best_layer, interval, labelled_subset, probe
from genlab.system.progress import WithProgress, without_progress

NO_LAYER = "-"  # the layer of features that do not come from a network


class SplitFeatures(NamedTuple):
    """Features (N, D) by layer and split.

    Those of the training split belong to the images at `positions`, in ascending order.
    """

    positions: Array
    layers: dict[str, dict[str, Array]]


@dataclass(frozen=True)
class Record:
    """Probes of one kind of features: for every seed the probe of every layer."""

    features: str
    by_seed: list[dict[str, Probe]]
    test_images: int

    @property
    def layer(self) -> str:
        """The layer with the best validation accuracy, the same for all seeds."""
        return best_layer(self.by_seed)

    @property
    def probes(self) -> list[Probe]:
        """The probe of that layer for every seed."""
        return [probes[self.layer] for probes in self.by_seed]

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval of the test accuracy."""
        return interval([p.test for p in self.probes], self.test_images)

    def layers(self) -> dict[str, dict[str, Any]]:
        """For every layer its validation and test accuracy, averaged over seeds, and its width."""
        return {
            layer: {
                key: float(np.mean([getattr(probes[layer], key) for probes in self.by_seed]))
                for key in ("valid", "test")
            }
            | {"width": first.width}
            for layer, first in self.by_seed[0].items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Primitives, for a JSON file."""
        return {
            "features": self.features, "layer": self.layer, "width": self.probes[0].width,
            "accuracy": float(np.mean([p.test for p in self.probes])), "interval": self.interval,
            "seeds": len(self.by_seed), "probes": [p._asdict() for p in self.probes], "layers": self.layers(),
        }  # fmt: skip


class ProbeData:
    """The images of a data module, and the labelled subset of the training images for every seed.

    `labels`: of all images by split. `subsets`: for every seed the positions of the training images with a label. They
    are `per_class` of each class, `count` in all, or all. Raises RequestError for data without classes and for subsets
    that are larger than the data.
    """

    def __init__(
        self,
        data: Any,
        *,
        seeds: int,
        per_class: int | None = None,
        count: int | None = None,
        with_progress: WithProgress = without_progress,
    ) -> None:
        if not data.class_names:
            raise RequestError(f"{data.name} has no labels: there is nothing to predict from features")
        self.data, self.with_progress = data, with_progress
        self.labels: dict[str, Array] = {split: data.split(split).labels.cpu().numpy() for split in SPLITS}
        self.subsets = [
            labelled_subset(self.labels["train"], seed, per_class=per_class, count=count) for seed in range(seeds)
        ]

    @property
    def all_labelled(self) -> bool:
        """True if every training image has a label, so that all subsets are equal."""
        return len(self.subsets[0]) == len(self.labels["train"])

    def network_features(self, model: nn.Module, layer: str | None, positions: Array) -> SplitFeatures:
        """Features of one layer of a network, or of all layers if `layer` is None."""
        by_split = {}
        for split in SPLITS:
            index = torch.from_numpy(positions) if split == "train" else None
            total = len(self.labels[split] if index is None else index)
            batches = self.data.batches(split, index)

            def compute(advance: Callable[[int], None], batches: Any = batches) -> dict[str, Array]:
                return layer_features(model, batches, layer, advance)

            by_split[split] = self.with_progress(f"features of {split}", total, compute)
        layers = {name: {split: by_split[split][name] for split in SPLITS} for name in by_split["train"]}
        return SplitFeatures(positions, layers)

    def control_features(self, by_split: dict[str, Array]) -> SplitFeatures:
        """Features of all images that do not come from a network."""
        return SplitFeatures(np.arange(len(self.labels["train"])), {NO_LAYER: by_split})

    def probe_layers(self, features: SplitFeatures, seed: int) -> dict[str, Probe]:
        """The probe of every layer, with the labels of that seed."""
        subset = self.subsets[seed]
        rows = np.searchsorted(features.positions, subset)
        train_labels = self.labels["train"][subset]

        def fit(advance: Callable[[int], None]) -> dict[str, Probe]:
            probes = {}
            for layer, x in features.layers.items():
                valid, test = (Labelled(x[split], self.labels[split]) for split in ("valid", "test"))
                probes[layer] = probe(layer, Labelled(x["train"][rows], train_labels), valid, test)
                advance(1)
            return probes

        return self.with_progress("classifiers", len(features.layers), fit)

    def record(self, name: str, features: Callable[[int], SplitFeatures], *, random: bool) -> Record:
        """Probe features(seed) with every seed, or with one seed if the others would give the same result.

        `random`: True if the features themselves depend on the seed.
        """
        seeds = range(len(self.subsets) if random or not self.all_labelled else 1)
        by_seed = [self.probe_layers(features(seed), seed) for seed in seeds]
        return Record(name, by_seed, len(self.labels["test"]))


def probe_network(data: ProbeData, model: nn.Module, layer: str | None) -> Record:
    """Probe a trained network: one layer, or all of them if `layer` is None."""
    features = data.network_features(model, layer, np.unique(np.concatenate(data.subsets)))
    return data.record("network", lambda seed: features, random=False)


def probe_all_controls(
    data: ProbeData, levels: int, width: int, untrained: Callable[[int], nn.Module], layer: str | None
) -> list[Record]:
    """Probe the four controls. `levels`: of a pixel; `width`: principal components; `untrained(seed)`: the network with
    initial weights, of which one layer is probed, or all if `layer` is None.
    """
    images = {split: data.data.split(split).images.cpu() for split in SPLITS}
    raw = data.control_features({split: probe_controls.pixels(x) for split, x in images.items()})
    pca = data.control_features(probe_controls.components(images, width))

    def patches(seed: int) -> SplitFeatures:
        return data.control_features(probe_controls.patches(images, levels, seed))

    def initial(seed: int) -> SplitFeatures:
        return data.network_features(untrained(seed), layer, data.subsets[seed])

    return [
        data.record("raw pixels", lambda seed: raw, random=False),
        data.record("PCA", lambda seed: pca, random=False),
        data.record("random patches", patches, random=True),
        data.record("untrained network", initial, random=True),
    ]


COLUMNS = ("features", "layer", "width", "valid", "test", "seeds")


def table(records: Iterable[Record], every_layer: bool) -> list[tuple[str, ...]]:
    """Rows of `COLUMNS`, with accuracies in per cent: the chosen layer of each record, or all with that one marked."""
    rows: list[tuple[str, ...]] = []
    for record in records:
        layers = record.layers()
        several = every_layer and len(layers) > 1
        for layer, numbers in layers.items():
            chosen = layer == record.layer
            if chosen or several:
                valid, test = f"{100 * numbers['valid']:.2f}", f"{100 * numbers['test']:.2f}"
                test += f" ± {100 * record.interval:.2f}" if chosen else ""
                mark = " (chosen)" if chosen and several else ""
                seeds = str(len(record.by_seed))
                rows.append((record.features, layer + mark, str(numbers["width"]), valid, test, seeds))
    return rows


def line(features: str, layer: str, width: str, valid: str, test: str, seeds: str) -> str:
    """A row of the table as one line of text."""
    where = "" if layer == NO_LAYER else f" {layer}"
    return f"{features}{where}: test accuracy {test} %, valid {valid} % (width {width}, seeds {seeds})"
