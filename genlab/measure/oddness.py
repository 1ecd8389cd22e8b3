"""Scores of how odd images are to a model. Each column is higher for odder images.

    bits                   -log2 p(x), or minus one draw of a bound
    complexity_corrected   bits - bits of the image as an optimised PNG (Serrà et al. 2020, arXiv:1909.11480): a
                           likelihood alone calls any simple image normal
    typicality             |bits - mean bits of reference images|: an image can also be too likely (Nalisnick et al.
                           2019, arXiv:1906.02994)
    likelihood_ratio       bits - bits of a background model (Ren et al. 2019, arXiv:1906.02845)
    kl_bits, pixel_bits    of a latent Gaussian model: the KL of q(z | x) from the prior, and -log2 p(x | z)
    reconstruction         of an autoencoder: the reconstruction term of its objective

No score is best for all kinds of images. `auroc` tells how well each separates two sets.

N images (n in a batch), C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from genlab.core import Coder, Latent, Likelihood
from genlab.measure.bits import in_bits, log_marginal
from genlab.measure.code_lengths import png_bits
from genlab.system.device import true_float32

BATCH = 100


@runtime_checkable
class PixelLikelihood(Protocol):
    """A model whose log-probability of an image is a sum over its pixels."""

    def pixel_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> log p of every pixel given the earlier ones, nats (B, H, W)."""


@torch.no_grad()
@true_float32()
def scores(
    model: Any,
    images: Any,
    labels: Tensor | None,
    *,
    background: Any = None,
    typical_bits: float | None = None,
    advance: Callable[[int], Any] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Columns of N numbers for the images of a set (`request.image_set`), whose `labels` (N,) may be None.

    `background`: a second model with a likelihood. `typical_bits`: the mean bits of reference images. The noise of a
    bound has a fixed seed.
    """
    parts: dict[str, list[Tensor]] = {}
    torch.manual_seed(0)
    for start in range(0, len(images), BATCH):
        x = images.part(start, min(start + BATCH, len(images))).long()
        context = None if labels is None else labels[start : start + len(x)].to(model.device)
        columns = _of_batch(model, x.to(model.device), context)
        if background is not None:
            columns["likelihood_ratio"] = columns["bits"] - _bits(background, x.to(background.device), None)
        if images.spec.levels <= 256 and images.spec.channels in (1, 3):
            columns["png_bits"] = torch.tensor([png_bits(image, images.spec) for image in x], dtype=torch.double)
            if "bits" in columns:
                columns["complexity_corrected"] = columns["bits"] - columns["png_bits"]
        if typical_bits is not None and "bits" in columns:
            columns["typicality"] = (columns["bits"] - typical_bits).abs()
        for name, column in columns.items():
            parts.setdefault(name, []).append(column.double().cpu())
        advance(len(x))
    return {name: torch.cat(column).numpy() for name, column in parts.items()}


def _of_batch(model: Any, x: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    if isinstance(model, Likelihood):
        columns["bits"] = _bits(model, x, context)
        columns["bits_per_dim"] = columns["bits"] / model.spec.dims  # type: ignore[attr-defined]
    if isinstance(model, Latent):
        terms = model.objective(x, context)  # type: ignore[attr-defined]
        columns["kl_bits"], columns["pixel_bits"] = in_bits(-terms["rate"]), in_bits(-terms["distortion"])
    elif isinstance(model, Coder) and not isinstance(model, Likelihood):
        columns["reconstruction"] = model.objective(x, context)["reconstruction"]  # type: ignore[attr-defined]
    return columns


def _bits(model: Any, x: Tensor, context: Tensor | None) -> Tensor:
    return in_bits(log_marginal(model, x, context)).cpu()


@torch.no_grad()
@true_float32()
def bit_maps(model: PixelLikelihood, x: Tensor, context: Tensor | None) -> Tensor:
    """Integers (n, C, H, W) -> bits of every pixel (n, H, W)."""
    return in_bits(model.pixel_log_prob(x, context)).cpu()


def auroc(own: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Area under the ROC curve of every score, if `other` images are to be found among `own` ones.

    1 separates them, 0.5 is chance, and below 0.5 the score is wrong: it calls the other images more normal.
    """
    found = {}
    for name in own:
        if name in other and name not in ("bits_per_dim", "png_bits"):
            truth = np.repeat([0, 1], [len(own[name]), len(other[name])])
            found[name] = float(roc_auc_score(truth, np.concatenate([own[name], other[name]])))
    return found
