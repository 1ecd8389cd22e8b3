"""A trained classifier as a feature extractor for images, and the images of a set with their features.

Published work uses an Inception network trained on ImageNet. Ours is a classifier that genlab has trained on the data
set in question (`experiment=classifier_mnist` and others), so nothing is downloaded and the features fit the images.

N images (N, C, H, W), D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genlab.build import build_data, find_checkpoint, restore
from genlab.build.models import model_name
from genlab.core import Classifier, ImageSpec, RequestError
from genlab.measure.feature_distances import Array, Estimate, mean


@dataclass
class FeatureSet:
    """Images (N, C, H, W), their true labels (N,) if they have any, their features (N, D) and predicted labels (N,)."""

    images: Tensor
    labels: Tensor | None
    features: Array
    predicted: Array

    @property
    def accuracy(self) -> Estimate | None:
        """Share of images that the classifier labels correctly; None without true labels."""
        return None if self.labels is None else mean(self.predicted == self.labels.cpu().numpy())


@dataclass
class FeatureExtractor:
    """A classifier, the config of the run that trained it, and its origin.

    `path`: the value of `classifier=`. `checkpoint`: the file that was read. `source`: the name of the data source that
    it was trained on. `batch_size`: images that are read at once.
    """

    model: Any
    run: dict[str, Any]
    source: str
    path: str
    checkpoint: str
    batch_size: int

    @property
    def spec(self) -> ImageSpec:
        """The images that the classifier reads."""
        return self.model.spec

    @torch.no_grad()
    def extract(self, images: Tensor, labels: Tensor | None) -> FeatureSet:
        """Images (N, C, H, W) with their features in float64."""
        device = next(self.model.parameters()).device
        readings = [self.model.read(part.to(device)) for part in images.split(self.batch_size)]
        features = torch.cat([reading.features for reading in readings]).double().cpu().numpy()
        predicted = torch.cat([reading.log_probs.argmax(1) for reading in readings]).cpu().numpy()
        return FeatureSet(images, labels, features, predicted)

    def check_fits(self, spec: ImageSpec, source: str, data_name: str) -> None:
        """Raise RequestError unless the classifier was trained on images of this shape, alphabet and data source.

        `data_name`: the value of `data=` on the command line, for the message.
        """
        better = f"train one with genlab train model=classifier data={data_name}"
        if (*self.spec.shape, self.spec.levels) != (*spec.shape, spec.levels):
            raise RequestError(
                f"classifier={self.path} reads images of {_size(self.spec)}, and this model draws images of "
                f"{_size(spec)}: {better}"
            )
        # Sources are compared, not variants: a classifier of any binarisation of the same digits is accepted. (The
        # published binarisation of MNIST has no labels, so a classifier cannot be trained on it.)
        if self.source != source:
            raise RequestError(
                f"classifier={self.path} was trained on {self.source} and this model on {source}, on which its "
                f"features say little: {better}"
            )


def open_feature_extractor(
    path: str, device: torch.device, batch_size: int, trust: Sequence[str] = ()
) -> FeatureExtractor:
    """The classifier of a run folder or checkpoint file, on the device. Raises RequestError if it is no classifier."""
    try:
        model, run = restore(path, trust=trust)
    except RequestError as error:
        raise RequestError(str(error).replace("ckpt=", "classifier=", 1)) from error
    if not isinstance(model, Classifier):
        raise RequestError(
            f"classifier={path} is {model_name(model)}, not a classifier: train one with "
            "experiment=classifier_mnist, experiment=classifier_cifar10 or model=classifier"
        )
    source = build_data(run["data"], trust).source.name
    return FeatureExtractor(model.to(device), run, source, path, str(find_checkpoint(path)), batch_size)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of a model's weights. It identifies the model, not the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _size(spec: ImageSpec) -> str:
    return f"{spec.channels}x{spec.height}x{spec.width} with {spec.levels} levels"
