"""How long does an image take? Can training be done in parallel? Can generation?

Seconds an image over the number of images at once: for a sample with the cache, for a sample by one whole forward pass
for every step, and for a step of training, which computes all conditionals in parallel. Of the forward passes, only
`MOST_PASSES` are timed, and their mean is multiplied by the number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.build.models import model_name
from genlab.viz.generation import autoregressive
from genlab.viz.subject import Save, Subject, figure

COUNTS = (1, 4, 16, 64)  # images at once
MOST_PASSES = 4
CURVES = ("sampling, with the cache", "sampling, a forward pass a step", "a step of training")


def timing(subject: Subject) -> Save:
    """Three curves."""
    model = autoregressive(subject)

    def measure(advance: Callable[[int], object]) -> list[tuple[float, float, float]]:
        rows = []
        for n in COUNTS:
            given = subject.first_context
            context = None if given is None else given.expand(n, *given.shape[1:]).to(model.device)
            rows.append(seconds(model, n, context))
            advance(1)
        return rows

    trained = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(True)
    try:
        rows = subject.with_progress("measuring", len(COUNTS), measure)
    finally:
        for p, needed in zip(model.parameters(), trained, strict=True):
            p.requires_grad_(needed)
            p.grad = None
    return figure(_drawn(rows, f"{model_name(model)}, {model.device.type}"))


def seconds(model: Any, n: int, context: Tensor | None) -> tuple[float, float, float]:
    """Seconds an image of the three ways, with n images at once."""
    x = model.sample(n, context=context, seed=0)  # warms up
    steps = model.spec.dims // model.net.step_channels
    passes = min(steps, MOST_PASSES)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(passes):
                model.log_prob(x, context)

    def train() -> None:
        with torch.enable_grad():
            model.objective(x, context)["loss"].mean().backward()

    cached = _timed(lambda: model.sample(n, context=context, seed=0))
    return cached / n, _timed(forward) * steps / passes / n, _timed(train) / n


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _drawn(rows: list[tuple[float, float, float]], title: str) -> Any:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.6, 3.8), dpi=100)
    axes = drawn.subplots()
    for name, values, style in zip(CURVES, zip(*rows, strict=True), ("o-", "s--", "^:"), strict=True):
        axes.plot(COUNTS, values, style, markersize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.set(xlabel="images at once", ylabel="seconds an image")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.tight_layout()
    return drawn
