"""`genlab sample`: images drawn from a model, as a PNG grid and as integers."""

from __future__ import annotations

import time

import torch

from genlab.compose import Request, split_hydra
from genlab.core import Sampler
from genlab.tasks.common import at_least, check_drawing, check_label, open_model, save_drawing, with_progress


def command(request: Request) -> None:
    """Check everything, then draw, then write."""
    config, _ = split_hydra(request.config())
    out = check_drawing(config)
    at_least(config, "batch_size", 1)
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
    save_drawing(out, images, images, spec)
    print(f"{out} and {out.with_suffix('.npy').name}: {config.n} images in {seconds:.1f} s")
