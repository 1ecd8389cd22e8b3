"""The length of a run from a budget: `train.minutes=30` or `train.epochs=20` instead of `trainer.max_steps`.

With train.minutes, the run first measures itself on this machine: real training steps, batches of the validation split,
a grid of pictures and a checkpoint, with the same Trainer, precision, compilation and ranks as in training. From these
times it chooses the number of steps for which training ends at the budget. The measuring counts into the budget.

The measuring leaves no trace. It trains a copy of the model with a learner and an optimiser of its own, its copy of the
data module has its own position, its files are in a temporary folder, and the states of the random generators are
restored. So the run equals, to the bit, one that was given this number as trainer.max_steps.

Rank zero's times count, and all ranks get the same number. The estimate is for a machine that stays as busy as it was,
and for a model whose steps cost the same from the first to the last.
"""

from __future__ import annotations

import copy
import gc
import math
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment
from pytorch_lightning.utilities.seed import isolate_rng

from genlab.core import RequestError
from genlab.measure.evaluation import evaluate_split
from genlab.system import signals
from genlab.system.device import true_float32
from genlab.train.callbacks import PAUSE
from genlab.train.checkpoint import AtomicCheckpointIO
from genlab.train.fit import learner_for, prime, quiet, trainer_for
from genlab.train.learner import Learner
from genlab.train.pictures import Pictures
from genlab.train.progress import in_words
from genlab.train.run import Run

USUAL_INTERVAL = 300  # steps, for an interval that is null and not chosen by a budget of minutes
# The largest share of training that an interval chosen here may cost, and the shortest time between two of its events
# as a share of training.
SHARES = {"valid_every": (0.1, 1 / 20), "sample_every": (0.05, 1 / 10), "checkpoint_every": (0.02, 1 / 60)}
MEASURED_SHARE, MOST_SECONDS = 0.08, 30.0  # of the budget spent on measured steps, and at most so many seconds
FIRST_STEPS = 2  # not measured: compilation and the first allocations make them slow


@dataclass(frozen=True)
class Speed:
    """Seconds on this machine.

    `start`: to initialise a model that is primed from the data. `step`: an optimiser step. `validation`: of the whole
    split, with the checkpoint that is written on a new best. `pictures`: a grid of each kind. `checkpoint`: to write
    one. `test`: to evaluate the test split.
    """

    start: float
    step: float
    validation: float
    pictures: float
    checkpoint: float
    test: float


def is_open(config: Mapping[str, Any]) -> bool:
    """True if the run of this config has yet to choose its number of steps or an interval."""
    return config["trainer"]["max_steps"] is None or any(config["train"][key] is None for key in SHARES)


@true_float32()
def settle(
    run: Run, *, draw: Callable[..., Any] | None = None, environment: ClusterEnvironment | None = None
) -> tuple[dict[str, int], str]:
    """(trainer.max_steps and the intervals of training, by name; a line for the user).

    Call it on every rank, with the arguments of `fit`. Raises signals.Stopped if a signal ends the measuring.
    """
    train, steps = run.config["train"], run.plan.max_steps
    intervals = {key: USUAL_INTERVAL if train[key] is None else train[key] for key in SHARES}
    if steps:
        return {"max_steps": steps, **intervals}, ""
    epochs, minutes = train.get("epochs"), train.get("minutes")
    if epochs is not None:
        steps = math.ceil(epochs * len(run.data.split("train").labels) / run.step_images)
        return {"max_steps": steps, **intervals}, f"train.epochs={epochs:g}: {steps:,} steps"
    if minutes is None:
        raise RequestError("trainer.max_steps, train.minutes and train.epochs are all null: give one of them")
    start = time.perf_counter()
    speed = measure(run, 60 * minutes, draw=draw, environment=environment)
    left = 60 * minutes - (time.perf_counter() - start) - speed.start
    chosen, seconds = _shared(steps_within(left, speed, train))
    text = (
        f"train.minutes={minutes:g}: {chosen['max_steps']:,} steps, about {in_words(seconds)} of training on this "
        f"machine, then about {in_words(speed.test)} for the test"
    )
    return chosen, text


