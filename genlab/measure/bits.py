"""Bits per dimension from log-probabilities in nats, and the likelihood of a whole split.

    bits/dim = -log p(x) / (C * H * W * ln 2)

of the original data (Theis et al. 2016, arXiv:1511.01844). No other file of genlab divides by ln 2.

Every number is a mean over images. Each image is counted once, and the sum is in float64 in the order of the file. A
result also has its conditions: exact or a bound, number of draws, split, data variant, weights and precision. The
data module fixes the batches, and the noise of a bound is a function of the seed and the batch. So any number of
processes computes the same value for every image, and hence the same mean.

B images in a batch, N in all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.core import ImageSpec, Likelihood, RunError
from genlab.data.batches import Batch, context_of
from genlab.system.device import moved, precision_used, true_float32


def in_bits(nats: Tensor) -> Tensor:
    """Log-probabilities in nats -> information in bits, -log2 p, of the same shape."""
    return -nats / math.log(2)


def bits_per_dim(nats: Tensor, spec: ImageSpec) -> Tensor:
    """Log-probabilities of images in nats (B,) -> bits per dimension (B,). Lower is better."""
    return -nats / (spec.dims * math.log(2))


def log_marginal(model: Likelihood, x: Tensor, context: Tensor | None = None, *, draws: int = 1) -> Tensor:
    """log p(x) of images (B, C, H, W) in nats, (B,) float64: exact, or a lower bound from `draws` draws of w.

    The bound is log 1/k sum_i w_i with E[w_i] = p(x) (Burda et al. 2016, arXiv:1509.00519). An exact model ignores
    `draws`.
    """
    if model.exact:
        return model.log_prob(x, context).double()
    log_w = torch.stack([model.log_prob(x, context).double() for _ in range(draws)])
    return log_w.logsumexp(0) - math.log(draws)


@dataclass(frozen=True)
class Result:
    """The mean likelihood of a split, and the conditions of its evaluation.

    `standard_error` is over images, in bits/dim. `nats`: mean log-probability of an image. `n`: number of images.
    `kind`: "exact" or "bound". `draws`: of the bound. `weights`: "ema" or "raw". `conditioning`: the context of
    each image, "none", "label" or "image"; log p(x | y) and log p(x) cannot be compared.
    """

    bits_per_dim: float
    standard_error: float
    nats: float
    n: int
    kind: str
    draws: int
    split: str
    data: str
    weights: str
    precision: str
    conditioning: str = "none"

    def __str__(self) -> str:
        draws = "1 draw" if self.draws == 1 else f"{self.draws:,} draws"
        bound = "exact" if self.kind == "exact" else f"upper bound, {draws}"
        condition = {"none": "", "label": ", given the label", "image": ", given the second image"}[self.conditioning]
        return f"{self.bits_per_dim:.4f} ± {self.standard_error:.4f} ({bound}{condition}, {self.n:,} images)"

    def as_dict(self) -> dict[str, float | int | str]:
        """Primitives, for a JSON file."""
        return asdict(self)


class Tally:
    """Collects one number for each image, on any number of processes, and summarises them once.

    `what` names the numbers in error messages.
    """

    def __init__(self, what: str = "log-likelihood") -> None:
        self._what = what
        self._index: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, index: Tensor, values: Tensor) -> None:
        """Add the numbers (B,) of the images at these positions (B,) in the split."""
        self._index.append(index.detach())
        self._values.append(values.detach().double())

    def gathered(self, expected: int | None = None) -> tuple[Tensor, Tensor]:
        """(positions (N,), numbers (N,) float64) of all processes, on the CPU, in the order of the file.

        Raises RunError if a number is not finite, if an image is counted twice, or if there are not `expected` images.
        """
        index = torch.cat(self._index).cpu() if self._index else torch.empty(0, dtype=torch.long)
        values = torch.cat(self._values).cpu() if self._values else torch.empty(0, dtype=torch.double)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts: list[tuple[Tensor, Tensor]] = [(index, values)] * dist.get_world_size()
            dist.all_gather_object(parts, (index, values))
            index, values = torch.cat([i for i, _ in parts]), torch.cat([v for _, v in parts])
        index, order = index.sort()
        values = values[order]
        if not values.isfinite().all():
            bad = index[~values.isfinite()]
            raise RunError(
                f"{self._what} is not finite for {len(bad)} of {len(index)} images, first image {bad[0].item()} "
                f"of the split ({values[~values.isfinite()][0].item()})"
            )
        if len(index.unique()) != len(index) or (expected is not None and len(index) != expected):
            raise RunError(
                f"evaluation counted {len(index)} values for {expected} images: an image is missing or double"
            )
        return index, values

    def result(
        self,
        spec: ImageSpec,
        *,
        kind: str,
        draws: int,
        split: str,
        data: str,
        weights: str,
        precision: str,
        conditioning: str = "none",
        expected: int | None = None,
    ) -> Result:
        """Mean and standard error over the images of all processes, if the numbers are log-probabilities in nats.

        Raises RunError as `gathered` does.
        """
        _, nats = self.gathered(expected)
        bits = bits_per_dim(nats, spec)
        error = (bits.std() / math.sqrt(len(bits))).item() if len(bits) > 1 else 0.0
        return Result(
            bits.mean().item(), error, nats.mean().item(), len(bits), kind, draws, split, data, weights, precision,
            conditioning,
        )  # fmt: skip


@torch.no_grad()
@true_float32()
def evaluate(
    model: Likelihood,
    batches: Iterable[Batch],
    spec: ImageSpec,
    *,
    draws: int = 1,
    split: str,
    data: str,
    weights: str,
    expected: int | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Result:
    """Likelihood of a split from `batches` (`data.Batch`). Every process evaluates its part of the batches.

    `draws` and `seed`: of a bound. `expected`: number of images of the whole split; a RunError is raised if there are
    others. `on_batch(n)` is called after every n images. `split`, `data` and `weights` are only reported.
    """
    weight = next(model.parameters())  # type: ignore[attr-defined]
    tally = Tally()
    for batch in batches:
        seed_for(seed, batch)
        tally.add(batch.index, log_marginal(model, *inputs(model, batch, weight.device), draws=draws))
        if on_batch:
            on_batch(len(batch.index))
    kind = "exact" if model.exact else "bound"
    return tally.result(
        spec, kind=kind, draws=1 if model.exact else draws, split=split, data=data, weights=weights,
        precision=precision_used(weight), conditioning=getattr(model, "conditioning", "none"), expected=expected,
    )  # fmt: skip


def seed_for(seed: int, batch: Batch) -> None:
    """Seed torch's global generator for a batch of a split. The batch is identified by the position of its first image,
    so the noise does not depend on the process that evaluates the batch.
    """
    mixed = hashlib.blake2b(f"{seed} {int(batch.index[0])}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(mixed, "big"))


def inputs(model: object, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) of a batch and the context that the model needs (B, ...) or None, on the device."""
    context = context_of(model, batch)
    return moved(batch.images, device), None if context is None else moved(context, device)
