"""The progress of a run, on standard error: a bar of rich in a terminal, a plain line every ten seconds elsewhere.

Lightning's RichProgressBar is not used: it has no plain lines for log files, and shows epochs instead of steps.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from genlab.train.callbacks import Log, Periodic
from genlab.train.learner import Learner

EVERY_SECONDS = 10.0
LABELS = {  # the training metrics that are shown, if the model has them
    "bits_per_dim": "bits/dim",
    "loss": "loss",
    "generator_loss": "generator",
    "discriminator_loss": "discriminator",
}


class Progress(Periodic):
    """Show step, training metrics, images per second and time left. Only rank zero shows them."""

    def __init__(self, log: Log, step_images: int) -> None:
        super().__init__(every=1)
        self.logged = log  # its latest row is shown (not named `log`, which is an attribute of Lightning)
        self.step_images = step_images  # images of one optimiser step over all ranks
        self._bar: Bar | None = None

    def on_train_start(self, trainer: Any, learner: Any) -> None:
        """Print a summary of the data and start the clock. All checks of the run are done by now."""
        if trainer.is_global_zero and hasattr(trainer.datamodule, "summary"):
            print(trainer.datamodule.summary, file=sys.stderr)
        self._start = self._shown = time.perf_counter()
        self._first = trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=learner.max_steps, completed=self._first)
            self._bar.start()

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Show the newest numbers."""
        now = time.perf_counter()
        seconds_per_step = (now - self._start) / max(1, step - self._first)
        text = " ".join([*self._numbers(), f"{self.step_images / seconds_per_step:,.0f} images/s"])
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif trainer.is_global_zero and (now - self._shown >= EVERY_SECONDS or step == learner.max_steps):
            self._shown = now
            left = (learner.max_steps - step) * seconds_per_step
            print(f"step {step}/{learner.max_steps}  {text}  {clock(left)} left", file=sys.stderr, flush=True)

    def _numbers(self) -> list[str]:
        values = {label: self.logged.latest.get(f"train/{name}") for name, label in LABELS.items()}
        return [f"{value:.4f} {label}" for label, value in values.items() if value is not None]

    def on_train_end(self, trainer: Any, learner: Any) -> None:
        """Leave the finished bar on the screen."""
        if self._bar:
            self._bar.stop()

    def on_exception(self, trainer: Any, learner: Any, exception: BaseException) -> None:
        """Stop the bar, so that the terminal works again."""
        self.on_train_end(trainer, learner)


def clock(seconds: float) -> str:
    """Seconds as text: 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
