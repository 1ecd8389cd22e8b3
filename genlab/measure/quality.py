"""Quality of a model's samples: how closely they resemble test images in the features of a classifier.

The model only has to draw images, so families with and without a likelihood can be compared in one table. Every measure
(`feature_distances.py`) is reported for the samples and as a floor, for as many training images instead of the samples.
A sampler that drew from the data distribution itself would reach the floor approximately, but not exactly, because the
classifier was trained on the images of the floor.

A class-conditional model draws equally many images of each class. For these, the result also has the share of samples
that the classifier assigns to the requested class (`label_accuracy`) and, on request, by `accuracy_score`: the test
accuracy of a new classifier that is trained on the samples only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.core import ImageSpec, RequestError, Sampler
from genlab.data import Split
from genlab.measure.feature_distances import K_DENSITY, K_PRECISION, MIN_IMAGES, Estimate, measures
from genlab.measure.feature_extractor import FeatureExtractor, FeatureSet, weights_hash
from genlab.system.progress import WithProgress, without_progress

LOWER_IS_BETTER = ("frechet_distance", "kernel_distance")
AccuracyScore = Callable[[Split, Split], Estimate]  # (samples to train on, test images) -> test accuracy


@dataclass(frozen=True)
class Sampling:
    """The options of drawing. `n`: images in all; `batch_size`: images drawn at once (it changes the draws)."""

    n: int
    seed: int = 0
    temperature: float = 1.0
    batch_size: int = 256


@dataclass(frozen=True)
class Quality:
    """Every measure of the samples and of the floor by name, and `details`: the conditions of the measurement."""

    samples: dict[str, Estimate]
    floor: dict[str, Estimate]
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Primitives, for a JSON file."""
        sets = {"samples": self.samples, "floor": self.floor}
        return {
            **self.details,
            **{name: {key: each._asdict() for key, each in values.items()} for name, values in sets.items()},
        }

    def table(self, model: str) -> tuple[str, Sequence[str], Sequence[tuple[str, ...]], list[str], str]:
        """Title, columns, rows, the rows as lines of text, and a footnote. `model`: its name for the title."""
        details, classifier = self.details, self.details["classifier"]
        accuracy = classifier["accuracy"]
        title = (
            f"{details['n']:,} samples of {model} against {details['test_images']:,} test images of {details['data']}, "
            f"in {classifier['features']} features of classifier {classifier['sha256'][:12]}"
            + ("" if accuracy is None else f", {accuracy:.2%} right on them")
            + f"; floor: {details['n']:,} training images"
        )
        rows = [
            (name, _text(value), _text(self.floor[name]), "lower" if name in LOWER_IS_BETTER else "higher")
            for name, value in self.samples.items()
        ]
        lines = [f"{name}: {value} (floor {floor}, {better} is better)" for name, value, floor, better in rows]
        footnote = f"{details['seconds_per_image']:.2g} s an image on {details['device']}"
        footnote += f"; {details['stand_in']}" if details["stand_in"] else ""
        return title, ("measure", "samples", "floor", "better"), rows, lines, footnote


