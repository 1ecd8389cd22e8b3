"""Callbacks that act every so many optimiser steps, in the order of the list that the Trainer gets:

    Log -> Validation -> Pictures -> Progress -> Checkpoints

All of it happens at the end of an optimiser step, in this order, and the checkpoint comes last. So a checkpoint means
that everything up to and including this step is done, and a resumed run neither repeats nor misses anything. This is
why validation is not Lightning's loop, which runs after the point where its checkpoints are written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from genlab.core import Coder, Completer, Denoiser, ImageSpec, Sampler
from genlab.data.batches import context_of
from genlab.measure.evaluation import evaluate_split
from genlab.system import signals
from genlab.train.learner import Learner


class Periodic(pl.Callback):
    """Acts at optimiser steps that are multiples of `every` (0: never). `seconds` adds up the time it took."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seconds = 0.0

    def due(self, trainer: pl.Trainer, learner: Learner, step: int) -> bool:
        """True if the callback acts at the end of optimiser step `step` = 1, 2, …: at multiples of `every` and at the
        last.
        """
        return self.every > 0 and (step % self.every == 0 or step == learner.max_steps)

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """The action at such a step. It is called on every rank."""
        raise NotImplementedError

    def on_train_batch_end(self, trainer: Any, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning calls this after every batch. With gradient accumulation, not every batch ends a step."""
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self.due(trainer, learner, step):
            start = time.perf_counter()
            self.act(trainer, learner, step)
            self.seconds += time.perf_counter() - start


class Log(Periodic):
    """A row of training metrics: means since the previous row. `latest` is read by the progress display."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.latest: dict[str, Any] = {}

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Write the row, averaged over ranks."""
        self.latest = {**learner.train_metrics(), "train/lr": learner.rate}
        self.latest["train/bad_steps"] = learner.guard.bad_steps
        write(trainer, self.latest, step)


class Validation(Periodic):
    """Evaluate the averaged weights on the whole validation split, keep the best, stop without improvement.

    If a model has no number to compare (a GAN), the newest weights count as the best. The callback acts at the last
    step too, so that a best checkpoint always exists. `patience`: stop after so many validations without a new best;
    None: never.
    """

    def __init__(self, every: int, best: Path, patience: int | None = None) -> None:
        super().__init__(every)
        self.best, self.patience = best, patience
        self.state: dict[str, Any] = {"value": float("inf"), "step": 0, "stale": 0, "details": {}}

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Validate; write best.ckpt on a new best."""
        with learner.evaluation_model() as model:
            evaluation = evaluate_split(model, trainer.datamodule, "valid", weights=learner.weights, seed=learner.seed)  # type: ignore[attr-defined]
        write(trainer, {f"valid/{name}": value for name, value in evaluation.terms.items()}, step)
        value = self.state["value"] if evaluation.value is None else evaluation.value
        if evaluation.value is None or value < self.state["value"]:
            self.state = {"value": value, "step": step, "stale": 0, "details": evaluation.details}
            trainer.save_checkpoint(self.best)
            learner.last_good = str(self.best)
        else:
            self.state = {**self.state, "stale": self.state["stale"] + 1}
            if self.patience is not None and self.state["stale"] >= self.patience:
                learner.stopped_early = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Best value so far, its step and details, and the number of validations since."""
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.state = dict(state_dict)


Grid = tuple[torch.Tensor, ImageSpec, int | None]  # images (N, C, H, W), their spec, columns (None: about square)


class Pictures(Periodic):
    """Grids of images over training: samples at fixed noise; completions of the lower half of validation images; and
    reconstructions of validation images.

    `draw(path, images (N, C, H, W), spec, columns)` writes a grid. It is an argument because training does not import
    `viz`. Every rank makes the images (sharded weights need all ranks), rank zero writes.
    """

    def __init__(self, every: int, folder: Path, count: int, draw: Callable[..., Any] | None) -> None:
        super().__init__(every)
        self.folder, self.count, self.draw = folder, count, draw

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Write samples/step=000500.png, completions/… and reconstructions/…, as far as the model can."""
        with learner.evaluation_model() as model:
            grids: dict[str, Grid] = {}
            if isinstance(model, Sampler):
                grids["samples"] = self._samples(model, learner, trainer.datamodule)  # type: ignore[attr-defined]
            if isinstance(model, Completer):
                grids["completions"] = self._completions(model, learner, trainer.datamodule)  # type: ignore[attr-defined]
            if isinstance(model, Coder):
                grids["reconstructions"] = self._reconstructions(model, learner, trainer.datamodule)  # type: ignore[attr-defined]
        if trainer.is_global_zero and self.draw is not None:
            for kind, (images, spec, columns) in grids.items():
                path = self.folder / kind / f"step={step:06d}.png"
                path.parent.mkdir(exist_ok=True)
                self.draw(path, images.cpu(), spec, columns=columns)

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
            return images, learner.spec, None
        pairs = torch.stack(data.context.pictures(images, context, data.whole), dim=1).flatten(0, 1)
        return pairs, ImageSpec(*pairs.shape[1:]), 8

    def _completions(self, model: Any, learner: Learner, data: Any) -> Grid:
        """Up to `count` pairs: an image with its lower half blank, and the completed image."""
        x = data.first("valid", self.count).images.to(learner.device)
        known = torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool, device=x.device)
        known[:, : x.shape[-2] // 2] = True
        context = self._context(model, learner, data)
        completed = model.complete(x, known, generator=_generator(learner), context=context).images
        return torch.stack([x * known[:, None], completed.to(x.dtype)], dim=1).flatten(0, 1), learner.spec, 8

    def _reconstructions(self, model: Any, learner: Learner, data: Any) -> Grid:
        """Up to `count` pairs of an image and its reconstruction, with the same noise every time.

        A model that is trained on corrupted images gets triples: the image, a corrupted copy, the denoised copy.
        """
        x = data.first("valid", self.count).images.to(learner.device)
        context = self._context(model, learner, data)
        torch.manual_seed(learner.seed)  # does not affect training: every training step sets its own seed
        corrupted = isinstance(model, Denoiser) and model.corruption is not None
        columns = [x.long(), *(model.repair(x) if corrupted else [model.reconstruct(x, context=context)])]
        return torch.stack(columns, 1).flatten(0, 1), learner.spec, 4 * len(columns)

    def _context(self, model: Any, learner: Learner, data: Any) -> torch.Tensor | None:
        """The context of the first validation images; None if the model uses none."""
        context = context_of(model, data.first("valid", self.count))
        return None if context is None else context.to(learner.device)


PAUSE = 1000  # agreed on by all ranks like a signal, and larger than the number of any signal


class Checkpoints(Periodic):
    """Write last.ckpt every so many steps, at the last step, and after the step in which a signal asks to stop.

    `pause_after`: minutes from now, after which training saves and stops as if by a signal; None for never.
    """

    def __init__(self, every: int, last: Path, pause_after: float | None = None) -> None:
        super().__init__(every)
        self.last = last
        self.pause_at = math.inf if pause_after is None else time.perf_counter() + 60 * pause_after

    def on_train_start(self, trainer: Any, learner: Any) -> None:
        """Install our signal handlers again: Lightning has replaced that of SIGTERM, and restores ours at the end."""
        signals.install()

    def on_before_optimizer_step(self, trainer: Any, learner: Any, optimizer: Any) -> None:
        """Pass a request to stop on to the learner, before the ranks agree on whether to stop after this step."""
        learner.signal = signals.received or (PAUSE if time.perf_counter() >= self.pause_at else 0)

    def due(self, trainer: pl.Trainer, learner: Learner, step: int) -> bool:
        """True also if training stops at this step for any reason."""
        stopping = step == learner.max_steps or trainer.should_stop or learner.interrupted
        return super().due(trainer, learner, step) or bool(stopping)

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Write the metrics, then the checkpoint: a run that resumes from it needs the row of its step."""
        if learner.interrupted:
            trainer.should_stop = True
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.last)
        learner.last_good = str(self.last)


def write(trainer: pl.Trainer, metrics: dict[str, float], step: int) -> None:
    """Log the metrics with every logger; ranks other than zero have none."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)


def _generator(learner: Learner) -> torch.Generator:
    return torch.Generator().manual_seed(learner.seed)  # on the CPU: the same noise for every device
