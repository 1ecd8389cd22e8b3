"""How tight a bound is: bits per dimension over the number of draws (Burda et al. 2016, arXiv:1509.00519).

With k draws of the log-weight log w, log 1/k sum w is a lower bound of log p(x) on average, and grows with k. At k = 1
it is the ELBO. Each point is the mean over the same images of all groups of k among `DRAWS` draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.build.models import model_name
from genlab.core import ImageSpec, Likelihood, RequestError
from genlab.measure.bits import bits_per_dim
from genlab.viz.subject import Save, Subject, figure

DRAWS, IMAGES, BATCH = 256, 64, 64


def bounds(subject: Subject) -> Save:
    """A curve from the ELBO to the tightest bound."""
    model = subject.model
    if not isinstance(model, Likelihood):
        raise RequestError(f"{model_name(model)} has no likelihood: there is no bound to show")
    if model.exact:
        raise RequestError(f"the likelihood of {model_name(model)} is exact: there is no bound to show")
    log_w = _log_weights(subject)
    counts = [2**i for i in range(int(math.log2(DRAWS)) + 1)]
    spec: ImageSpec = model.spec  # type: ignore[attr-defined]
    bits = [float(bits_per_dim(_bound(log_w, k), spec)) for k in counts]
    return figure(_drawn(counts, bits, f"{model_name(model)}, {log_w.shape[1]} images of the {subject.split} split"))


@torch.no_grad()
def _log_weights(subject: Subject) -> Tensor:
    """Log-weights (DRAWS, N) in nats, float64, of the first images."""
    model, device = subject.model, next(subject.model.parameters()).device
    x = subject.images[:IMAGES].to(device)
    context = None if subject.context is None else subject.context[:IMAGES].to(device)

    def draw(advance: Any) -> Tensor:
        rows = []
        for _ in range(DRAWS):
            rows.append(model.log_prob(x, context).double().cpu())
            advance(1)
        return torch.stack(rows)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return subject.with_progress("drawing", DRAWS, draw)  # type: ignore[no-any-return]


def _bound(log_w: Tensor, k: int) -> Tensor:
    """The mean over images and groups of log 1/k sum of k weights, nats."""
    groups = log_w.unflatten(0, (-1, k))
    return (groups.logsumexp(1) - math.log(k)).mean()


def _drawn(counts: list[int], bits: list[float], title: str) -> Any:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.4, 3.6), dpi=100)
    axes = drawn.subplots()
    axes.plot(counts, bits, "o-", color="C0", markersize=4)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="draws k", ylabel="bits/dim, upper bound")
    axes.annotate("ELBO", (counts[0], bits[0]), textcoords="offset points", xytext=(8, 0), fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.tight_layout()
    return drawn
