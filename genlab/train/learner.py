"""The one LightningModule: a model, its averaged weights, one optimiser, and a guard against non-finite steps.

What is ours beside Lightning's loop:

- *Randomness* of batch b on rank r is a function of (seed, r, b) alone, set at the start of every training step. So a
  resumed run needs no stored generator, and neither validation nor sampling can shift the training that follows.
- *Non-finite steps* are skipped on every rank at once, as in VDVAE's code (Child 2021, arXiv:2011.10650): the ranks
  agree on one small tensor per optimiser step, which also carries a request to stop. Ours counts them, stops at
  `max_bad_steps`, and names the module that went first.
- *Numbers* are sums over images in float64 until they are logged; validation is not here but in `callbacks.py`, where
  it is the very function that makes the final table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from genlab.core import ImageSpec, Likelihood, RunError
from genlab.data.batches import context_of
from genlab.measure.bits import bits_per_dim
from genlab.system.device import moved, true_float32
from genlab.train import ema
from genlab.train.checkpoint import check_moments
from genlab.train.guard import first_non_finite
from genlab.train.optim import AdamW
from genlab.train.shard import shard, whole


def step_seed(seed: int, rank: int, batch: int) -> int:
    """Generator seed of one batch on one rank, well mixed (consecutive integers are poor seeds)."""
    return int(np.random.SeedSequence([seed, rank, batch]).generate_state(1, np.uint64)[0])


def networks(model: Any) -> list[nn.Module]:
    """What `compile=true` compiles: the parts in which a model spends its time, by the names that models give them, or
    the list that it has of them.
    """
    if hasattr(model, "networks"):
        return list(model.networks())
    parts = (getattr(model, name, None) for name in ("net", "encoder", "decoder", "generator", "discriminator"))
    return [part for part in parts if isinstance(part, nn.Module)]


class Learner(pl.LightningModule):
    """Trains `model` on batches (images (B, C, H, W) uint8, labels (B,), index (B,)).

    `decay` is the EMA decay, 0 for none. `card` goes into every checkpoint under "genlab" and must hold primitives
    only. `compile` compiles the model's networks; `sharded` splits the weights over the ranks (FSDP2).
    state_dict keys are `model.*` and `ema.*`.
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
        compile: bool = False,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model if sharded else model.to(memory_format=torch.channels_last)  # FSDP2: contiguous
        self.ema = ema.frozen_copy(self.model) if decay else None
        for net in networks(model) if compile else ():
            net.compile()  # in place: torch.compile(net) would rename the weights
        self.spec, self.optim, self.max_steps, self.seed = spec, optim, max_steps, seed
        self.decay, self.max_bad_steps, self.card, self.sharded = decay, max_bad_steps, card or {}, sharded
        self.rate = 0.0  # learning rate of the newest step
        self.bad_steps = 0  # optimiser steps skipped so far
        self.updates = 0  # averaging updates so far, the t of ema.decay_at
        self.last_good: str | None = None  # newest checkpoint, for the message of a failing run
        self.signal = 0  # set by a signal handler of this process
        self.interrupted = 0  # the signal all ranks agreed on, at an optimiser step
        self.stopped_early = False
        self.restored = False  # whether training has begun, which it does when a checkpoint has been taken in whole
        self.clock: Callable[[], float] = lambda: 0.0  # seconds this run has trained, over all its sessions
        self._sums: dict[str, Tensor] = {}  # float64 (2,): a term's sum over images since the last log, and how many
        self._reset_step()

    # ---- one optimiser step: training_step per batch, then on_before_optimizer_step, clipping, optimizer_step

    def _reset_step(self) -> None:
        self._batches: list[tuple[int, Any]] = []  # (batch number, batch) of the optimiser step in progress
        self._step_sums: dict[str, Tensor] = {}
        self._skip = self._bad = False

    def _terms(self, number: int, batch: Any) -> dict[str, Tensor]:
        """Objective of a batch, each term (B,) nats; a function of the weights, the batch and its number."""
        torch.manual_seed(step_seed(self.seed, self.global_rank, number))
        return self.model.objective(batch.images, context_of(self.model, batch))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss in bits/dim: a scale at which one clipping norm and learning rate suit every image size."""
        if not self._batches:
            self._buffers_before = [b.clone() for b in self.model.buffers()]
        self._batches.append((batch_idx, batch))
        terms = self._terms(batch_idx, batch)
        for name, values in terms.items():
            _add(self._step_sums, name, sum_and_count(values))
        self.trainer.datamodule.position += 1  # type: ignore[attr-defined]
        return self._mean_loss(terms)

    def _mean_loss(self, terms: dict[str, Tensor]) -> Tensor:
        return bits_per_dim(-terms["loss"], self.spec).mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Agree with the other ranks whether this step is sound and whether to stop after it: the one host sync."""
        self.rate = float(optimizer.param_groups[0]["lr"])
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        gradients = gradients or [torch.zeros((), device=self.device)]  # of nothing, the norm is a CPU's tensor
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        bad_loss, bad_norm = ~self._step_sums["loss"][0].isfinite(), ~self.grad_norm.isfinite()
        signal = torch.full((), self.signal, dtype=torch.float, device=self.device)
        flags = torch.stack([bad_loss.float(), bad_norm.float(), signal])
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        loss_is_bad, norm_is_bad, self.interrupted = (int(flag) for flag in flags.tolist())
        # With fp16 an overflowing gradient is the loss scaler's daily business: it skips the step and halves the scale.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        self._skip = bool(loss_is_bad or norm_is_bad)
        self._bad = bool(loss_is_bad or (norm_is_bad and not scaled))
        if self._skip:
            self._suspect = self._suspect_gradient()
            for p in self.model.parameters():
                p.grad = None  # which makes the optimiser's step a no-op

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm that the guard has already computed."""
        if gradient_clip_val and not self._skip:
            trained = [p for p in self.model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, self.grad_norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average; or, after a bad step, put everything back as it was."""
        super().optimizer_step(*args, **kwargs)
        if self._skip:
            with torch.no_grad():  # a forward pass on non-finite values may have spoilt running statistics
                for buffer, before in zip(self.model.buffers(), self._buffers_before, strict=True):
                    buffer.copy_(before)
        else:
            self._average()
            for name, value in self._step_sums.items():
                _add(self._sums, name, value)
        if self._bad:
            self.bad_steps += 1
            if self.bad_steps >= self.max_bad_steps:
                raise RunError(self._verdict())
        self._reset_step()

    def _average(self) -> None:
        """One update of the averaged weights."""
        self.updates += 1
        if self.ema is not None:
            ema.update(self.ema, self.model, ema.decay_at(self.updates, self.decay))

    def configure_optimizers(self) -> Any:
        """AdamW with its schedule, stepped once per optimiser step."""
        optimizer = self._optimizer(fused=getattr(self.trainer.precision_plugin, "scaler", None) is None)
        scheduler = LambdaLR(optimizer, lambda step: self.optim.factor(step, self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self, fused: bool) -> torch.optim.Optimizer:
        return self.optim.optimizer(self.model.parameters(), fused=fused)

    def on_train_start(self) -> None:
        """A resumed run may have been given more steps: its learning rate follows the schedule as it is now. Sums of a
        checkpoint may have been read before this learner was moved to its device.
        """
        self._sums = {name: moved(value, self.device) for name, value in self._sums.items()}
        scheduler: Any = self.lr_schedulers()
        check_moments(scheduler.optimizer, self.last_good)
        for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * self.optim.factor(scheduler.last_epoch, self.max_steps)
        self.restored = True

    # ---- what callbacks read

    @contextmanager
    def judged(self) -> Iterator[nn.Module]:
        """The model to validate, sample and test: averaged weights, evaluation mode, float32, no gradients.

        The same on every rank: each has running statistics of its own until DDP hands out those of rank zero, at the
        start of the next step.
        """
        model = self.model if self.ema is None else self.ema
        training = model.training
        model.eval()
        if dist.is_initialized():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        try:
            with torch.no_grad(), true_float32(), torch.autocast(self.device.type, enabled=False), whole(model):
                yield model
        finally:
            model.train(training)

    @property
    def weights(self) -> str:
        """Which weights `judged` gives: "ema" or "raw"."""
        return "raw" if self.ema is None else "ema"

    def train_metrics(self) -> dict[str, float]:
        """Means over all images of all ranks since the last call; empty if every step in between was skipped."""
        sums = self._gathered_sums()
        self._sums = {}
        means = {f"train/{name}": total / images for name, (total, images) in sums.items()}
        if not means:
            return {}
        if isinstance(self.model, Likelihood):
            nats = torch.tensor([-means.pop("train/loss")], dtype=torch.double)
            means = {"train/bits_per_dim": bits_per_dim(nats, self.spec).item(), **means}
        return {**means, "train/grad_norm": self.grad_norm.item()}

    def train(self, mode: bool = True) -> Learner:
        """Training mode for the model; the average stays in evaluation mode."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        return self

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add `checkpoint["genlab"]`: what rebuilds this model, and the counters that are not tensors."""
        checkpoint["genlab"] = {
            **self.card,
            "step": self.global_step,
            "stopped_early": self.stopped_early,
            "bad_steps": self.bad_steps,
            "updates": self.updates,
            "seconds": self.clock(),
            "sums": self._gathered_sums(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back. The sums were added up over ranks, so one rank takes them all, the others zeros."""
        state = checkpoint["genlab"]
        self.bad_steps, self.updates = state["bad_steps"], state["updates"]
        own = float(self.global_rank == 0)
        self._sums = {
            name: own * torch.tensor(sums, dtype=torch.double, device=self.device)
            for name, sums in state["sums"].items()
        }

    def configure_model(self) -> None:
        """Split weights and their average over the ranks alike, so that averaging stays local."""
        if self.sharded:
            for part in (self.model, self.ema):
                if part is not None:
                    shard(part, self.device_mesh["data_parallel"])  # type: ignore[index]
            self.sharded = False

    # ---- private

    def _gathered_sums(self) -> dict[str, list[float]]:
        if not self._sums:
            return {}
        total = torch.stack(list(self._sums.values()))
        if dist.is_initialized():
            dist.all_reduce(total)
        return dict(zip(self._sums, total.tolist(), strict=True))

    def _suspect_gradient(self) -> str | None:
        return next(
            (n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), None
        )

    def _verdict(self) -> str:
        """One sentence: at which step, which module went first, and where the last good weights are."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            found = (first_non_finite(self.model, lambda b=b: self._terms(*b)) for b in self._batches)  # type: ignore[misc]
            culprit = next((name for name in found if name), None)
        if culprit is None and self._suspect:
            culprit = f"the gradient of {self._suspect}"
        culprits = [culprit]
        if dist.is_initialized():
            culprits = [None] * dist.get_world_size()
            dist.all_gather_object(culprits, culprit)
        first = next((name for name in culprits if name), "the loss itself")
        kept = f"the last good checkpoint is {self.last_good}" if self.last_good else "no checkpoint had been written"
        return (
            f"stopped at step {self.global_step + 1}: {self.bad_steps} steps had a loss or gradient that is not finite "
            f"(train.max_bad_steps={self.max_bad_steps}); in this one it came first out of {first}; {kept}; "
            f"a smaller optim.lr or trainer.gradient_clip_val often helps"
        )


def sum_and_count(values: Tensor) -> Tensor:
    """(B,) -> float64 (2,)."""
    total = values.detach().double().sum()
    return torch.stack([total, torch.full_like(total, len(values))])


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
