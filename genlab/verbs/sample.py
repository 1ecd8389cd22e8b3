"""`genlab sample`: images drawn from a model, or made by what stands in for that, as a PNG grid and as integers."""

from __future__ import annotations

import time

import torch

from genlab.core import Sampler
from genlab.models import Autoencoder
from genlab.request.checkpoints import open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.contexts import given
from genlab.request.numbers import check_at_least
from genlab.request.outputs import check_drawing, save_images
from genlab.request.progress import with_progress
from genlab.request.stand_in import sampler_of


def command(request: Request) -> None:
    """Check everything, then draw, then write."""
    config, _ = split_hydra(request.config())
    out = check_drawing(config)
    check_at_least(config, "batch_size", 1)
    model, run, spec = open_model(config, Sampler, "draw images", Autoencoder)
    what = given(config, model, run, any_label=True)
    started = time.perf_counter()
    sampler, how = sampler_of(config, model, run)

    generator = torch.Generator().manual_seed(config.seed)  # on the CPU: the same noise for every device

    def draw(advance):  # type: ignore[no-untyped-def]
        parts = []
        for start in range(0, what.n, config.batch_size):
            n = min(config.batch_size, what.n - start)
            drawn = sampler.sample(n, context=what.part(start, n), temperature=config.temperature, generator=generator)
            parts.append(drawn.cpu())
            advance(n)
        return torch.cat(parts)

    images = with_progress("sampling", what.n, draw)
    seconds = time.perf_counter() - started
    save_images(out, images, spec, *what.shown(images), columns=what.columns)
    print(f"{out} and {out.with_suffix('.npy').name}: {what.n} images{what.says} in {seconds:.1f} s{how}")
