"""`genlab quality`: how like test images a model's samples are, in the features of a classifier, as a table and JSON.

Asks nothing of a model but `sample`, so that families without a likelihood stand in one table with those that have one.
Every measure (`genlab/measure/quality.py`) stands beside its floor: as many training images in the place of the
samples, which is what an ideal sampler would get, give or take that the classifier has learnt from those images.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from genlab.build import build_data, find_checkpoint, read_checkpoint, restore
from genlab.build.models import model_name
from genlab.core import Classifier, ImageSpec, RequestError, Sampler
from genlab.data import Split
from genlab.measure import quality
from genlab.measure.quality import LEAST, Array, Estimate
from genlab.models import Autoencoder
from genlab.request.checkpoints import open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.numbers import check_at_least, check_seed, check_temperature
from genlab.request.outputs import writable
from genlab.request.progress import with_progress
from genlab.request.samplers import sampler_of
from genlab.system.device import choose_device
from genlab.train.accuracy_score import accuracy_score
from genlab.train.checkpoint import write_json

LOWER = ("frechet_distance", "kernel_distance")  # what is better lower; the others are shares, better higher


@dataclass
class Eye:
    """A classifier and the run that made it."""

    model: Any
    run: dict[str, Any]
    spec: ImageSpec
    checkpoint: str
    batch_size: int

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Array, Array]:
        """Images (N, C, H, W) -> features (N, D), the likeliest labels (N,)."""
        device = next(self.model.parameters()).device
        readings = [self.model.read(part.to(device)) for part in images.split(self.batch_size)]
        labels = [reading.log_probs.argmax(1) for reading in readings]
        return torch.cat([r.features for r in readings]).double().cpu().numpy(), torch.cat(labels).cpu().numpy()


@dataclass
class Set:
    """Images (N, C, H, W), the labels that they should have (N,) or None, and what a classifier reads."""

    images: Tensor
    labels: Tensor | None
    features: Array
    read: Array

    @property
    def accuracy(self) -> Estimate | None:
        """Share of the images that are read as what they should be."""
        return None if self.labels is None else quality.mean(self.read == self.labels.cpu().numpy())


def command(request: Request) -> None:
    """What `report` does."""
    config, _ = split_hydra(request.config())
    report(config)


def report(config: DictConfig) -> None:
    """Check everything, then draw and measure, then write and print."""
    out = writable("out", config.out, ".json")
    check_at_least(config, "n", LEAST)
    check_at_least(config, "batch_size", 1)
    check_temperature(config)
    check_seed(config)
    model, run, spec = open_model(config, Sampler, "draw images", Autoencoder)
    eye = open_eye(config)
    data = open_data(config, run)
    given = str(getattr(model, "conditioning", "none"))
    check_fits(config, eye, data, spec, run["names"]["data"], given)
    train, test = data.split("train"), data.split("test")
    check_counts(config, train, test, data.name)
    labelled = given == "label"
    sampler, how = sampler_of(config, model, run)

    labels = torch.arange(config.n) % spec.classes if labelled else None
    images, seconds = drawn(config, sampler, spec, labels)
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(config.seed))[: config.n]
    floor = train.take(chosen.to(train.images.device))
    real = _read(eye, test.images, test.labels if data.class_names else None)
    samples, ideal = _read(eye, images, labels), _read(eye, floor.images, floor.labels if labelled else None)
    found = {"samples": _measured(config, eye, samples, real), "floor": _measured(config, eye, ideal, real)}
    right = real.accuracy
    described = {
        "model": run["names"]["model"], "checkpoint": str(find_checkpoint(config.ckpt)),
        "step": read_checkpoint(config.ckpt)[0]["genlab"]["step"], "weights": str(model.weights),
        "conditioning": given, "stand_in": how.strip(" ()") or None, "data": data.name, "n": config.n,
        "other_data": data.others, "test_images": len(test.labels), "seed": config.seed,
        "temperature": config.temperature,
        "batch_size": config.batch_size, "seconds_per_image": seconds / config.n,
        "device": str(next(model.parameters()).device),
        "classifier": {
            "checkpoint": eye.checkpoint, "sha256": fingerprint(eye.model), "data": eye.run["names"]["data"],
            "features": real.features.shape[1], "accuracy": right and right.value,
            "accuracy_error": right and right.error,
        },
        "neighbours": {"precision, recall": quality.K_PRECISION, "density, coverage": quality.K_DENSITY},
    }  # fmt: skip
    as_dicts = {name: {key: each._asdict() for key, each in of.items()} for name, of in found.items()}
    write_json(out, {**described, **as_dicts})
    _show(described, found)


def open_eye(config: DictConfig) -> Eye:
    """The classifier of `classifier=`, on its device."""
    path = config.classifier
    try:
        found, run = restore(path, trust=config.trust)
    except RequestError as error:
        raise RequestError(str(error).replace("ckpt=", "classifier=", 1)) from error
    if not isinstance(found, Classifier):
        raise RequestError(
            f"classifier={path} is {model_name(found)}, not a classifier: train one with "
            "experiment=classifier_mnist, experiment=classifier_cifar10 or model=classifier"
        )
    model: Any = found
    return Eye(model.to(choose_device(config.device)), run, model.spec, str(find_checkpoint(path)), config.batch_size)


def check_fits(config: DictConfig, eye: Eye, data: Any, spec: ImageSpec, name: str, given: str) -> None:
    """RequestError for a model whose images the classifier has not learnt to read, or that cannot be asked for any."""
    if given == "image":
        raise RequestError(
            f"ckpt={config.ckpt} is conditioned on a second image: what it draws for one is no sample of {data.name}"
        )
    if config.cas and given != "label":
        raise RequestError(
            "cas=true trains a classifier on samples with labels, and this model is not conditioned on any"
        )
    better = f"train one with genlab train model=classifier data={name}"
    if (*eye.spec.shape, eye.spec.levels) != (*spec.shape, spec.levels):
        raise RequestError(
            f"classifier={config.classifier} reads images of {_size(eye.spec)}, and this model draws images of "
            f"{_size(spec)}: {better}"
        )
    # Any draw of 0 and 1 from the same digits will do: the published one has no labels to learn from.
    learnt, drawn_from = build_data(eye.run["data"], config.trust).source.name, data.source.name
    if learnt != drawn_from:
        raise RequestError(
            f"classifier={config.classifier} was trained on {learnt} and this model on {drawn_from}, on which its "
            f"features say little: {better}"
        )


def check_counts(config: DictConfig, train: Split, test: Split, name: str) -> None:
    """RequestError unless there are as many training images as samples, for the floor, and enough test images."""
    if len(train.labels) < config.n:
        raise RequestError(
            f"n={config.n}: the floor compares as many training images as samples with the test images, and {name} "
            f"has {len(train.labels)}: give n={len(train.labels)} or less"
        )
    if len(test.labels) < LEAST:
        raise RequestError(f"{name} has {len(test.labels)} test images: at least {LEAST} are needed to compare with")


def drawn(config: DictConfig, sampler: Sampler, spec: ImageSpec, labels: Tensor | None) -> tuple[Tensor, float]:
    """n images (n, C, H, W) on the CPU, of these labels if there are any, and the seconds that took."""
    generator = torch.Generator().manual_seed(config.seed)  # on the CPU: the same noise for every device
    small = torch.uint8 if spec.levels <= 256 else torch.long

    def draw(advance):  # type: ignore[no-untyped-def]
        parts = []
        for start in range(0, config.n, config.batch_size):
            n = min(config.batch_size, config.n - start)
            context = None if labels is None else labels[start : start + n]
            part = sampler.sample(n, context=context, temperature=config.temperature, generator=generator)
            parts.append(part.cpu().to(small))
            advance(n)
        return torch.cat(parts)

    started = time.perf_counter()
    with torch.no_grad():
        images = with_progress("sampling", config.n, draw)
    return images, time.perf_counter() - started


def fingerprint(model: nn.Module) -> str:
    """sha256 of the names, shapes and values of a model's weights: which classifier it was, wherever its file is."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _read(eye: Eye, images: Tensor, labels: Tensor | None) -> Set:
    return Set(images, labels, *eye.read(images))


