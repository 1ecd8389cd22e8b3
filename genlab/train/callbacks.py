"""Callbacks that act every so many optimiser steps, in the order of the list that the Trainer gets:

    Log -> Validation -> Pictures (`pictures.py`) -> Progress (`progress.py`) -> Checkpoints

All of it happens at the end of an optimiser step, in this order, and the checkpoint comes last. So a checkpoint means
that everything up to and including this step is done, and a resumed run neither repeats nor misses anything. This is
why validation is not Lightning's loop, which runs after the point where its checkpoints are written.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from genlab.core import RunError
from genlab.measure.captions import score
from genlab.measure.evaluation import Evaluation, evaluate_split
from genlab.system import signals
from genlab.system.progress import WithProgress, without_progress
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
    None: never. Before the first step of a run the untrained model is evaluated, for the curves alone: it is never the
    best.
    """

    def __init__(
        self, every: int, best: Path, patience: int | None = None, with_progress: WithProgress = without_progress
    ) -> None:
        super().__init__(every)
        self.best, self.patience, self.with_progress = best, patience, with_progress
        self.state: dict[str, Any] = {"value": float("inf"), "step": 0, "stale": 0, "details": {}}
        self.state |= {"latest": float("inf"), "latest_step": 0}  # inf: a model without a number to compare
        self.verdict = ""  # why training was stopped early, for the user

    def on_train_batch_start(self, trainer: Any, learner: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate the untrained model. Training may mend one whose likelihood is not finite."""
        if trainer.global_step or batch_idx:
            return
        start = time.perf_counter()
        try:
            self._evaluate(trainer, learner, 0)
        except RunError as error:  # on every rank
            if trainer.is_global_zero:
                print(f"the untrained model has no validation value: {error}", file=sys.stderr)
        self.seconds += time.perf_counter() - start

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Validate; write best.ckpt on a new best."""
        evaluation = self._evaluate(trainer, learner, step)
        value = self.state["value"] if evaluation.value is None else evaluation.value
        if evaluation.value is None or value < self.state["value"]:
            self.state |= {"value": value, "step": step, "stale": 0, "details": evaluation.details}
            trainer.save_checkpoint(self.best)
            learner.last_good = str(self.best)
            return
        self.state["stale"] += 1
        if self.patience is not None and self.state["stale"] >= self.patience:
            learner.stopped_early = trainer.should_stop = True
            self.verdict = (
                f"stopped early at step {step}: {self.state['stale']} validations without a better one "
                f"(train.patience={self.patience}); the best is {score(self.state['value'], learner.model)} "
                f"at step {self.state['step']}"
            )

    def _evaluate(self, trainer: pl.Trainer, learner: Learner, step: int) -> Evaluation:
        """Evaluate and log; the same images and noise every time."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        share = math.ceil(len(data.split("valid").labels) / trainer.world_size)  # images of this rank
        with learner.evaluation_model() as model:
            evaluation = self.with_progress(
                "validation", share,
                lambda advance: evaluate_split(
                    model, data, "valid", weights=learner.weights, seed=learner.seed, on_batch=advance
                ),
            )  # fmt: skip
        latest = float("inf") if evaluation.value is None else evaluation.value
        self.state |= {"latest": latest, "latest_step": step}
        write(trainer, {f"valid/{name}": value for name, value in evaluation.terms.items()}, step)
        return evaluation  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """Best value so far, its step and details, the number of validations since, and the latest value."""
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`. A checkpoint of an earlier version has no latest value."""
        self.state |= state_dict


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
