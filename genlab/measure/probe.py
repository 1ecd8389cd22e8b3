"""What a frozen representation is worth: a linear classifier on it, and on what costs nothing, chosen on validation.

Multinomial logistic regression (scikit-learn, L-BFGS) on features that are standardised by the training images, its L2
penalty, and the layer, chosen by the accuracy on validation images; test images are only counted, once. Most published
probes are below random patches, so a result stands beside four controls:

    raw        the pixels
    pca        whitened principal components of them, as many as the probed layer has features
    patches    random convolution patches with a soft threshold, pooled in quadrants (Coates & Ng 2011, ICML)
    untrained  the same network with fresh weights, its layer chosen in the same way

What needs no labels (the network, components, patches) has seen all training images, however few are labelled. The
choices use every label of the validation split, more than `few` gives to learn from: few-label accuracies compare with
one another, not with those of a whole system that has no other labels.

N images, D features, B a batch; labels y (N,) are integers, features float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from genlab.core import Features, RequestError, RunError

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # times |w|^2 / 2, beside the mean cross-entropy of an image in nats
PATIENCE = 2  # so many weaker penalties in a row that do no better on validation, and the search is over
LEAST = 1e-6  # variance of a principal component as a share of the first one's; with less it is rounding, no direction
ITERATIONS = 1000  # of L-BFGS at most for each penalty, which starts from the solution for the stronger one
TOLERANCE = 1e-4  # of every component of the gradient of the penalised mean cross-entropy
FILTERS, PATCH, THRESHOLD = 64, 6, 0.25  # random patches, their side in pixels, what is taken off a response
CONTRAST = 1e-3  # variance that is added to that of a patch with values in [0, 1]; one with less of its own is blank
Z95 = 1.96

Array = NDArray[Any]


class Labelled(NamedTuple):
    """Features (N, D) and labels (N,)."""

    x: Array
    y: Array


class Probe(NamedTuple):
    """A classifier and how it was chosen. `valid`, `test`: accuracies; `converged`: whether L-BFGS came to its end."""

    layer: str
    width: int
    penalty: float
    valid: float
    test: float
    converged: bool


def pooled(h: Tensor) -> Tensor:
    """(B, D) as it is; of (B, T, D) and (B, D, H, W) the mean over positions: (B, D)."""
    if h.ndim == 2:
        return h
    if h.ndim in (3, 4):
        return h.mean(1) if h.ndim == 3 else h.mean((2, 3))
    raise ValueError(f"expected features (B, D), (B, T, D) or (B, D, H, W), got {tuple(h.shape)}")


@torch.no_grad()
def features(
    model: Features,
    batches: Iterable[Any],
    context_of: Callable[[object, Any], Tensor | None],
    *,
    layer: str | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, Array]:
    """Pooled features of every image, by layer (or of one layer), float32 (N, D)."""
    device = next(model.parameters()).device  # type: ignore[attr-defined]
    found: dict[str, list[Array]] = {}
    for batch in batches:
        context = context_of(model, batch)
        of_batch = model.features(batch.images.to(device), None if context is None else context.to(device))
        for name in of_batch if layer is None else (layer,):
            h = pooled(of_batch[name]).float().cpu()
            if not h.isfinite().all():
                raise RunError(
                    f"layer {name} has features that are not finite numbers: nothing can be learnt from them"
                )
            found.setdefault(name, []).append(h.numpy())
        on_batch(len(batch.index))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def probe(layer: str, train: Labelled, valid: Labelled, test: Labelled) -> Probe:
    """Fit weaker and weaker penalties, keep the one with the highest validation accuracy (of equals the strongest).

    RequestError when the training images are all of one class.
    """
    if len(np.unique(train.y)) < 2:
        raise RequestError(f"the {len(train.y)} labelled training images are all of one class: a probe needs two")
    scaler = StandardScaler().fit(train.x)
    x, x_valid = scaler.transform(train.x), scaler.transform(valid.x)
    classifier = LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
    best: Probe | None = None
    waiting = 0
    for penalty in PENALTIES:
        classifier.C = 1 / (penalty * len(x))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(x, train.y)
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        accuracy = float(classifier.score(x_valid, valid.y))
        if best is None or accuracy > best.valid:
            of_test = float(classifier.score(scaler.transform(test.x), test.y))
            best, waiting = Probe(layer, x.shape[1], penalty, accuracy, of_test, converged), 0
        elif (waiting := waiting + 1) == PATIENCE:
            break
    assert best is not None
    return best


def chosen(seeds: Sequence[Mapping[str, Probe]]) -> str:
    """The layer with the highest validation accuracy, averaged over seeds; of equals the first."""
    return max(seeds[0], key=lambda layer: float(np.mean([probes[layer].valid for probes in seeds])))


def interval(tests: list[float], images: int) -> float:
    """Half the width of the 95 % interval of the mean of test accuracies over seeds.

    The variance is the binomial one of the test images, which all seeds share, plus that over seeds by their number; of
    a normal distribution, which for a handful of seeds is a little narrow.
    """
    mean = float(np.mean(tests))
    over_seeds = float(np.var(tests, ddof=1)) / len(tests) if len(tests) > 1 else 0.0
    return Z95 * (mean * (1 - mean) / images + over_seeds) ** 0.5


def drawn(y: Array, seed: int, *, per_class: int | None = None, count: int | None = None) -> Array:
    """Positions of the images that are used, in the file's order: `per_class` random ones of every class, or `count` of
    all of them, or all. A smaller draw is part of a larger one. RequestError when there are not so many.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    if per_class is not None:
        positions = [order[y[order] == c] for c in np.unique(y)]
        if (least := min(map(len, positions))) < per_class:
            raise RequestError(f"per_class={per_class}: the smallest class has only {least} training images")
        return np.sort(np.concatenate([p[:per_class] for p in positions]))
    if count is not None and count > len(y):
        raise RequestError(f"train={count}: there are only {len(y)} training images")
    return np.sort(order[:count])


