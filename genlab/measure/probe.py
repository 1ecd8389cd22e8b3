"""A linear probe: how well a linear classifier predicts labels from frozen features.

Multinomial logistic regression (scikit-learn, L-BFGS) on standardised features. The strength of its L2 penalty is
chosen by the accuracy on validation images, and so is the layer of a network (`best_layer`). Test images are used
only for the final accuracy.

N images, D features; features x (N, D) float32, labels y (N,) integers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from genlab.core import RequestError

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # factors of |w|^2 / 2, added to the mean cross entropy of an image in nats
PATIENCE = 2  # the search ends after so many penalties in a row without a better validation accuracy
MAX_ITERATIONS = 1000  # of L-BFGS for each penalty; it starts from the solution for the stronger one
TOLERANCE = 1e-4  # of every component of the gradient of the penalised mean cross entropy
Z95 = 1.96  # half the width of a 95 % interval in standard deviations

Array = NDArray[Any]


class Labelled(NamedTuple):
    """Features (N, D) and labels (N,)."""

    x: Array
    y: Array


class Probe(NamedTuple):
    """The result for the best penalty. `width`: number of features D; `valid`, `test`: accuracies in [0, 1].

    `converged`: True if L-BFGS reached its tolerance.
    """

    layer: str
    width: int
    penalty: float
    valid: float
    test: float
    converged: bool


def probe(layer: str, train: Labelled, valid: Labelled, test: Labelled) -> Probe:
    """Fit a classifier to `train` with weaker and weaker penalties and keep the one with the best validation accuracy.

    If several are equal, the strongest penalty is kept. `layer` is only passed on to the result. Raises RequestError if
    the training images are all of one class.
    """
    if len(np.unique(train.y)) < 2:
        raise RequestError(f"the {len(train.y)} labelled training images are all of one class: a probe needs two")
    scaler = StandardScaler().fit(train.x)
    x, x_valid = scaler.transform(train.x), scaler.transform(valid.x)
    classifier = LogisticRegression(max_iter=MAX_ITERATIONS, tol=TOLERANCE, warm_start=True)
    best: Probe | None = None
    without_gain = 0
    for penalty in PENALTIES:
        classifier.C = 1 / (penalty * len(x))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(x, train.y)
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        accuracy = float(classifier.score(x_valid, valid.y))
        if best is None or accuracy > best.valid:
            test_accuracy = float(classifier.score(scaler.transform(test.x), test.y))
            best, without_gain = Probe(layer, x.shape[1], penalty, accuracy, test_accuracy, converged), 0
        elif (without_gain := without_gain + 1) == PATIENCE:
            break
    assert best is not None
    return best


def best_layer(seeds: Sequence[Mapping[str, Probe]]) -> str:
    """The layer with the highest validation accuracy averaged over seeds; the first one if several are equal."""
    return max(seeds[0], key=lambda layer: float(np.mean([probes[layer].valid for probes in seeds])))


def interval(tests: list[float], images: int) -> float:
    """Half the width of the 95 % interval of the mean over seeds of the test accuracies `tests`.

    The variance is the binomial one of the test images, which all seeds share, plus the variance over seeds divided by
    their number. The interval is that of a normal distribution, which is a little narrow for few seeds.
    """
    mean = float(np.mean(tests))
    over_seeds = float(np.var(tests, ddof=1)) / len(tests) if len(tests) > 1 else 0.0
    return Z95 * (mean * (1 - mean) / images + over_seeds) ** 0.5


def labelled_subset(y: Array, seed: int, *, per_class: int | None = None, count: int | None = None) -> Array:
    """Positions of randomly chosen images in ascending order: `per_class` of every class, `count` in all, or all.

    For one seed, a smaller subset is contained in a larger one. Raises RequestError if there are too few images.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    if per_class is not None:
        positions = [order[y[order] == c] for c in np.unique(y)]
        if (smallest := min(map(len, positions))) < per_class:
            raise RequestError(f"per_class={per_class}: the smallest class has only {smallest} training images")
        return np.sort(np.concatenate([p[:per_class] for p in positions]))
    if count is not None and count > len(y):
        raise RequestError(f"train={count}: there are only {len(y)} training images")
    return np.sort(order[:count])
