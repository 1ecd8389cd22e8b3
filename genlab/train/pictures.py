"""The callback that writes grids of images over training: samples, completions and reconstructions.

samples/step=000500.png shows samples at fixed noise, completions/… validation images of which the model gets the upper
half, reconstructions/… validation images and their reconstructions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from genlab.core import Coder, Completer, Denoiser, ImageSpec, Sampler
from genlab.data.batches import context_of
from genlab.data.context import UNKNOWN, to_bytes
from genlab.system.progress import WithProgress, without_progress
from genlab.train.callbacks import Periodic
from genlab.train.learner import Learner
from genlab.train.loggers import trackers


class Grid(NamedTuple):
    """Images (N, C, H, W) and their spec; columns (None: about square); what the columns are, for the caption."""

    images: torch.Tensor
    spec: ImageSpec
    columns: int | None = None
    legend: str = ""


class Pictures(Periodic):
    """Write a grid of every kind that the model can make.

    `draw(path, images (N, C, H, W), spec, columns=, caption=)` writes a grid. It is an argument because training does
    not import `viz`. `caption(step)` is the text below it. Every rank makes the images (sharded weights need all
    ranks), rank zero writes.
    """

    def __init__(
        self,
        every: int,
        folder: Path,
        count: int,
        draw: Callable[..., Any] | None,
        caption: Callable[[int], str] = lambda step: "",
        with_progress: WithProgress = without_progress,
    ) -> None:
        super().__init__(every)
        self.folder, self.count, self.draw = folder, count, draw
        self.caption, self.with_progress = caption, with_progress

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Write samples/step=000500.png, completions/… and reconstructions/…, as far as the model can."""
        kinds = {
            "samples": (Sampler, self._samples),
            "completions": (Completer, self._completions),
            "reconstructions": (Coder, self._reconstructions),
        }
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with learner.evaluation_model() as model:
            able = {kind: make for kind, (protocol, make) in kinds.items() if isinstance(model, protocol)}

            def make_all(advance: Callable[[int], None]) -> dict[str, Grid]:
                grids = {}
                for kind, make in able.items():
                    grids[kind] = make(model, learner, data)
                    advance(1)
                return grids

            grids = self.with_progress("pictures", len(able), make_all)
        if trainer.is_global_zero and self.draw is not None:
            for kind, (images, spec, columns, legend) in grids.items():
                path = self.folder / kind / f"step={step:06d}.png"
                path.parent.mkdir(exist_ok=True)
                caption = " · ".join(filter(None, (self.caption(step), legend)))
                self.draw(path, images.cpu(), spec, columns=columns, caption=caption)
                for tracker in trackers(trainer.loggers):
                    tracker.log_picture(kind, path, step)

    def _samples(self, model: Any, learner: Learner, data: Any) -> Grid:
        """`count` images at the same noise every time.

        A class-conditional model goes through its classes. A model that is conditioned on images gets those of the
        first validation images, and each is drawn beside its sample.
        """
        context = self._context(model, learner, data)
        if context is not None and context.ndim == 1:
            context = torch.arange(self.count, device=learner.device) % learner.spec.classes
        n = self.count if context is None else len(context)
        images = model.sample(n, generator=_generator(learner), context=context)
        if context is None or context.ndim == 1 or not hasattr(getattr(data, "context", None), "pictures"):
            return Grid(images, learner.spec)
        pairs = torch.stack(data.context.pictures(images, context, data.whole), dim=1).flatten(0, 1)
        return Grid(pairs, ImageSpec(*pairs.shape[1:]), 8, "given, sampled")

    def _completions(self, model: Any, learner: Learner, data: Any) -> Grid:
        """Up to `count` triples: an image with its lower half unknown, the true image, and the completed one."""
        x = data.first("valid", self.count).images.to(learner.device)
        known = torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool, device=x.device)
        known[:, : x.shape[-2] // 2] = True
        context = self._context(model, learner, data)
        completed = model.complete(x, known, generator=_generator(learner), context=context).images
        truth = to_bytes(x, learner.spec.levels)
        given = torch.where(known[:, None], truth, UNKNOWN)
        triples = torch.stack([given, truth, to_bytes(completed, learner.spec.levels)], dim=1).flatten(0, 1)
        return Grid(triples, ImageSpec(*triples.shape[1:]), 12, "given, true, completed")

    def _reconstructions(self, model: Any, learner: Learner, data: Any) -> Grid:
        """Up to `count` pairs of an image and its reconstruction, with the same noise every time.

        A model that is trained on corrupted images gets triples: the image, a corrupted copy, the denoised copy.
        """
        x = data.first("valid", self.count).images.to(learner.device)
        context = self._context(model, learner, data)
        torch.manual_seed(learner.seed)  # does not affect training: every training step sets its own seed
        corrupted = isinstance(model, Denoiser) and model.corruption is not None
        columns = [x.long(), *(model.repair(x) if corrupted else [model.reconstruct(x, context=context)])]
        legend = "clean, corrupted, denoised" if corrupted else "given, reconstructed"
        return Grid(torch.stack(columns, 1).flatten(0, 1), learner.spec, 4 * len(columns), legend)

    def _context(self, model: Any, learner: Learner, data: Any) -> torch.Tensor | None:
        """The context of the first validation images; None if the model uses none."""
        context = context_of(model, data.first("valid", self.count))
        return None if context is None else context.to(learner.device)


def _generator(learner: Learner) -> torch.Generator:
    return torch.Generator().manual_seed(learner.seed)  # on the CPU: the same noise for every device