def pixels(images: Tensor) -> Array:
    """Integer images (N, C, H, W) -> (N, C H W)."""
    return images.flatten(1).numpy().astype(np.float32)


def components(images: Mapping[str, Tensor], width: int, seed: int = 0) -> dict[str, Array]:
    """Whitened principal components of the "train" images, `width` of them (or as many as there are), by split."""
    x = {split: pixels(of) for split, of in images.items()}
    pca = PCA(min(width, *x["train"].shape), whiten=True, svd_solver="covariance_eigh", random_state=seed)
    there = np.sum(pca.fit(x["train"]).explained_variance_ > LEAST * pca.explained_variance_[0])
    return {split: pca.transform(of)[:, :there].astype(np.float32) for split, of in x.items()}


def patches(images: Mapping[str, Tensor], levels: int, seed: int) -> dict[str, Array]:
    """Responses to random patches of the "train" images (N, 8 * FILTERS), by split. Values are 0..`levels` - 1.

    Patches are freed of mean and contrast and whitened (ZCA), filters have length 1; z becomes relu(z - THRESHOLD) and
    relu(-z - THRESHOLD), averaged over each quadrant. Blank patches, half of MNIST's, would make filters of nothing:
    they are passed over.
    """
    random = torch.Generator().manual_seed(seed)
    train = images["train"]
    side = min(PATCH, *train.shape[2:])

    def unfolded(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, positions, C * side^2)."""
        return F.unfold(x.float() / (levels - 1), side).mT

    def normalised(p: Tensor) -> Tensor:
        return (p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True, correction=0) + CONTRAST).sqrt()

    some = train[torch.randint(len(train), (4000,), generator=random)]
    places = torch.randint(unfolded(some[:1]).shape[1], (len(some),), generator=random)
    found = torch.cat([unfolded(x[None])[:, place] for x, place in zip(some, places, strict=True)])
    rich = found[found.var(1, correction=0) > CONTRAST]
    found = normalised(rich if len(rich) >= FILTERS else found)
    mean, (values, vectors) = found.mean(0), torch.linalg.eigh(found.T.cov())
    whiten = vectors @ ((values + 0.1).rsqrt()[:, None] * vectors.T)
    filters = F.normalize((found[:FILTERS] - mean) @ whiten, dim=1)

    def responses(x: Tensor) -> Tensor:
        z = (normalised(unfolded(x)) - mean) @ (whiten @ filters.T)
        z = z.mT.unflatten(2, (x.shape[2] - side + 1, -1))
        z = torch.cat([(z - THRESHOLD).relu(), (-z - THRESHOLD).relu()], 1)
        return F.adaptive_avg_pool2d(z, 2).flatten(1)

    return {split: torch.cat([responses(x) for x in of.split(200)]).numpy() for split, of in images.items()}
