"""`genlab complete`: draw the unknown pixels of an image given the known ones.

The PNG grid shows the image as it was given, with unknown pixels in grey, then the true image where `known=` hides a
part of a whole one, and then the completions. The .npy file holds the completions as integers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from genlab.core import Completer, ImageSpec, RequestError
from genlab.data.context import UNKNOWN
from genlab.measure.captions import caption_of
from genlab.models import Autoencoder
from genlab.request.checkpoints import open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.contexts import Contexts, read_contexts
from genlab.request.masks import known_mask
from genlab.request.numbers import check_at_least
from genlab.request.outputs import check_drawing, save_images
from genlab.request.pictures import partial_image
from genlab.request.progress import with_progress
from genlab.request.samplers import completer_of
from genlab.viz import to_uint8

PARTICLES = 32  # the default where known pixels come after unknown ones
BATCH = 512  # images times particles that are drawn together


def command(request: Request) -> None:
    """Check the request, draw the completions, write both files and print one line."""
    config, _ = split_hydra(request.config())
    out = check_drawing(config, "completion.png")
    if config.particles is not None:
        check_at_least(config, "particles", 1)
    model, run, spec = open_model(config, Completer, "complete images", Autoencoder)
    contexts = read_contexts(config, model, run, label_required=True)
    completer = completer_of(config, model)
    generator = torch.Generator().manual_seed(config.seed)
    image, known = _partial_image(config, spec, generator)

    # Known pixels that come after an unknown one need weighted particles. If all known pixels come first, none do.
    known_first = completer.completion == "ordered" and bool((known.flatten().long().diff() <= 0).all())
    weighted = completer.completion in ("ordered", "weighted") and not known_first
    particles = config.particles or (PARTICLES if weighted else 1)
    batch = max(1, BATCH // (particles if weighted else 1))

    def draw(advance):  # type: ignore[no-untyped-def]
        images, effective = [], []
        for start in range(0, contexts.n, batch):
            n = min(batch, contexts.n - start)
            completion = completer.complete(
                image.expand(n, -1, -1, -1), known.expand(n, -1, -1), context=contexts.part(start, n),
                particles=particles, temperature=config.temperature, generator=generator,
            )  # fmt: skip
            images.append(completion.images.cpu())
            if completion.effective_particles is not None:
                effective.append(completion.effective_particles.min().item())
            advance(n)
        return torch.cat(images), min(effective, default=None)

    images, fewest = with_progress("completing", contexts.n, draw)
    whole = config.known is not None  # the picture had no unknown pixels itself
    grid, grid_spec, columns = _grid(image, known, whole, images, contexts)
    legend = "given, true, completed" if whole else "given, completed"
    caption = f"{caption_of(config.ckpt, run, model)} · {legend}"
    save_images(out, images, spec, grid, grid_spec, columns, caption)
    if weighted and fewest is not None:
        accuracy = f"{particles} particles, at worst {fewest:.1f} of them effective"
    else:
        accuracy = "exact: the known pixels come first" if known_first else completer.completion
    print(f"{out} and {out.with_suffix('.npy').name}: {contexts.n} completions{contexts.text} ({accuracy})")


def _partial_image(config: DictConfig, spec: ImageSpec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(image (C, H, W), known (H, W) bool) of `image=` and `known=`.

    Raises RequestError if all or no pixels are known.
    """
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
    return image, known


def _grid(
    image: Tensor, known: Tensor, whole: bool, images: Tensor, contexts: Contexts
) -> tuple[Tensor, ImageSpec, int | None]:
    """(pictures (N, C, H, W) in 0..255, their spec, columns of the grid): the given image, itself if it is `whole`, and
    its completions.

    Where every row is a class, every row begins with the given image.
    """
    # The unknown pixels of a picture are those that change with the unknown pixels of the image.
    black, white = (torch.where(known, image, level) for level in (0, contexts.spec.levels - 1))
    pictures, spec = contexts.grid(torch.cat([torch.stack([black, white, image]), images]))
    pictures = to_uint8(pictures, spec)
    before = len(pictures) - len(images) - 3  # the second image, if there is one
    black, white, true = pictures[before : before + 3]
    given = torch.where((black != white).any(0), UNKNOWN, black)
    start = torch.stack([*pictures[:before], given, *([true] if whole else [])])
    spec, completed = ImageSpec(*given.shape), pictures[before + 3 :]
    if contexts.columns:
        rows = completed.unflatten(0, (-1, contexts.columns))
        grid = torch.cat([start.expand(len(rows), *start.shape), rows], 1)
        return grid.flatten(0, 1), spec, grid.shape[1]
    grid = torch.cat([start, completed])
    return grid, spec, len(grid) if len(images) < 12 else None
