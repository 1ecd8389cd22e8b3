"""Nats into bits per dimension, and whole-split evaluation: the only file that divides by dims * ln 2.

    bits/dim = -log p(x) / (C * H * W * ln 2)

of the original data (Theis et al. 2016, arXiv:1511.01844). Every number is a mean over images, each image counted
once, summed in float64 in the order of the file, and it travels with what it is: exact or a bound, how many draws,
which split, which data variant, which weights, which precision. Batches are fixed by the data module, and the noise of
a bound's draws is a function of the seed and the batch, so one, two or three processes compute the same per-image
values and hence the same mean.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.core import ImageSpec, Likelihood, RunError
from genlab.data.batches import context_of
from genlab.system.device import moved, precision_used, true_float32


def bits_per_dim(nats: Tensor, spec: ImageSpec) -> Tensor:
    """Log-probability in nats, one per image (B,) -> bits per dimension (B,). Lower is better."""
    return -nats / (spec.dims * math.log(2))


def log_marginal(model: Likelihood, x: Tensor, context: Tensor | None = None, *, draws: int = 1) -> Tensor:
    """log p(x) in nats (B,), float64: exact, or the k-draw bound log 1/k sum w (Burda et al. 2016, arXiv:1509.00519).

    An exact model ignores `draws`.
    """
    if model.exact:
        return model.log_prob(x, context).double()
    log_w = torch.stack([model.log_prob(x, context).double() for _ in range(draws)])
    return log_w.logsumexp(0) - math.log(draws)


@dataclass(frozen=True)
class Result:
    """A likelihood that says what it is. `standard_error` is over images, in bits/dim; `nats` is per image.

    `conditioning`: what the images were given, "none", "label" or "image"; p(x | y) does not compare with p(x).
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
        given = {"none": "", "label": ", given the label", "image": ", given the second image"}[self.conditioning]
        return f"{self.bits_per_dim:.4f} ± {self.standard_error:.4f} ({bound}{given}, {self.n:,} images)"

    def as_dict(self) -> dict[str, float | int | str]:
        """Primitives, for JSON."""
        return asdict(self)


class Tally:
    """Collects nats per image, on any number of processes, and summarises them once. `what` they are, for errors."""

    def __init__(self, what: str = "log-likelihood") -> None:
        self._what = what
        self._index: list[Tensor] = []
        self._nats: list[Tensor] = []

    def add(self, index: Tensor, nats: Tensor) -> None:
        """File positions of the images (B,) and their log-probabilities (B,)."""
        self._index.append(index.detach())
        self._nats.append(nats.detach().double())

    def gathered(self, expected: int | None = None) -> tuple[Tensor, Tensor]:
        """All processes' (index (N,), nats (N,) float64) on the CPU, in the order of the file.

        Raises RunError when an image is not finite, counted twice, or (with `expected`) missing.
        """
        index = torch.cat(self._index).cpu() if self._index else torch.empty(0, dtype=torch.long)
        nats = torch.cat(self._nats).cpu() if self._nats else torch.empty(0, dtype=torch.double)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts: list[tuple[Tensor, Tensor]] = [(index, nats)] * dist.get_world_size()
            dist.all_gather_object(parts, (index, nats))
            index, nats = torch.cat([i for i, _ in parts]), torch.cat([v for _, v in parts])
        index, order = index.sort()
        nats = nats[order]
        if not nats.isfinite().all():
            bad = index[~nats.isfinite()]
            raise RunError(
                f"{self._what} is not finite for {len(bad)} of {len(index)} images, first image {bad[0].item()} "
                f"of the split ({nats[~nats.isfinite()][0].item()})"
            )
        if len(index.unique()) != len(index) or (expected is not None and len(index) != expected):
            raise RunError(
                f"evaluation counted {len(index)} values for {expected} images: an image is missing or double"
            )
        return index, nats

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
        """Mean and standard error over all images of all processes."""
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
    batches: Iterable,
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
    """Likelihood over every batch (images, labels, index) of a split, on this process's share of it.

    `seed` decides the draws of a bound; `expected` images of the whole split are insisted on; `on_batch` is told how
    many images were just done.
    """
    weight = next(model.parameters())  # type: ignore[attr-defined]
    tally = Tally()
    for batch in batches:
        seed_for(seed, batch)
        context = context_of(model, batch)
        context = None if context is None else moved(context, weight.device)
        tally.add(batch.index, log_marginal(model, moved(batch.images, weight.device), context, draws=draws))
        if on_batch:
            on_batch(len(batch.index))
    kind = "exact" if model.exact else "bound"
    return tally.result(
        spec, kind=kind, draws=1 if model.exact else draws, split=split, data=data, weights=weights,
        precision=precision_used(weight), conditioning=getattr(model, "conditioning", "none"), expected=expected,
    )  # fmt: skip


def seed_for(seed: int, batch: Any) -> None:
    """Seed torch's noise for a batch of a split, which its first image stands for, whichever process has it."""
    mixed = hashlib.blake2b(f"{seed} {int(batch.index[0])}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(mixed, "big"))