def steps_within(seconds: float, speed: Speed, train: Mapping[str, Any]) -> tuple[dict[str, int], float]:
    """(the most steps that fit into `seconds`, at least 1, and the intervals; how many seconds they will take).

    Intervals that `train` gives are kept. Those that are null are chosen, so that what they cost stays in `SHARES`.
    """
    costs = {"valid_every": speed.validation, "sample_every": speed.pictures, "checkpoint_every": speed.checkpoint}
    counts = {}  # events of the intervals that are chosen here
    for key, (share, shortest) in SHARES.items():
        if train[key] is None:
            affordable = int(min(share * seconds / costs[key] if costs[key] else math.inf, 1 / shortest))
            counts[key] = max(1, affordable - (key == "valid_every"))  # one validation is before the first step

    def duration(steps: int) -> float:
        events = {key: -(-steps // train[key]) if train[key] else 0 for key in costs} | counts
        later = sum(cost * min(events[key], steps) for key, cost in costs.items())
        return steps * speed.step + speed.validation + later

    steps = max(1, bisect_right(range(1, 2 + max(0, int(seconds / speed.step))), seconds, key=duration))
    intervals = {key: math.ceil(steps / counts[key]) if key in counts else train[key] for key in costs}
    return {"max_steps": steps, **intervals}, duration(steps)


def measure(
    run: Run,
    seconds: float,
    *,
    draw: Callable[..., Any] | None = None,
    environment: ClusterEnvironment | None = None,
) -> Speed:
    """Train a copy of the model for a small share of `seconds`, and time what training consists of."""
    limit = min(MEASURED_SHARE * seconds, MOST_SECONDS)
    with isolate_rng(include_cuda=run.plan.accelerator == "gpu"), tempfile.TemporaryDirectory() as name:
        model, data = copy.deepcopy(run.model), copy.copy(run.data)
        plan = replace(run.plan, max_steps=10**9)
        trial = replace(run, model=model, data=data, plan=plan, folder=Path(name), checkpoint=None, card={})
        start = time.perf_counter()
        prime(trial)
        watch = Stopwatch(trial, time.perf_counter() - start, limit, draw)
        learner = learner_for(trial)
        with quiet():
            trainer = trainer_for(
                trial, learner, environment or LightningEnvironment(), max_steps=-1, logger=False, callbacks=[watch],
                checkpoint_io=AtomicCheckpointIO(),
            )  # fmt: skip
            trainer.fit(learner, datamodule=data)
        del trainer, learner, trial, model, data
    gc.collect()  # trainer and learner refer to each other; training needs their memory
    if watch.speed is None:
        raise signals.Stopped(signals.received or watch.signal)
    return watch.speed


class Stopwatch(pl.Callback):
    """Time the steps for `limit` seconds, then validation, pictures and a checkpoint; then stop.

    `start`: as in `Speed`.
    """

    def __init__(self, run: Run, start: float, limit: float, draw: Callable[..., Any] | None) -> None:
        self.run, self.start, self.limit, self.draw = run, start, limit, draw
        self.ends: list[float] = []  # times at which steps ended
        self.speed: Speed | None = None
        self.signal = 0

    def on_train_start(self, trainer: Any, learner: Any) -> None:
        """Install our signal handlers again, which Lightning has replaced."""
        signals.install()

    def on_before_optimizer_step(self, trainer: Any, learner: Any, optimizer: Any) -> None:
        """Ask all ranks to stop after this step, once enough is measured or at a signal."""
        learner.signal = signals.received or (PAUSE if self._enough() else 0)

    def on_train_batch_end(self, trainer: Any, learner: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At the end of a step: note the time. After the last step, time everything else."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.ends.append(time.perf_counter())
        if learner.interrupted:
            trainer.should_stop = True
            self.signal = learner.interrupted
        if learner.interrupted == PAUSE:
            self.speed = _shared(self._speed(trainer, learner))

    def _enough(self) -> bool:
        measured = len(self.ends) - FIRST_STEPS  # without the step in progress
        if measured < 0:
            return False
        elapsed = time.perf_counter() - self.ends[0]
        return elapsed >= self.limit and (measured >= 3 or elapsed >= 3 * self.limit)

    def _speed(self, trainer: pl.Trainer, learner: Learner) -> Speed:
        measured = self.ends[FIRST_STEPS - 1 :]
        valid = self._validation(trainer, learner)
        checkpoint = _seconds(lambda: trainer.save_checkpoint(self.run.folder / "last.ckpt"))
        pictures = 0.0
        if self.draw is not None and self.run.config["train"]["sample_every"] != 0:
            grids = Pictures(1, self.run.folder, self.run.config["train"]["samples"], self.draw)
            pictures = _seconds(lambda: grids.act(trainer, learner, 1))
        images = {name: len(self.run.data.split(name).labels) for name in ("valid", "test")}
        return Speed(
            start=self.start,
            step=(measured[-1] - measured[0]) / (len(measured) - 1),
            validation=valid + checkpoint,
            pictures=pictures,
            checkpoint=checkpoint,
            test=valid * images["test"] / images["valid"],
        )

    def _validation(self, trainer: pl.Trainer, learner: Learner) -> float:
        """Seconds for the whole validation split, from the first batches of it: one a rank, then twice as many, …"""
        data = self.run.data
        total, images = len(data.split("valid").labels), data.eval_batch_size * trainer.world_size
        while True:
            first = FirstImages(data, min(images, total))
            with learner.evaluation_model() as model:
                seconds = _seconds(
                    lambda: evaluate_split(model, first, "valid", weights=learner.weights, seed=learner.seed)  # noqa: B023
                )
            if _shared(seconds >= self.limit / 3 or images >= total):
                return seconds * max(1.0, total / images)
            images *= 2


class FirstImages:
    """The first `n` images of the splits of a data module, as `evaluate_split` uses it."""

    def __init__(self, data: Any, n: int) -> None:
        self.data, self.n, self.spec, self.name = data, n, data.spec, data.name

    def split(self, name: str) -> Any:
        """Their images (n, C, H, W) and labels (n,)."""
        return self.data.split(name).take(slice(self.n))

    def batches(self, name: str) -> Any:
        """The batches of this rank."""
        return self.data.batches(name, torch.arange(self.n))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _shared(value: Any) -> Any:
    """Rank zero's value, on every rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
