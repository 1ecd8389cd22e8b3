"""The one LightningModule: a model, its averaged weights and one optimiser, around Lightning's training loop.

- *Randomness* of batch b on rank r is a function of (seed, r, b) alone, set at the start of every training step. So a
  resumed run needs no stored generator, and neither validation nor sampling can change the training that follows.
- *Non-finite steps* are skipped on every rank at once (`gradient_guard.py`).
- *Metrics* are sums over images in float64 until they are logged (`running_sums.py`). Validation is in `callbacks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from genlab.core import ImageSpec, Likelihood
from genlab.data.batches import context_of
from genlab.measure.bits import bits_per_dim
from genlab.system.device import true_float32
from genlab.train import ema
from genlab.train.buffers import varying
from genlab.train.checkpoint import check_moments
from genlab.train.fsdp import shard, unsharded
from genlab.train.gradient_guard import GradientGuard
from genlab.train.optim import AdamW
from genlab.train.running_sums import RunningSums


def step_seed(seed: int, rank: int, batch: int) -> int:
    """Generator seed of one batch on one rank, well mixed (consecutive integers are poor seeds)."""
    return int(np.random.SeedSequence([seed, rank, batch]).generate_state(1, np.uint64)[0])


class Learner(pl.LightningModule):
    """Trains `model` on batches (images (B, C, H, W) uint8, labels (B,), index (B,)).

    `decay`: of the averaged weights, 0 for no average. `max_bad_steps`: as `GradientGuard`. `card` goes into every
    checkpoint under "genlab" and must hold primitives and tensors only. `sharded` splits the weights over the ranks.
    The keys of the state_dict are `model.*` and `ema.*`.
    """

    def __init__(
        self,
        model: Any,
        spec: ImageSpec,
        optim: AdamW,
        *,
        max_steps: int,
        seed: int = 0,
        decay: float = 0.999,
        max_bad_steps: int = 10,
        card: dict[str, Any] | None = None,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model if sharded else model.to(memory_format=torch.channels_last)  # FSDP2: contiguous
        self.ema = ema.frozen_copy(self.model) if decay else None
        self.spec, self.optim, self.max_steps, self.seed = spec, optim, max_steps, seed
        self.decay, self.card, self.sharded = decay, card or {}, sharded
        self.guard = GradientGuard(max_bad_steps)
        self.rate = 0.0  # learning rate of the newest step
        self.updates = 0  # averaging updates so far, the t of ema.decay_at
        self.last_good: str | None = None  # newest checkpoint, for the message of a failing run
        self.signal = 0  # set by a signal handler of this process
        self.interrupted = 0  # the signal all ranks agreed on, at an optimiser step
        self.stopped_early = False
        self.restored = False  # True once training has begun, when a checkpoint has been loaded completely
        self.clock: Callable[[], float] = lambda: 0.0  # seconds this run has trained, over all its sessions
        self._sums = RunningSums()  # of the sound steps since the last logged row
        self._reset_step()

    # ---- one optimiser step: training_step per batch, then on_before_optimizer_step, clipping, optimizer_step

    def _reset_step(self) -> None:
        self._batches: list[tuple[int, Any]] = []  # (batch number, batch) of the optimiser step in progress
        self._step_sums = RunningSums()

    def _terms(self, number: int, batch: Any) -> dict[str, Tensor]:
        """Objective of a batch, each term (B,) nats; a function of the weights, the batch and its number."""
        torch.manual_seed(step_seed(self.seed, self.global_rank, number))
        return self.model.objective(batch.images, context_of(self.model, batch))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss in bits/dim, so that one clipping norm and learning rate suit every image size."""
        if not self._batches:
            self.guard.begin_step(self.model)
        self._batches.append((batch_idx, batch))
        terms = self._terms(batch_idx, batch)
        self._step_sums.add_values(terms)
        self.trainer.datamodule.position += 1  # type: ignore[attr-defined]
        return self._mean_loss(terms)

    def _mean_loss(self, terms: dict[str, Tensor]) -> Tensor:
        return bits_per_dim(-terms["loss"], self.spec).mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Agree with the other ranks whether this step is sound and whether to stop after it."""
        self.rate = float(optimizer.param_groups[0]["lr"])
        loss_sum = self._step_sums.sums["loss"][0]
        self.interrupted = self.guard.check(self.model, loss_sum, self.signal, scaled=self._loss_is_scaled())

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that the guard has already computed."""
        if gradient_clip_val:
            self.guard.clip(self.model, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step and average the weights; or, if the step is skipped, restore the buffers."""
        super().optimizer_step(*args, **kwargs)
        if self.guard.skip:
            self.guard.undo(self.model)
        else:
            self._average()
            self._sums.add(self._step_sums.sums)
        if self.guard.count():
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                batches = [partial(self._terms, *batch) for batch in self._batches]
                raise self.guard.error(self.model, batches, self.global_step + 1, self.last_good)
        self._reset_step()

    def _average(self) -> None:
        """One update of the averaged weights."""
        self.updates += 1
        if self.ema is not None:
            ema.update(self.ema, self.model, ema.decay_at(self.updates, self.decay))

    def configure_optimizers(self) -> Any:
        """The optimiser and its learning-rate schedule, which advances once per optimiser step."""
        optimizer = self.make_optimizer(fused=not self._loss_is_scaled())
        scheduler = LambdaLR(optimizer, lambda step: self.optim.factor(step, self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def make_optimizer(self, fused: bool) -> torch.optim.Optimizer:
        """The optimiser of the model's weights. `fused`: True if the precision allows a fused optimiser."""
        return self.optim.optimizer(self.model, fused=fused)

    def _loss_is_scaled(self) -> bool:
        """True under fp16-mixed precision."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def on_train_start(self) -> None:
        """Set the learning rate by the schedule: `max_steps` of a resumed run may have changed.

        The sums of a checkpoint move to the device here, because they were loaded before the learner was moved.
        """
        self._sums.to(self.device)
        scheduler: Any = self.lr_schedulers()
        check_moments(scheduler.optimizer, self.last_good)
        for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * self.optim.factor(scheduler.last_epoch, self.max_steps)
        self.restored = True

    # ---- called by callbacks

    @contextmanager
    def evaluation_model(self) -> Iterator[nn.Module]:
        """The model to validate, sample and test: averaged weights, evaluation mode, float32, no gradients.

        The buffers of rank zero are sent to all ranks, so that all have the same model. (Otherwise each would have
        running statistics of its own until the start of the next step, when DDP sends them.)
        """
        model = self.model if self.ema is None else self.ema
        training = model.training
        model.eval()
        if dist.is_initialized():
            for buffer in varying(model):
                dist.broadcast(buffer, 0)
        try:
            with torch.no_grad(), true_float32(), torch.autocast(self.device.type, enabled=False), unsharded(model):
                yield model
        finally:
            model.train(training)

    @property
    def weights(self) -> str:
        """Which weights `evaluation_model` gives: "ema" or "raw"."""
        return "raw" if self.ema is None else "ema"

    def train_metrics(self) -> dict[str, float]:
        """Means over all images of all ranks since the last call; empty if every step in between was skipped."""
        sums = self._sums.gathered()
        self._sums = RunningSums()
        means = {f"train/{name}": total / images for name, (total, images) in sums.items()}
        if not means:
            return {}
        if isinstance(self.model, Likelihood):
            nats = torch.tensor([-means.pop("train/loss")], dtype=torch.double)
            means = {"train/bits_per_dim": bits_per_dim(nats, self.spec).item(), **means}
        return {**means, "train/grad_norm": self.guard.grad_norm.item()}

    def train(self, mode: bool = True) -> Learner:
        """Training mode for the model; the average stays in evaluation mode."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        return self

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `checkpoint["genlab"]`: the card, which is enough to rebuild the model, and counters that are not
        tensors.
        """
        checkpoint["genlab"] = {
            **self.card,
            "step": self.global_step,
            "stopped_early": self.stopped_early,
            "bad_steps": self.guard.bad_steps,
            "updates": self.updates,
            "seconds": self.clock(),
            "sums": self._sums.gathered(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters."""
        state = checkpoint["genlab"]
        self.guard.bad_steps, self.updates = state["bad_steps"], state["updates"]
        self._sums.load(state["sums"], self.global_rank)

    def configure_model(self) -> None:
        """Split the weights and their average over the ranks alike: then averaging needs no communication."""
        if self.sharded:
            for part in (self.model, self.ema):
                if part is not None:
                    shard(part, self.device_mesh["data_parallel"])  # type: ignore[index]
            self.sharded = False
