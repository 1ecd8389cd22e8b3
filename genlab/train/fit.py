"""Put learner, callbacks, loggers and Trainer together and train: from the start, or on from checkpoints/last.ckpt.

Lightning's own progress bar, model summary, default logger, checkpoint callback, sampler and validation loop are off:
each has its small counterpart here, in an order that makes a resumed run equal to an uninterrupted one.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

from genlab.core import Adversarial, Primed, RequestError, RunError
from genlab.system import signals
from genlab.system.device import true_float32
from genlab.train import loggers
from genlab.train.adversarial import AdversarialLearner
from genlab.train.callbacks import Checkpoints, Log, Pictures, Validation
from genlab.train.fitting import FittingLearner, fits_itself
from genlab.train.going_on import GoingOn, in_line, read_last
from genlab.train.learner import Learner
from genlab.train.optim import AdamW
from genlab.train.plan import Plan
from genlab.train.progress import Progress


@dataclass(frozen=True)
class Fit:
    """How training went. `interrupted` is the signal that stopped it, 0 if it ran to its end."""

    step: int
    bad_steps: int
    interrupted: int
    seconds: float
    images_per_second: float
    peak_memory: int
    valid: dict[str, Any]


def check(train: Mapping[str, Any]) -> None:
    """A RequestError for a `train` section that makes no sense."""
    for key in ("log_every", "valid_every", "checkpoint_every", "max_bad_steps", "samples"):
        if not isinstance(train[key], int) or train[key] < 1:
            raise RequestError(f"train.{key}={train[key]} must be a whole number of at least 1")
    if not isinstance(train["sample_every"], int) or train["sample_every"] < 0:
        raise RequestError(f"train.sample_every={train['sample_every']} must be a number of steps, or 0 for no samples")
    if not 0 <= train["ema"] < 1:
        raise RequestError(f"train.ema={train['ema']} must be at least 0 (no averaging) and below 1")
    if train["patience"] is not None and (not isinstance(train["patience"], int) or train["patience"] < 1):
        raise RequestError(f"train.patience={train['patience']} must be a number of validations, or null")


def resumable(folder: Path, model: nn.Module, data: Any, config: Mapping[str, Any], plan: Plan) -> None:
    """A RequestError for anything that would keep the run from going on; nothing is written."""
    if config["logger"]["kind"] != "none":
        loggers.read_metrics(folder / "metrics.csv")
    state = read_last(folder)
    if state is not None:
        learner = learner_for(model, data, {**config, "compile": False}, plan, card={})
        in_line(state, learner, data, data.batch_size * plan.processes, fused=plan.precision != "16-mixed")


def learner_for(model: nn.Module, data: Any, config: Mapping[str, Any], plan: Plan, card: dict[str, Any]) -> Learner:
    """The learner that trains this model as the config says."""
    whole, train = fits_itself(model), config["train"]
    kind = FittingLearner if whole else AdversarialLearner if isinstance(model, Adversarial) else Learner
    return kind(
        model, data.spec, AdamW(**config["optim"]), max_steps=plan.max_steps, seed=config["seed"],
        decay=0.0 if whole else train["ema"], max_bad_steps=train["max_bad_steps"], card=card,
        compile=config["compile"], sharded=plan.processes > 1 and plan.strategy == "fsdp",
    )  # fmt: skip


@true_float32()  # precision=32 is 32 bits, on a GPU too; bf16-mixed is asked for by its name
def fit(
    model: nn.Module,
    data: Any,
    config: Mapping[str, Any],
    plan: Plan,
    folder: Path,
    *,
    card: dict[str, Any],
    draw: Callable[..., Any],
    environment: ClusterEnvironment,
) -> Fit:
    """Train `model` on `data` in `folder`, the same on every rank. `draw` writes a grid of images."""
    train, checkpoints = config["train"], folder / "checkpoints"
    state, batch_images = read_last(folder), data.batch_size * plan.processes
    if state is None and isinstance(model, Primed) and not config.get("init"):
        model.prime(data.split("train").images, seed=config["seed"])
    learner = learner_for(model, data, config, plan, {**card, "batch_images": batch_images})
    log = Log(train["log_every"])
    validation = Validation(train["valid_every"], checkpoints / "best.ckpt", train["patience"])
    pictures = Pictures(train["sample_every"], folder, train["samples"], draw)
    step_images = len(data.split("train").labels) if fits_itself(model) else batch_images * plan.accumulate
    progress = Progress(log, step_images)
    saving = Checkpoints(train["checkpoint_every"], checkpoints / "last.ckpt")
    # A run that has nothing left to do is only loaded.
    max_steps = state["genlab"]["step"] if state and is_complete(state, train, plan.max_steps) else plan.max_steps
    resumed = state["genlab"] if state else None
    if state:
        learner.last_good = str(saving.last)
        state = in_line(state, learner, data, batch_images, fused=plan.precision != "16-mixed")
    files, state = GoingOn(state), None
    zero = not dist.is_initialized() or dist.get_rank() == 0
    log_to = loggers.make(config["logger"], folder, resumed["step"] if resumed else 0, dict(config)) if zero else []
    start = time.perf_counter()
    learner.clock = lambda: (resumed["seconds"] if resumed else 0.0) + time.perf_counter() - start
    if plan.accelerator == "gpu":
        data.move_to(torch.device("cuda", environment.local_rank()))
    with quiet(), loggers.closing(log_to):
        trainer = pl.Trainer(
            accelerator=plan.accelerator, devices=plan.devices, num_nodes=plan.nodes,
            strategy=_strategy(plan, learner.sharded, partly=getattr(model, "partly_trained", False)),
            precision=plan.precision,  # type: ignore[arg-type]
            max_steps=max_steps, max_epochs=-1,
            accumulate_grad_batches=plan.accumulate, gradient_clip_val=plan.clip,
            callbacks=[log, validation, pictures, progress, saving], logger=log_to,
            plugins=[files, environment], default_root_dir=folder,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, limit_val_batches=0, num_sanity_val_steps=0,
        )  # fmt: skip
        try:
            trainer.fit(learner, datamodule=data, ckpt_path=str(saving.last) if resumed else None)
        except (RequestError, RunError):
            raise
        except Exception as error:
            if not resumed or learner.restored:
                raise
            raise RequestError(f"{saving.last} cannot be gone on from: {str(error).strip().splitlines()[0]}") from error
    steps = trainer.global_step - (resumed["step"] if resumed else 0)
    busy = time.perf_counter() - start - sum(c.seconds for c in (log, validation, pictures, saving))
    return Fit(
        step=trainer.global_step,
        bad_steps=learner.bad_steps,
        interrupted=learner.interrupted or signals.asked,
        seconds=learner.clock(),
        images_per_second=steps * progress.batch_images / busy,
        peak_memory=peak_memory(),
        valid=validation.state["details"],
    )


def is_complete(state: Any, train: Mapping[str, Any], max_steps: int) -> bool:
    """Whether the run of this checkpoint has had all its steps, or stopped early and would do so again."""
    stale, patience = state["callbacks"]["Validation"]["stale"], train["patience"]
    given_up = state["genlab"]["stopped_early"] and patience is not None and stale >= patience
    return given_up or state["genlab"]["step"] >= max_steps


def peak_memory() -> int:
    """Bytes: of the GPU's allocator if there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's and PyTorch's remarks off the screen; GENLAB_DEBUG=1 shows them."""
    if os.environ.get("GENLAB_DEBUG"):
        yield
        return
    chatty = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in chatty]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in chatty:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(chatty, levels, strict=True):
                logger.setLevel(level)


def _strategy(plan: Plan, sharded: bool, partly: bool) -> Strategy | str:
    """`partly`: some steps leave some weights without a gradient, for which DDP would wait in vain."""
    if sharded:
        # One file with everything, written by rank zero, as without sharding.
        return ModelParallelStrategy(
            data_parallel_size=plan.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(find_unused_parameters=partly) if plan.processes > 1 else "auto"
