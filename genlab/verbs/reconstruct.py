"""`genlab reconstruct`: images beside what a code keeps of them; of a denoising model clean, corrupted, denoised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from genlab.core import Coder, Denoiser, ImageSpec, RequestError, nearest
from genlab.data.module import SPLITS
from genlab.measure.bits import context_of
from genlab.request.checkpoints import model_name, open_data, open_model
from genlab.request.compose import Request, split_hydra
from genlab.request.contexts import given as conditioned_on
from genlab.request.numbers import check_at_least, check_seed
from genlab.request.outputs import check_out, save_images
from genlab.request.pictures import whole_image
from genlab.request.progress import with_progress

GROUPS = 4  # images in a row of the grid


def command(request: Request) -> None:
    """Check everything, then reconstruct, then write."""
    config, _ = split_hydra(request.config())
    check_at_least(config, "n", 1)
    check_seed(config)
    out = check_out(config)
    if config.split not in SPLITS:
        raise RequestError(f"split={config.split} does not exist: {nearest(str(config.split), SPLITS)}")
    model, run, spec = open_model(config, Coder, "reconstruct images")
    corrupted = _corrupted(config, model)
    x, given, of = _images(config, model, run, spec)
    device = next(model.parameters()).device

    torch.manual_seed(config.seed)  # the corruption's noise is torch's own

    def work(advance):  # type: ignore[no-untyped-def]
        parts = []
        size = config.batch_size or 200
        for start in range(0, len(x), size):
            part = x[start : start + size].to(device)
            context = None if given is None else given[start : start + size].to(device)
            parts.append(torch.stack(shown(model, part, corrupted, context), 1).cpu())
            advance(len(part))
        return torch.cat(parts)

    with torch.no_grad():
        groups = with_progress("reconstructing", len(x), work)  # (N, 2 or 3, C, H, W)
    columns = groups.shape[1] * min(GROUPS, len(x))
    save_images(out, groups[:, -1], spec, groups.flatten(0, 1), spec, columns=columns)
    what = "clean, corrupted, denoised" if corrupted else "given, reconstructed"
    print(f"{out} ({what}) and {out.with_suffix('.npy').name}: {of}")


def shown(model: Any, x: Tensor, corrupted: bool, context: Tensor | None = None) -> list[Tensor]:
    """What is looked at, integers (B, C, H, W) each: the images, their corrupted copies if so, the reconstructions."""
    return [x.long(), *model.repair(x)] if corrupted else [x.long(), model.reconstruct(x, context=context)]


def _corrupted(config: DictConfig, model: Any) -> bool:
    """Whether to corrupt: what was asked, else whether the model was trained so."""
    can = isinstance(model, Denoiser) and model.corruption is not None
    if config.corrupted is None:
        return can
    if not isinstance(config.corrupted, bool):
        raise RequestError(f"corrupted={config.corrupted}: expected true or false")
    if config.corrupted and not can:
        raise RequestError(f"corrupted=true: {model_name(model)} was trained on clean images")
    return config.corrupted


def _images(config: DictConfig, model: Any, run: dict[str, Any], spec: ImageSpec) -> tuple[Tensor, Tensor | None, str]:
    """Images (N, C, H, W), what each is conditioned on if the model wants to know, what the user is told they are."""
    if config.image is not None:
        what = conditioned_on(config, model, run, any_label=False, n=1)
        return (
            whole_image(Path(str(config.image)), spec)[None],
            what.context,
            str(config.image) + what.says,
        )
    for key in ("label", "context"):
        if config[key] is not None:
            raise RequestError(f"{key}={config[key]} goes with image=: the images of a split bring their own")
    data = open_data(config, run)
    total = len(data.split(config.split).labels)
    if config.n > total:
        raise RequestError(f"n={config.n}: the {config.split} split has {total} images")
    batch = data.first(config.split, config.n)
    return batch.images, context_of(model, batch), f"the first {config.n} images of the {config.split} split"
