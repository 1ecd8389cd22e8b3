"""`genlab sample`: draw images from a model into a PNG grid, and the same images as integers into a .npy file.

An autoencoder has no distribution of images. Its images are drawn by `code=` or `chain=` (`request/samplers.py`).
"""

from __future__ import annotations

import time

import torch

from genlab.core import Sampler
from genlab.measure.captions import caption_of
from genlab.models import Autoencoder
from genlab.request.checkpoints import open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.contexts import read_contexts
from genlab.request.numbers import check_at_least
from genlab.request.outputs import check_drawing, save_images
from genlab.request.progress import with_progress
from genlab.request.samplers import check_data_is_read, sampler_of


def command(request: Request) -> None:
    """Check the request, draw the images, write both files and print one line."""
    config, _ = split_hydra(request.config())
    out = check_drawing(config, "samples.png")
    check_at_least(config, "batch_size", 1)
    model, run, spec = open_model(config, Sampler, "draw images", Autoencoder)
    contexts = read_contexts(config, model, run, label_required=False)
    check_data_is_read(config, model)
    started = time.perf_counter()
    sampler, description = sampler_of(config, model, run)

    generator = torch.Generator().manual_seed(config.seed)  # on the CPU, so that every device gets the same noise

    def draw(advance):  # type: ignore[no-untyped-def]
        parts = []
        for start in range(0, contexts.n, config.batch_size):
            n = min(config.batch_size, contexts.n - start)
            context = contexts.part(start, n)
            images = sampler.sample(n, context=context, temperature=config.temperature, generator=generator)
            parts.append(images.cpu())
            advance(n)
        return torch.cat(parts)

    images = with_progress("sampling", contexts.n, draw)
    seconds = time.perf_counter() - started
    caption = caption_of(config.ckpt, run, model)
    save_images(out, images, spec, *contexts.grid(images), contexts.columns, caption)
    note = f" ({description})" if description else ""
    print(f"{out} and {out.with_suffix('.npy').name}: {contexts.n} images{contexts.text} in {seconds:.1f} s{note}")
