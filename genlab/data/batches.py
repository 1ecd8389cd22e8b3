"""Batches: a whole split once, in order; or an endless sequence of training batches.

All images are in one tensor and a batch is an index into it. There are no worker processes and no queues, and the only
state is a position. The training sequence is one seeded permutation of the images per epoch, one after the other. With
batches of B images on w processes, step k takes the positions [k B w, (k + 1) B w) of the sequence, and process r the
r-th B of these. So every image is seen once an epoch, no batch is smaller than the others, and a run that is resumed at
step k sees the images that it would have seen without the interruption.

N images in all, B in a batch, C channels, H x W pixels; w processes, of which this is number r.
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
    """A batch of images.

    `images`: uint8 (B, C, H, W). `labels`: int64 (B,). `index`: their positions in the split, int64 (B,).
    `context`: the second images, uint8 (B, C', H', W'), or None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides the method tuple.index, which nothing uses
    context: Tensor | None = None


ORDER, DRAW = 0, 1  # the use of random numbers, a part of the key of `generator`


def take(split: Split, index: Tensor) -> Batch:
    """The images of a split at the positions `index` (B,), on the device of the split."""
    index = moved(index, split.images.device)
    return Batch(*split.take(index), index)


class WholeSplit:
    """Every image of a split once, in fixed batches and in order. The last batch may be smaller.

    Process r of w gets the batches r, r + w, r + 2w, …, so the batches are the same for any number of processes.
    `transform` is applied to every batch.
    """

    def __init__(
        self, split: Split, batch_size: int, transform: Callable[[Batch], Batch] = lambda batch: batch
    ) -> None:
        self.split, self.batch_size, self.transform = split, batch_size, transform

    def __len__(self) -> int:
        return len(self._batch_numbers())

    def __iter__(self) -> Iterator[Batch]:
        total = len(self.split.labels)
        for number in self._batch_numbers():
            start = number * self.batch_size
            yield self.transform(take(self.split, torch.arange(start, min(start + self.batch_size, total))))

    def _batch_numbers(self) -> range:
        """The batches of this process."""
        rank, world = rank_and_world()
        return range(rank, -(-len(self.split.labels) // self.batch_size), world)


class TrainingSequence:
    """The endless sequence batch(k), batch(k + 1), … `start()` returns k at the start of each iteration."""

    def __init__(self, batch: Callable[[int], Batch], start: Callable[[], int]) -> None:
        self.batch, self.start = batch, start

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, count(self.start()))


def training_order(seed: int, total: int, start: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers of the images at positions start .. start + length - 1 of the training sequence, (length,), on `device`.

    `total`: how many training images there are.
    """
    pieces = []
    while length > 0:
        epoch, offset = divmod(start, total)
        piece = permutation(seed, epoch, total, device)[offset : offset + length]
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return torch.cat(pieces)


@lru_cache(maxsize=2)  # a batch rarely spans more than two epochs
def permutation(seed: int, epoch: int, total: int, device: torch.device | str = "cpu") -> Tensor:
    """The order of the images in one epoch, (total,). It stays on `device`, which holds the images."""
    return moved(torch.randperm(total, generator=generator(seed, ORDER, epoch)), device)


def generator(*key: int) -> torch.Generator:
    """A generator seeded by its key: equal keys give equal numbers, different keys give independent ones."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)  # manual_seed takes 63 bits


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of processes): (0, 1) unless the run is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def context_of(model: object, batch: Batch) -> Tensor | None:
    """The part of a batch that the model is conditioned on: labels (B,), second images (B, C', H', W') or None."""
    kind = getattr(model, "conditioning", "none")
    return {"label": batch.labels, "image": batch.context}[kind] if kind != "none" else None
