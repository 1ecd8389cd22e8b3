"""The labels of a set of images, for a class-conditional model."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from genlab.core import RequestError
from genlab.request.contexts import Classes
from genlab.request.image_set import ImageSet


def labels_of(config: DictConfig, model: Any, run: dict[str, Any], images: ImageSet, key: str) -> Tensor | None:
    """Labels (N,): those of the data set, or `label=` for all images; None for an unconditional model.

    `key`: the config key that names the images. Raises RequestError if a label is missing or makes no sense, and for a
    model that is conditioned on a second image.
    """
    kind = getattr(model, "conditioning", "none")
    if kind == "image":
        raise RequestError(f"this model is conditioned on a second image, which {key}= does not give")
    if kind == "none":
        if config.label is not None:
            raise RequestError(f"label={config.label}: this model is unconditional, it takes no label")
        return None
    if config.label is not None:
        return torch.full((len(images),), Classes.of(run, images.spec).number(config.label))
    if images.labels is None:
        raise RequestError(f"this model is conditioned on a class label, which {key}= does not give: add label=")
    return images.labels
