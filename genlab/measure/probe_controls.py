"""Features without training by gradient descent. They are the controls for a linear probe of a network.

    pixels       the values of the pixels
    components   whitened principal components of the pixels
    patches      responses to random patches of training images, with a soft threshold, averaged over the quadrants of
                 the image (Coates & Ng 2011, ICML)

Many published probes of networks are less accurate than random patches.

Images are integers (N, C, H, W), given by split; features are float32 (N, D).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor

from genlab.measure.probe import Array

MIN_VARIANCE = 1e-6  # components with a smaller share of the first one's variance are rounding errors
FILTERS = 64  # random patches
PATCH = 6  # side of a patch in pixels
THRESHOLD = 0.25  # subtracted from every response
CONTRAST = 1e-3  # added to the variance of a patch with values in [0, 1]; a patch with less variance counts as blank
WHITENING = 0.1  # added to the eigenvalues of the covariance of the patches
PATCHES_FOR_WHITENING = 4000
BATCH = 200  # images whose patches are in memory at once


def pixels(images: Tensor) -> Array:
    """Integer images (N, C, H, W) -> (N, C H W)."""
    return images.flatten(1).numpy().astype(np.float32)


def components(images: Mapping[str, Tensor], width: int, seed: int = 0) -> dict[str, Array]:
    """Whitened principal components of the "train" images by split: `width` of them, or as many as there are."""
    x = {split: pixels(of_split) for split, of_split in images.items()}
    pca = PCA(min(width, *x["train"].shape), whiten=True, svd_solver="covariance_eigh", random_state=seed)
    count = np.sum(pca.fit(x["train"]).explained_variance_ > MIN_VARIANCE * pca.explained_variance_[0])
    return {split: pca.transform(of_split)[:, :count].astype(np.float32) for split, of_split in x.items()}


def patches(images: Mapping[str, Tensor], levels: int, seed: int) -> dict[str, Array]:
    """Responses to random patches of the "train" images by split, (N, 8 * FILTERS). Pixels are 0..`levels` - 1.

    Patches are normalised in mean and contrast and whitened (ZCA); filters have length 1. A response z becomes
    relu(z - THRESHOLD) and relu(-z - THRESHOLD), each averaged over each quadrant. Blank patches, which are half of
    those of MNIST, carry no information and are not used as filters.
    """
    random = torch.Generator().manual_seed(seed)
    train = images["train"]
    side = min(PATCH, *train.shape[2:])

    def unfolded(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, positions, C * side^2)."""
        return F.unfold(x.float() / (levels - 1), side).mT

    def normalised(p: Tensor) -> Tensor:
        return (p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True, correction=0) + CONTRAST).sqrt()

    chosen = train[torch.randint(len(train), (PATCHES_FOR_WHITENING,), generator=random)]
    places = torch.randint(unfolded(chosen[:1]).shape[1], (len(chosen),), generator=random)
    sample = torch.cat([unfolded(x[None])[:, place] for x, place in zip(chosen, places, strict=True)])
    not_blank = sample[sample.var(1, correction=0) > CONTRAST]
    sample = normalised(not_blank if len(not_blank) >= FILTERS else sample)
    mean, (values, vectors) = sample.mean(0), torch.linalg.eigh(sample.T.cov())
    whiten = vectors @ ((values + WHITENING).rsqrt()[:, None] * vectors.T)
    filters = F.normalize((sample[:FILTERS] - mean) @ whiten, dim=1)

    def responses(x: Tensor) -> Tensor:
        z = (normalised(unfolded(x)) - mean) @ (whiten @ filters.T)
        z = z.mT.unflatten(2, (x.shape[2] - side + 1, -1))
        z = torch.cat([(z - THRESHOLD).relu(), (-z - THRESHOLD).relu()], 1)
        return F.adaptive_avg_pool2d(z, 2).flatten(1)

    return {
        split: torch.cat([responses(x) for x in of_split.split(BATCH)]).numpy() for split, of_split in images.items()
    }
