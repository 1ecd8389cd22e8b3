"""`genlab sample`: images drawn from a model, as a PNG grid and as integers."""

from __future__ import annotations

import time

import torch

from genlab.compose import Request, split_hydra
from genlab.core import Sampler
from genlab.tasks.common import (
    at_least,
    check_label,
    check_seed,
    check_temperature,
    open_model,
    save_array,
    with_progress,
    writable,
)  # fmt: skip
from genlab.viz import save_grid


def command(request: Request) -> None:
    """Check everything, then draw, then write."""
    config, _ = split_hydra(request.config())
    at_least(config, "n", 1)
    at_least(config, "batch_size", 1)
    check_temperature(config)
    check_seed(config)
    out = writable("out", config.out, ".png")
    writable("out", str(out.with_suffix(".npy")), ".npy")
    model, _, spec = open_model(config, Sampler, "draw images")
    check_label(config, model, spec)

    generator = torch.Generator().manual_seed(config.seed)  # on the CPU: the same noise for every device
    started = time.perf_counter()

    def draw(advance):  # type: ignore[no-untyped-def]
        parts = []
        for start in range(0, config.n, config.batch_size):
            n = min(config.batch_size, config.n - start)
            parts.append(model.sample(n, temperature=config.temperature, generator=generator).cpu())  # type: ignore[operator]
            advance(n)
        return torch.cat(parts)

    images = with_progress("sampling", config.n, draw)
    seconds = time.perf_counter() - started
    save_grid(out, images, spec)
    save_array(out.with_suffix(".npy"), images, spec)
    print(f"{out} and {out.with_suffix('.npy').name}: {config.n} images in {seconds:.1f} s")
