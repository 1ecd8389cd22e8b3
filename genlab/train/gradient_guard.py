"""Gradient guard: an optimiser step whose loss or gradient is not finite is skipped, counted and undone.

This follows the code of VDVAE (Child 2021, arXiv:2011.10650). All ranks skip the same steps: they exchange one small
tensor per optimiser step, which also carries a request to stop. Ours also counts the steps, stops the run at
`max_bad_steps`, and names the module that produced the first non-finite number.

torch.autograd.detect_anomaly is not used: it slows every step down, and it looks at the backward pass only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genlab.core import RunError
from genlab.train.buffers import varying
from genlab.train.non_finite import first_non_finite


class GradientGuard:
    """`bad_steps`: number of bad steps so far. `grad_norm`: norm of the newest gradient. `skip`: True if this step is
    skipped.

    With fp16 an overflowing gradient is normal: the loss scaler skips the step and halves its scale. Such a step is
    skipped but does not count as `bad`.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.bad_steps = 0
        self.grad_norm = torch.zeros(())
        self.skip = self.bad = False
        self._suspect: str | None = None  # name of a weight whose gradient is not finite
        self._buffers: list[Tensor] = []  # those that change in training, as they were before the step

    def begin_step(self, model: nn.Module) -> None:
        """Save the buffers that change in training. Call it before the first forward pass of an optimiser step."""
        self.skip = self.bad = False
        self._buffers = [buffer.clone() for buffer in varying(model)]

    def check(self, model: nn.Module, loss_sum: Tensor, signal: int, scaled: bool) -> int:
        """Decide together with the other ranks if this step is skipped. The host waits for the device only here.

        `loss_sum` (): of this rank. `signal`: a request to stop that this rank has received, 0 for none. `scaled`: a
        loss scaler is used. Returns the signal that any rank has received.
        """
        device = loss_sum.device
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        gradients = gradients or [torch.zeros((), device=device)]  # without gradients the norm would be on the CPU
        norm = torch.nn.utils.get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        bad_loss, bad_norm = ~loss_sum.isfinite(), ~self.grad_norm.isfinite()
        request = torch.full((), signal, dtype=torch.float, device=device)
        flags = torch.stack([bad_loss.float(), bad_norm.float(), request])
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        loss_is_bad, norm_is_bad, agreed = (int(flag) for flag in flags.tolist())
        self.skip = bool(loss_is_bad or norm_is_bad)
        self.bad = bool(loss_is_bad or (norm_is_bad and not scaled))
        if self.skip:
            self._suspect = next(
                (n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()), None
            )
            for p in model.parameters():
                p.grad = None  # which makes the optimiser's step a no-op
        return agreed

    def clip(self, model: nn.Module, max_norm: float) -> None:
        """Scale the gradient down to a norm of at most `max_norm`, by the norm that `check` has computed."""
        if not self.skip:
            trained = [p for p in model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(trained, max_norm, self.grad_norm)

    @torch.no_grad()
    def undo(self, model: nn.Module) -> None:
        """Restore the buffers: a forward pass on non-finite values may have changed running statistics."""
        for buffer, before in zip(varying(model), self._buffers, strict=True):
            buffer.copy_(before)

    def count(self) -> bool:
        """Count the step if it was bad. Returns True if there are now too many bad steps."""
        self.bad_steps += self.bad
        return self.bad and self.bad_steps >= self.max_bad_steps

    def error(
        self, model: nn.Module, batches: Sequence[Callable[[], dict[str, Tensor]]], step: int, last_good: str | None
    ) -> RunError:
        """The error of a stopped run: the step, the first module with a non-finite number, and the last good
        checkpoint.

        `batches` compute the objective of each batch of the step again. Every rank must call this.
        """
        names = (first_non_finite(model, batch) for batch in batches)
        culprit = next((name for name in names if name), None)
        if culprit is None and self._suspect:
            culprit = f"the gradient of {self._suspect}"
        culprits = [culprit]
        if dist.is_initialized():
            culprits = [None] * dist.get_world_size()
            dist.all_gather_object(culprits, culprit)
        first = next((name for name in culprits if name), "the loss itself")
        kept = f"the last good checkpoint is {last_good}" if last_good else "no checkpoint had been written"
        return RunError(
            f"stopped at step {step}: {self.bad_steps} steps had a loss or gradient that is not finite "
            f"(train.max_bad_steps={self.max_bad_steps}); in this step the first such number came out of {first}; "
            f"{kept}; a smaller optim.lr or trainer.gradient_clip_val often helps"
        )
