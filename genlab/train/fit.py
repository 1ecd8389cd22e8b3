"""Put learner, callbacks, loggers and Trainer together and train, from the start or from checkpoints/last.ckpt.

Lightning's own progress bar, model summary, default logger, checkpoint callback, sampler and validation loop are off.
Each has a small counterpart here. Lightning runs its own in an order in which a checkpoint can miss events of its step.
In our order a resumed run equals an uninterrupted one to the bit.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from genlab.core import Adversarial, Primed, RequestError, RunError
from genlab.measure.captions import LATEST, caption, run_name
from genlab.system import signals
from genlab.system.device import true_float32
from genlab.train import optim
from genlab.train.adversarial import AdversarialLearner
from genlab.train.buffers import varying
from genlab.train.callbacks import Checkpoints, Log, Validation
from genlab.train.compile import compile_networks
from genlab.train.full_batch import FullBatchLearner, uses_full_batch
from genlab.train.learner import Learner
from genlab.train.metrics_file import read_metrics
from genlab.train.pictures import Pictures
from genlab.train.plan import Plan
from genlab.train.progress import Progress
from genlab.train.resume_state import PreloadedCheckpointIO, adapt
from genlab.train.run import Run


@dataclass(frozen=True)
class FitResult:
    """The result of training.

    `step`: optimiser steps so far. `interrupted`: the signal that stopped training, `callbacks.PAUSE` after
    train.pause_after, 0 if it ended by itself. `seconds`: of training over all sessions. `images_per_second`: of this
    session, without logging, validation, pictures and checkpoints. `peak_memory`: bytes. `valid`: details of the best
    validation. `verdict`: why training was stopped early, for the user; empty if it was not.
    """

    step: int
    bad_steps: int
    interrupted: int
    seconds: float
    images_per_second: float
    peak_memory: int
    valid: dict[str, Any]
    verdict: str = ""


@true_float32()  # precision=32 means full float32 on a GPU, too, without TF32
def fit(
    run: Run,
    *,
    log_to: Sequence[Logger] = (),
    draw: Callable[..., Any] | None = None,
    environment: ClusterEnvironment | None = None,
) -> FitResult:
    """Train; call it on every rank with the same arguments. Raises RunError if too many steps are not finite.

    `log_to`: loggers, on rank zero only. `draw(path, images, spec, columns=, caption=)` writes a grid of images;
    without it no pictures are made. `environment`: the description of the ranks for Lightning; None for one process.
    """
    prime(run)
    learner = learner_for(run)
    train, max_steps = run.config["train"], run.plan.max_steps
    log = Log(train["log_every"])
    progress = Progress(log, run.step_images, forecast=train.get("minutes") is None, compiled=run.config["compile"])
    validation = Validation(train["valid_every"], run.best, train["patience"], progress.with_progress)
    name = run_name(run.folder)
    pictures = Pictures(
        train["sample_every"] if draw else 0, run.folder, train["samples"], draw,
        lambda step: caption(name, step, run.model, *(validation.state[key] for key in LATEST)), progress.with_progress,
    )  # fmt: skip
    checkpoints = Checkpoints(train["checkpoint_every"], run.last, train.get("pause_after"))
    checkpoint = run.take_checkpoint()
    resumed = checkpoint["genlab"] if checkpoint else None
    if checkpoint:
        if is_complete(checkpoint, train, max_steps):
            max_steps = checkpoint["genlab"]["step"]  # a finished run is only loaded
        learner.last_good = str(run.last)
        checkpoint = adapt(checkpoint, learner, run.data, run.batch_images, fused=_fused(run.plan))
    checkpoint_io, checkpoint = PreloadedCheckpointIO(checkpoint), None
    first_step = resumed["step"] if resumed else 0
    environment = environment or LightningEnvironment()
    start = time.perf_counter()
    learner.clock = lambda: (resumed["seconds"] if resumed else 0.0) + time.perf_counter() - start
    with quiet():
        trainer = trainer_for(
            run, learner, environment, max_steps=max_steps, logger=list(log_to), checkpoint_io=checkpoint_io,
            callbacks=[log, validation, pictures, progress, checkpoints],
        )  # fmt: skip
        try:
            trainer.fit(learner, datamodule=run.data, ckpt_path=str(run.last) if resumed else None)
        except (RequestError, RunError):
            raise
        except Exception as error:
            if not resumed or learner.restored:
                raise
            raise RequestError(f"{run.last} cannot be resumed from: {str(error).strip().splitlines()[0]}") from error
    steps = trainer.global_step - first_step
    busy = time.perf_counter() - start - sum(c.seconds for c in (log, validation, pictures, checkpoints))
    return FitResult(
        step=trainer.global_step,
        bad_steps=learner.guard.bad_steps,
        interrupted=learner.interrupted or signals.received,
        seconds=learner.clock(),
        images_per_second=steps * run.step_images / busy,
        peak_memory=peak_memory(),
        valid=validation.state["details"],
        verdict=validation.verdict,
    )


def prime(run: Run) -> None:
    """Initialise a `core.Primed` model from the training images, if the run is new and has no `init=`."""
    if run.checkpoint is None and isinstance(run.model, Primed) and not run.config.get("init"):
        run.model.prime(run.data.split("train").images, seed=run.config["seed"])


def trainer_for(
    run: Run, learner: Learner, environment: ClusterEnvironment, *, checkpoint_io: CheckpointIO, **settings: Any
) -> pl.Trainer:
    """Lightning's Trainer for the plan of `run`; on a GPU, the images are moved there. `settings`: of the Trainer."""
    if run.plan.accelerator == "gpu":
        run.data.move_to(torch.device("cuda", environment.local_rank()))
    return pl.Trainer(
        **_hardware(run, learner), max_epochs=-1, plugins=[checkpoint_io, environment], default_root_dir=run.folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, limit_val_batches=0, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


def check_resumable(run: Run) -> None:
    """Raise RequestError if the run cannot be resumed. Nothing is written."""
    if run.config["logger"]["kind"] != "none":
        read_metrics(run.folder / "metrics.csv")
    if run.checkpoint is not None:
        adapt(run.checkpoint, learner_for(run, compile=False), run.data, run.batch_images, fused=_fused(run.plan))


def learner_for(run: Run, compile: bool = True) -> Learner:
    """The learner for the model and config of `run`. `compile`: False ignores `compile=true` of the config."""
    full_batch, config = uses_full_batch(run.model), run.config
    kind = FullBatchLearner if full_batch else AdversarialLearner if isinstance(run.model, Adversarial) else Learner
    learner = kind(
        run.model, run.data.spec, optim.settings(config["optim"]), max_steps=run.plan.max_steps, seed=config["seed"],
        decay=0.0 if full_batch else config["train"]["ema"], max_bad_steps=config["train"]["max_bad_steps"],
        card={**run.card, "batch_images": run.batch_images},
        sharded=run.plan.processes > 1 and run.plan.strategy == "fsdp",
    )  # fmt: skip
    if compile and config["compile"]:  # after the learner has copied the model for its average
        compile_networks(run.model)
    return learner


def is_complete(checkpoint: Mapping[str, Any], train: Mapping[str, Any], max_steps: int) -> bool:
    """True if the run of this checkpoint has done all its steps, or stopped early and would do so again."""
    stale, patience = checkpoint["callbacks"]["Validation"]["stale"], train["patience"]
    out_of_patience = checkpoint["genlab"]["stopped_early"] and patience is not None and stale >= patience
    return out_of_patience or checkpoint["genlab"]["step"] >= max_steps


def peak_memory() -> int:
    """The largest memory in use so far, in bytes: on the GPU if there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the messages and warnings of Lightning and PyTorch; GENLAB_DEBUG=1 shows them."""
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


def _hardware(run: Run, learner: Learner) -> dict[str, Any]:
    """The plan as arguments of Lightning's Trainer."""
    plan = run.plan
    strategy = _strategy(plan, learner, partly=getattr(run.model, "partly_trained", False))
    return {
        "accelerator": plan.accelerator, "devices": plan.devices, "num_nodes": plan.nodes, "strategy": strategy,
        "precision": plan.precision, "accumulate_grad_batches": plan.accumulate, "gradient_clip_val": plan.clip,
    }  # fmt: skip


def _strategy(plan: Plan, learner: Learner, partly: bool) -> Strategy | str:
    """`partly`: some steps leave some weights without a gradient, for which DDP would otherwise wait for ever."""
    if learner.sharded:
        # One file with everything, written by rank zero, as without sharding.
        return ModelParallelStrategy(
            data_parallel_size=plan.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    if plan.processes == 1:
        return "auto"
    # Constants, such as masks, need not be sent to the other ranks at every step.
    return DDPStrategy(find_unused_parameters=partly, broadcast_buffers=bool(varying(learner)))


def _fused(plan: Plan) -> bool:
    """False under fp16-mixed, whose loss scaling needs an optimiser that is not fused."""
    return plan.precision != "16-mixed"
