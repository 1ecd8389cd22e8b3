"""`genlab complete`: what is unknown of an image, drawn given the rest: a PNG grid of the given, then completions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genlab.core import Completer, ImageSpec, RequestError
from genlab.models import Autoencoder
from genlab.request.common import at_least, check_drawing, open_model, save_drawing, with_progress
from genlab.request.compose import Request, split_hydra
from genlab.request.contexts import Given, given
from genlab.request.masks import known_mask
from genlab.request.pictures import partial_image
from genlab.request.stand_in import completer_of

PARTICLES = 32  # where known pixels come after unknown ones and nothing else is asked for
COPIES = 512  # images times particles at once


def command(request: Request) -> None:
    """Check everything, then draw, then write."""
    config, _ = split_hydra(request.config())
    out = check_drawing(config)
    if config.particles is not None:
        at_least(config, "particles", 1)
    model, run, spec = open_model(config, Completer, "complete images", Autoencoder)
    what = given(config, model, run, any_label=False)
    completer = completer_of(config, model)
    kind = completer.completion
    generator = torch.Generator().manual_seed(config.seed)

    image, known = partial_image(Path(str(config.image)), spec)
    if config.known is not None:
        if not known.all():
            raise RequestError(
                f"known={config.known} describes a whole image, but image={config.image} already leaves pixels open "
                "(transparent, or smaller than the model's): drop known=, or give the whole image"
            )
        known = known_mask(str(config.known), spec, generator)
    if known.all():
        raise RequestError(
            f"every pixel of image={config.image} is known, nothing is left to complete: "
            "say what to keep, for example known=top:0.5"
        )

    if not known.any():
        where = "all of it is transparent" if config.known is None else f"known={config.known}"
        raise RequestError(
            f"no pixel of image={config.image} is known ({where}): keep some of them, or draw whole images with sample"
        )

    # Known pixels that come after an unknown one need weighted particles; a known prefix does not.
    prefix = kind == "ordered" and bool((known.flatten().long().diff() <= 0).all())
    weighted = kind == "weighted" or (kind == "ordered" and not prefix)
    particles = config.particles or (PARTICLES if weighted else 1)
    chunk = max(1, COPIES // (particles if weighted else 1))

    def draw(advance):  # type: ignore[no-untyped-def]
        images, effective = [], []
        for start in range(0, what.n, chunk):
            n = min(chunk, what.n - start)
            done = completer.complete(
                image.expand(n, -1, -1, -1), known.expand(n, -1, -1), context=what.part(start, n),
                particles=particles, temperature=config.temperature, generator=generator,
            )  # fmt: skip
            images.append(done.images.cpu())
            if done.effective_particles is not None:
                effective.append(done.effective_particles.min().item())
            advance(n)
        return torch.cat(images), min(effective, default=None)

    images, fewest = with_progress("completing", what.n, draw)
    shown, shown_spec, columns = _sheet(torch.where(known, image, spec.levels // 2), images, what)
    save_drawing(out, images, spec, shown, shown_spec, columns)
    if weighted and fewest is not None:
        how = f"{particles} particles, at worst {fewest:.1f} of them effective"
    else:
        how = "exact: the known pixels come first" if prefix else kind
    print(f"{out} and {out.with_suffix('.npy').name}: {what.n} completions{what.says} ({how})")


def _sheet(start: Tensor, images: Tensor, what: Given) -> tuple[Tensor, ImageSpec, int | None]:
    """What was given, then its completions, (N, C, H, W); in rows that each begin with it where a row is a class."""
    if what.columns:
        rows = images.view(-1, what.columns, *images.shape[1:])
        sheet = torch.cat([start.expand(len(rows), 1, *start.shape), rows], 1).flatten(0, 1)
        return sheet, what.spec, what.columns + 1
    shown, spec = what.shown(torch.cat([start[None], images]))
    return shown, spec, len(shown) if len(images) < 12 else None
