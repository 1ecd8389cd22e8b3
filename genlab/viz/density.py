"""The distribution of a model on a whole grid, beside the true one (data=toy1d, data=toy2d).

The Kullback-Leibler divergence from the model's q to the true p, sum p log2(p / q) in bits, is exact where the model's
likelihood is. Where the model gives a bound, log q(x) is replaced by the mean of `DRAWS` log-weights, so the number is
an upper bound; the picture shows the mean of the weights, which estimates q(x). A model without a likelihood is judged
by a histogram of `SAMPLES` drawings, with one drawing added to every cell: unlike the others, this number depends on
how many were drawn. A model of y given x is shown as p(x) q(y | x).

K levels a coordinate, D coordinates; tables (K,) or (K, K) whose entries sum to 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genlab.build.models import model_name
from genlab.core import Likelihood, RequestError, Sampler
from genlab.measure.bits import in_bits
from genlab.viz.subject import Save, Subject, figure

DRAWS = 64  # of a bound
SAMPLES = 50_000  # of a model without a likelihood
BATCH = 4096  # points at once


def has_density(data: Any) -> bool:
    """Whether the true distribution of a data module's images is known."""
    return getattr(getattr(data, "source", None), "table", None) is not None


def density(subject: Subject) -> Save:
    """The true table and the model's, with their divergence."""
    if not has_density(subject.data):
        raise RequestError("what=density needs images whose distribution is known: train on data=toy1d or data=toy2d")
    truth = torch.from_numpy(subject.data.source.table)
    shown, bits, kind = divergence(subject.model, subject.data)
    return figure(_drawn(truth, shown, f"{model_name(subject.model)}: KL {kind}{bits:.3f} bits"))


def divergence(model: Any, data: Any) -> tuple[Tensor, float, str]:
    """(the model's table, its divergence in bits, "" if that is exact, "≤ " or "from drawings: ")."""
    truth = torch.from_numpy(data.source.table)
    if isinstance(model, Likelihood):
        log_q, log_bound = log_tables(model, data)
        return log_q.exp(), _kl(truth, log_bound), "" if model.exact else "≤ "
    if isinstance(model, Sampler):
        counts = _counts(model, data, truth)
        return counts / counts.sum(), _kl(truth, ((counts + 1) / (counts + 1).sum()).log()), "from drawings: "
    raise RequestError(f"{model_name(model)} has no distribution of images")


@torch.no_grad()
def log_tables(model: Any, data: Any) -> tuple[Tensor, Tensor]:
    """(log q of every cell, its lower bound) in nats, float64; equal for an exact model."""
    truth = torch.from_numpy(data.source.table)
    levels, dims = truth.shape[0], truth.ndim
    cells = torch.cartesian_prod(*[torch.arange(levels)] * dims).view(-1, 1, 1, dims)
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in cells.split(BATCH):
            x, context = (batch, None) if data.context is None else data.context(batch, data.whole)
            x, context = (None if each is None else each.to(_device(model)) for each in (x, context))
            draws = 1 if model.exact else DRAWS
            log_w = torch.stack([model.log_prob(x, context).double().cpu() for _ in range(draws)])
            parts.append(torch.stack([log_w.logsumexp(0) - math.log(draws), log_w.mean(0)]))
    log_q, bound = torch.cat(parts, 1).view(2, *truth.shape)
    if data.context is not None:  # q(y | x), and x is the first coordinate
        first = truth.sum(1, keepdim=True).log()
        log_q, bound = log_q + first, bound + first
    return log_q, bound


def _counts(model: Any, data: Any, truth: Tensor) -> Tensor:
    """How many drawings fall into every cell, float64."""
    if data.context is not None:
        raise RequestError(f"{model_name(model)} has no likelihood given a second image: there is no density to show")
    drawn = model.sample(SAMPLES, seed=0).flatten(1).cpu()
    cell = (drawn * truth.shape[0] ** torch.arange(truth.ndim - 1, -1, -1)).sum(1)
    return cell.bincount(minlength=truth.numel()).view(truth.shape).double()


def _kl(truth: Tensor, log_q: Tensor) -> float:
    """sum p log2(p / q) over the cells with p > 0; infinite where q is 0."""
    inside = truth > 0
    return float((truth[inside] * in_bits(log_q[inside] - truth[inside].log())).sum())


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device  # type: ignore[no-any-return]


def _drawn(truth: Tensor, shown: Tensor, title: str) -> Any:
    """Bars and a line for one coordinate; two pictures on the same scale for two, the first coordinate to the right."""
    from matplotlib.figure import Figure

    if truth.ndim == 1:
        drawn = Figure(figsize=(6.4, 3.6), dpi=100)
        axes = drawn.subplots()
        axes.bar(range(len(truth)), truth.tolist(), color="0.8", width=1, label="true")
        axes.plot(shown.tolist(), color="C3", linewidth=1.2, label="model")
        axes.set(xlabel="x", ylabel="p(x)")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    else:
        drawn = Figure(figsize=(6.4, 3.7), dpi=100)
        for axes, table, name in zip(drawn.subplots(1, 2), (truth, shown), ("true", title), strict=True):
            axes.imshow(table.T.numpy(), origin="lower", vmin=0, vmax=float(truth.max()), cmap="viridis")
            axes.set_title(name, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    drawn.tight_layout()
    return drawn