def sample_quality(
    model: Any,
    sampler: Sampler,
    extractor: FeatureExtractor,
    data: Any,
    sampling: Sampling,
    *,
    stand_in: str | None = None,
    accuracy_score: AccuracyScore | None = None,
    with_progress: WithProgress = without_progress,
) -> Quality:
    """Draw images and compare them with the test images of `data`. Call `check_comparable` first.

    `sampler` draws the images. It is the model itself, or for an autoencoder the sampler that `stand_in` describes.
    `accuracy_score`: if given, its value is reported as well.
    """
    train, test = data.split("train"), data.split("test")
    conditional = getattr(model, "conditioning", "none") == "label"
    labels = torch.arange(sampling.n) % model.spec.classes if conditional else None
    images, seconds = draw_samples(sampler, sampling, model.spec, labels, with_progress)
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(sampling.seed))[: sampling.n]
    floor_images = train.take(chosen.to(train.images.device))

    real = extractor.extract(test.images, test.labels if data.class_names else None)
    samples = extractor.extract(images, labels)
    floor = extractor.extract(floor_images.images, floor_images.labels if conditional else None)
    accuracy = real.accuracy
    details = {
        "conditioning": str(getattr(model, "conditioning", "none")), "stand_in": stand_in, "data": data.name,
        "n": sampling.n, "other_data": data.others, "test_images": len(test.labels), "seed": sampling.seed,
        "temperature": sampling.temperature, "batch_size": sampling.batch_size,
        "seconds_per_image": seconds / sampling.n, "device": str(next(model.parameters()).device),
        "classifier": {
            "checkpoint": extractor.checkpoint, "sha256": weights_hash(extractor.model),
            "data": extractor.run["names"]["data"], "features": real.features.shape[1],
            "accuracy": accuracy and accuracy.value, "accuracy_error": accuracy and accuracy.error,
        },
        "neighbours": {"precision, recall": K_PRECISION, "density, coverage": K_DENSITY},
    }  # fmt: skip
    return Quality(
        _measured(samples, real, sampling.seed, accuracy_score),
        _measured(floor, real, sampling.seed, accuracy_score),
        details,
    )


def check_comparable(
    model: Any, extractor: FeatureExtractor, data: Any, n: int, run: dict[str, Any], ckpt: str
) -> None:
    """Raise RequestError unless n samples of the model of `ckpt=` can be compared with the training and test images.

    `data` and `run`: data module and config of the model's run. The classifier must have been trained on images of the
    same shape, alphabet and data set.
    """
    if getattr(model, "conditioning", "none") == "image":
        raise RequestError(
            f"ckpt={ckpt} is conditioned on a second image, so its images are not samples of {data.name}"
        )
    extractor.check_fits(model.spec, data.source.name, run["names"]["data"])
    train_images, test_images = len(data.split("train").labels), len(data.split("test").labels)
    if train_images < n:
        raise RequestError(
            f"n={n}: the floor compares as many training images as samples with the test images, and {data.name} "
            f"has {train_images}: give n={train_images} or less"
        )
    if test_images < MIN_IMAGES:
        raise RequestError(
            f"{data.name} has {test_images} test images: at least {MIN_IMAGES} are needed to compare with"
        )


def draw_samples(
    sampler: Sampler, sampling: Sampling, spec: ImageSpec, labels: Tensor | None, with_progress: WithProgress
) -> tuple[Tensor, float]:
    """n images (n, C, H, W) on the CPU, of the classes `labels` (n,) if not None; and the seconds that it took."""
    generator = torch.Generator().manual_seed(sampling.seed)  # on the CPU: the same noise for every device
    dtype = torch.uint8 if spec.levels <= 256 else torch.long

    def draw(advance: Callable[[int], None]) -> Tensor:
        parts = []
        for start in range(0, sampling.n, sampling.batch_size):
            n = min(sampling.batch_size, sampling.n - start)
            context = None if labels is None else labels[start : start + n]
            part = sampler.sample(n, context=context, temperature=sampling.temperature, generator=generator)
            parts.append(part.cpu().to(dtype))
            advance(n)
        return torch.cat(parts)

    started = time.perf_counter()
    with torch.no_grad():
        images = with_progress("sampling", sampling.n, draw)
    return images, time.perf_counter() - started


def _measured(
    samples: FeatureSet, real: FeatureSet, seed: int, accuracy_score: AccuracyScore | None
) -> dict[str, Estimate]:
    """Every measure of samples against real images, by name."""
    values = measures(real.features, samples.features, seed=seed)
    if samples.accuracy is not None:
        values["label_accuracy"] = samples.accuracy
    if accuracy_score is not None:
        assert samples.labels is not None
        assert real.labels is not None
        values["accuracy_score"] = accuracy_score(
            Split(samples.images, samples.labels), Split(real.images, real.labels)
        )
    return values


def _text(estimate: Estimate) -> str:
    value = f"{estimate.value:#.4g}" if abs(estimate.value) >= 1 else f"{estimate.value:.4f}"
    return value if estimate.error is None else f"{value} ± {estimate.error:.4f}"
