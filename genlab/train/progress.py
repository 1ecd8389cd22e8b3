"""The progress of a run, on standard error: a bar of rich in a terminal, a plain line every ten seconds elsewhere.

Lightning's RichProgressBar is not used: it has no plain lines for log files, and shows epochs instead of steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from genlab.system.progress import EVERY_SECONDS, clock, with_plain_lines, without_progress
from genlab.train.callbacks import Log, Periodic
from genlab.train.learner import Learner

FORECAST_SECONDS, LONG_SECONDS = 5.0, 60.0  # a forecast is made after so many seconds, for training longer than that
LABELS = {  # the training metrics that are shown, if the model has them
    "bits_per_dim": "bits/dim",
    "loss": "loss",
    "generator_loss": "generator",
    "discriminator_loss": "discriminator",
}


class Progress(Periodic):
    """Show step, training metrics, images per second and time left. Only rank zero shows them.

    `forecast`: say once, after the first seconds, how long training will take, if it is more than a minute.
    `compiled`: say how long the first step takes, which compiles the network.
    """

    def __init__(self, log: Log, step_images: int, forecast: bool, compiled: bool = False) -> None:
        super().__init__(every=1)
        self.logged = log  # its latest row is shown (not named `log`, which is an attribute of Lightning)
        self.step_images = step_images  # images of one optimiser step over all ranks
        self.forecast, self.compiled = forecast, compiled
        self._bar: Bar | None = None
        self._shows = False  # True on rank zero, once training has begun

    def on_train_start(self, trainer: Any, learner: Any) -> None:
        """Start the clock. All checks of the run are done by now."""
        if trainer.is_global_zero and self.compiled:
            print("compile=true: the first step compiles the network", file=sys.stderr, flush=True)
        self._start = self._shown = time.perf_counter()
        self._first = trainer.global_step
        self._shows = trainer.is_global_zero
        if trainer.is_global_zero and sys.stderr.isatty():
            what, text = TextColumn("{task.fields[what]}"), TextColumn("{task.description}")
            columns = (what, MofNCompleteColumn(), BarColumn(), text)
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("", what="step", total=learner.max_steps, completed=self._first)
            self._bar.start()

    def on_train_batch_start(self, trainer: Any, learner: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock again at the first step: the untrained model has been validated before it."""
        if trainer.global_step == batch_idx == 0:
            self._start = self._shown = time.perf_counter()

    def with_progress(self, title: str, total: int, work: Callable[[Callable[[int], None]], Any]) -> Any:
        """The result of work(advance), as in `system/progress.py`: a bar below that of training, or plain lines."""
        if not self._shows:
            return without_progress(title, total, work)
        if self._bar is None:
            return with_plain_lines(title, total, work)
        bar, task = self._bar, self._bar.add_task("", what=title, total=total)
        try:
            return work(lambda done: bar.advance(task, done))
        finally:
            bar.remove_task(task)

    def act(self, trainer: pl.Trainer, learner: Learner, step: int) -> None:
        """Show the newest numbers."""
        now = time.perf_counter()
        seconds_per_step = (now - self._start) / max(1, step - self._first)
        text = " ".join([*self._numbers(), f"{self.step_images / seconds_per_step:,.0f} images/s"])
        if self.compiled and trainer.is_global_zero and step == self._first + 1:
            self._say(f"compile=true: the first step took {in_words(now - self._start)}")
        if self.forecast and trainer.is_global_zero:
            self._show_forecast(now, step, learner.max_steps)
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif trainer.is_global_zero and (now - self._shown >= EVERY_SECONDS or step == learner.max_steps):
            self._shown = now
            left = (learner.max_steps - step) * seconds_per_step
            print(f"step {step}/{learner.max_steps}  {text}  {clock(left)} left", file=sys.stderr, flush=True)

    def _show_forecast(self, now: float, step: int, max_steps: int) -> None:
        """Show it once. The first step is not counted: it compiles and allocates."""
        if step == self._first + 1:
            self._second = now
        elif now - self._second >= FORECAST_SECONDS:
            self.forecast = False
            seconds = (max_steps - step) * (now - self._second) / (step - self._first - 1)
            if seconds >= LONG_SECONDS:
                self._say(
                    f"{max_steps:,} steps: about {in_words(seconds)} of training to come on this machine, validation "
                    "and pictures not counted; train.minutes= changes it"
                )

    def _say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        console = self._bar.console if self._bar else Console(stderr=True, soft_wrap=True)
        console.print(line, highlight=False)

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


def in_words(seconds: float) -> str:
    """A time for people: 50 seconds, 12 minutes, 3.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