def _measured(config: DictConfig, eye: Eye, samples: Set, real: Set) -> dict[str, Estimate]:
    """Every measure of samples against real images, by name."""
    found = quality.measures(real.features, samples.features, seed=config.seed)
    if samples.accuracy is not None:
        found["label_accuracy"] = samples.accuracy
    if config.cas:
        assert samples.labels is not None
        assert real.labels is not None
        train, test = Split(samples.images, samples.labels), Split(real.images, real.labels)
        found["accuracy_score"] = accuracy_score(eye.run, eye.spec, train, test, config)
    return found


def _size(spec: ImageSpec) -> str:
    return f"{spec.channels}x{spec.height}x{spec.width} with {spec.levels} levels"


def _show(of: dict[str, Any], found: dict[str, dict[str, Estimate]]) -> None:
    """A row for every measure, on a terminal as a table; what was measured with above it, the time below."""
    eye = of["classifier"]
    right = "" if eye["accuracy"] is None else f", {eye['accuracy']:.2%} right on them"
    about = (
        f"{of['n']:,} samples of {of['model']} against {of['test_images']:,} test images of {of['data']}, in "
        f"{eye['features']} features of classifier {eye['sha256'][:12]}{right}; floor: {of['n']:,} training images"
    )
    console = Console()
    table = Table("measure", "samples", "floor", "better", title=about, title_justify="left")
    for name, estimate in found["samples"].items():
        floor, better = found["floor"][name], "lower" if name in LOWER else "higher"
        table.add_row(name, _number(estimate), _number(floor), better)
        if not console.is_terminal:
            print(f"{name}: {_number(estimate)} (floor {_number(floor)}, {better} is better)")
    if console.is_terminal:
        console.print(table)
    else:
        print(about)
    notes = [] if of["stand_in"] is None else [of["stand_in"]]
    print("; ".join([f"{of['seconds_per_image']:.2g} s an image on {of['device']}", *notes]))


def _number(of: Estimate) -> str:
    value = f"{of.value:#.4g}" if abs(of.value) >= 1 else f"{of.value:.4f}"
    return value if of.error is None else f"{value} ± {of.error:.4f}"
