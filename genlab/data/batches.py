"""Batches: the whole split once, in order; or training images for ever, in an order that is a function of a number.

Images sit in one tensor and a batch is an index into it: no worker processes, no queues, no state but a position.
The training order is the concatenation of one seeded permutation an epoch, and global batch k is positions
[k B w, (k + 1) B w) of that sequence for batches of B on w processes. So every image is seen once an epoch, no batch
is partial, and a run that goes on at batch k sees what it would have seen.

N images, B a batch, C channels, H x W pixels; w processes, of which this is number r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from genlab.data.source import Split
from genlab.system.device import moved


class Batch(NamedTuple):
    """Images uint8 (B, C, H, W), labels int64 (B,), which images of the split they are, int64 (B,), and where the data
    comes with second images, those: uint8 (B, C', H', W').
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody misses
    context: Tensor | None = None


ORDER, DRAW = 0, 1  # what random numbers are for: keys of `generator`


def take(split: Split, index: Tensor) -> Batch:
    """The batch of these images of a split, on the split's device."""
    index = moved(index, split.images.device)
    return Batch(*split.take(index), index)


class WholeSplit:
    """Every image of a split once: fixed batches in order, the last one as small as it must be.

    Process r of w gets the whole batches r, r + w, r + 2w, …: however many processes, the batches are the same.
    `finish` is done to every batch.
    """

    def __init__(self, split: Split, batch_size: int, finish: Callable[[Batch], Batch] = lambda batch: batch) -> None:
        self.split, self.batch_size, self.finish = split, batch_size, finish

    def __len__(self) -> int:
        return len(self._mine())

    def __iter__(self) -> Iterator[Batch]:
        total = len(self.split.labels)
        for batch in self._mine():
            start = batch * self.batch_size
            yield self.finish(take(self.split, torch.arange(start, min(start + self.batch_size, total))))

    def _mine(self) -> range:
        rank, world = rank_and_world()
        return range(rank, -(-len(self.split.labels) // self.batch_size), world)


class Endless:
    """Batches number start(), start() + 1, … without end; `start` is asked whenever iteration begins."""

    def __init__(self, batch: Callable[[int], Batch], start: Callable[[], int]) -> None:
        self.batch, self.start = batch, start

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, count(self.start()))


def training_order(seed: int, total: int, start: int, length: int) -> Tensor:
    """Which of the `total` images are at positions start .. start + length - 1 of the training sequence, (length,)."""
    pieces = []
    while length > 0:
        epoch, offset = divmod(start, total)
        piece = permutation(seed, epoch, total)[offset : offset + length]
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return torch.cat(pieces)


@lru_cache(maxsize=2)  # a batch rarely touches more than this epoch and the next
def permutation(seed: int, epoch: int, total: int) -> Tensor:
    """The order of one epoch, (total,)."""
    return torch.randperm(total, generator=generator(seed, ORDER, epoch))


def generator(*key: int) -> torch.Generator:
    """Random numbers that are a function of some integers: equal keys, equal numbers; else unrelated ones."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)  # manual_seed takes 63 bits


def rank_and_world() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) unless the run is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def context_of(model: object, batch: Batch) -> Tensor | None:
    """What the model is conditioned on, out of a batch: labels (B,), second images (B, C', H', W') or nothing."""
    kind = getattr(model, "conditioning", "none")
    return {"label": batch.labels, "image": batch.context}[kind] if kind != "none" else None
