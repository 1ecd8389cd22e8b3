"""`genlab reconstruct`: images beside their reconstructions from a code.

The grid of a denoising model shows each image clean, corrupted and denoised. The .npy file holds the reconstructions
as integers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from genlab.build.models import model_name
from genlab.core import Coder, Denoiser, ImageSpec, RequestError
from genlab.data.batches import context_of
from genlab.measure.captions import caption_of
from genlab.request.checkpoints import check_split, open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.contexts import read_contexts
from genlab.request.numbers import check_at_least, check_seed
from genlab.request.outputs import output, save_images
from genlab.request.pictures import whole_image
from genlab.request.progress import with_progress

GROUPS = 4  # images (with their reconstructions) in a row of the grid
BATCH = 200  # images at once, where batch_size is null


def command(request: Request) -> None:
    """Check the request, reconstruct the images, write both files and print one line."""
    config, _ = split_hydra(request.config())
    check_at_least(config, "n", 1)
    check_seed(config)
    out = output(config, "reconstructions.png", ".npy")
    check_split(config)
    model, run, spec = open_model(config, Coder, "reconstruct images")
    corrupted = _corrupted(config, model)
    x, contexts, source = _images(config, model, run, spec)
    device = next(model.parameters()).device

    torch.manual_seed(config.seed)  # a corruption takes its noise from torch's global generator

    def reconstruct(advance):  # type: ignore[no-untyped-def]
        parts = []
        size = config.batch_size or BATCH
        for start in range(0, len(x), size):
            part = x[start : start + size].to(device)
            context = None if contexts is None else contexts[start : start + size].to(device)
            parts.append(torch.stack(with_reconstructions(model, part, corrupted, context), 1).cpu())
            advance(len(part))
        return torch.cat(parts)

    with torch.no_grad():
        groups = with_progress("reconstructing", len(x), reconstruct)  # (N, 2 or 3, C, H, W)
    columns = groups.shape[1] * min(GROUPS, len(x))
    what = "clean, corrupted, denoised" if corrupted else "given, reconstructed"
    caption = f"{caption_of(config.ckpt, run, model)} · {what}"
    save_images(out, groups[:, -1], spec, groups.flatten(0, 1), spec, columns, caption)
    print(f"{out} ({what}) and {out.with_suffix('.npy').name}: {source}")


def with_reconstructions(model: Any, x: Tensor, corrupted: bool, context: Tensor | None = None) -> list[Tensor]:
    """[x, reconstructions], or if `corrupted` [x, corrupted copies, reconstructions]: integers (B, C, H, W) each."""
    return [x.long(), *model.repair(x)] if corrupted else [x.long(), model.reconstruct(x, context=context)]


def _corrupted(config: DictConfig, model: Any) -> bool:
    """Returns True if images are to be corrupted first. By default they are if the model was trained on such images."""
    can = isinstance(model, Denoiser) and model.corruption is not None
    if config.corrupted is None:
        return can
    if not isinstance(config.corrupted, bool):
        raise RequestError(f"corrupted={config.corrupted}: expected true or false")
    if config.corrupted and not can:
        raise RequestError(f"corrupted=true: {model_name(model)} was trained on clean images")
    return config.corrupted


def _images(config: DictConfig, model: Any, run: dict[str, Any], spec: ImageSpec) -> tuple[Tensor, Tensor | None, str]:
    """(images (N, C, H, W), their contexts or None, where the images are from in words)."""
    if config.image is not None:
        contexts = read_contexts(config, model, run, label_required=True, n=1)
        image = whole_image(Path(str(config.image)), spec)
        return image[None], contexts.context, f"{config.image}{contexts.text}"
    for key in ("label", "context"):
        if config[key] is not None:
            raise RequestError(f"{key}={config[key]} goes with image=: the images of a split have their own")
    data = open_data(config, run)
    total = len(data.split(config.split).labels)
    if config.n > total:
        raise RequestError(f"n={config.n}: the {config.split} split has {total} images")
    batch = data.first(config.split, config.n)
    return batch.images, context_of(model, batch), f"the first {config.n} images of the {config.split} split"
