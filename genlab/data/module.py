"""ImageData: the data module of every data set. It has three splits, which are read whole or in training batches.

    source -> official splits -> fewer levels -> cut validation off the training split -> first `limit` images
    split("test"), batches("test")       the whole split, every image once: for evaluation
    training_batch(k)                    batch k of the endless training sequence, a function of (seed, k, process)

A `context` (see `context.py`) is computed from an image after binarisation and mirroring, batch by batch.

The validation images are chosen with a fixed seed, so all runs are compared on the same images. `seed` changes the
order, binarisation and mirroring of the training images, and nothing else. The only state is `position`, the number of
training batches already used. The learner advances it and the checkpoint keeps it, so a resumed run continues with the
batch that the interrupted run would have seen next.

N images in all, B in a batch, C channels, H x W pixels. Images are uint8 in 0..levels - 1, labels int64.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule

from genlab.core import ImageSpec, RequestError, nearest
from genlab.data.batches import (
    DRAW,
    Batch,
    TrainingSequence,
    WholeSplit,
    generator,
    rank_and_world,
    take,
    training_order,
)
from genlab.data.binarize import KINDS, dynamic_draw, static_binarization
from genlab.data.context import Context
from genlab.data.fingerprint import fingerprint, hashes
from genlab.data.levels import check_levels, reduce_levels
from genlab.data.mnist import BinarizedMNIST
from genlab.data.source import Source, Split, Splits, cut, lowest
from genlab.data.tree import listed
from genlab.system.device import moved

CONFIGURABLE = {"data": ("ImageData",)}

SPLITS = ("train", "valid", "test")
AUGMENT = ("none", "hflip")
USUAL_BATCH = 16  # images


class ImageData(LightningDataModule):
    """The splits of a source, as whole splits and as a training sequence.

    `validation`: how many training images become the validation split, or which share of them if it is below 1. It is
    not used if the source publishes a validation split. `batch_size`: images in a training batch of one process;
    None for 16 (`genlab train` chooses a number for the device, see train/batch_size.py). `eval_batch_size`: images in
    a batch of `batches`. `root`: see `files.data_root`. `binarize`: see `binarize.py`. `levels`: see `levels.py`; None
    for those of the source. `augment`: "hflip" mirrors half of the training images. `context`: what every image is
    conditioned on, see `context.py`; None for nothing. `limit`: use only the first images of every split. `seed`: of
    the training sequence.

    Raises RequestError if an option is not possible. Files are read when the first image is needed.
    """

    # With few validation batches and many processes, some processes have no batch and wait for the others.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        source: Source,
        *,
        validation: int | float,
        batch_size: int | None = None,
        eval_batch_size: int = 200,
        root: str | Path | None = None,
        binarize: str = "none",
        levels: int | None = None,
        augment: str = "none",
        context: Context | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        choose("binarize", binarize, KINDS)
        choose("augment", augment, AUGMENT)
        batch_size = USUAL_BATCH if batch_size is None else batch_size
        at_least(1, "batch_size", batch_size)
        at_least(1, "eval_batch_size", eval_batch_size)
        at_least(0, "seed", seed)
        if isinstance(validation, bool) or not isinstance(validation, (int, float)):
            raise RequestError(f"data.validation={validation} is not a number of images, or a share of them")
        if context is not None and not isinstance(context, Context):
            raise RequestError(f"data.context={context} is not a context: choose one with data/context=…")
        if limit is not None:
            at_least(1, "limit", limit)
        if binarize == "larochelle":
            if source.name != "mnist":
                raise RequestError(f"data.binarize=larochelle is a draw of mnist, not of {source.name}")
            source = BinarizedMNIST()
        self.source, self.validation, self.root = source, validation, Path(root) if root else None
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        if levels is not None:
            check_levels(levels, 256, binarize)
        self.binarize, self.levels, self.augment, self.limit, self.seed = binarize, levels, augment, limit, seed
        self.context = context
        # The name of the source and the variant. Results on different names cannot be compared. (All variants have
        # labels. Results say separately whether the model was conditioned on them.)
        self.name = source.name + ("" if binarize == "none" else f"_binary-{binarize}")
        self.name += "" if levels in (None, 256) else f"_{levels}levels"
        self.name += f"_{context.name}" if context is not None and context.kind == "image" else ""
        self.position = 0
        self._target = torch.device("cpu")  # the device of training batches

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels; empty without classes."""
        return self._loaded[1]

    @property
    def whole(self) -> ImageSpec:
        """Shape and levels of a whole image, from which a context has not been split off."""
        channels, height, width = self._loaded[0]["train"].images.shape[1:]  # loading sets _levels
        return ImageSpec(channels, height, width, self._levels, len(self.class_names))

    @property
    def spec(self) -> ImageSpec:
        """Shape and levels of the images that are modelled, and of their contexts."""
        return self.whole if self.context is None else self.context.spec(self.whole)

    def split(self, name: str) -> Split:
        """All modelled images (N, C, H, W) and labels (N,) of "train", "valid" or "test", the same at every call."""
        split = self._whole_split(name)
        return split if self.context is None else Split(self.context.modelled(split.images), split.labels)

    def first(self, name: str, count: int) -> Batch:
        """The first images of a split as one batch, the same on every process."""
        split = self._whole_split(name)
        return self._conditioned(take(split, torch.arange(min(count, len(split.labels)))))

    def batches(self, split: str, index: torch.Tensor | None = None) -> WholeSplit:
        """The batches of this process of a whole split, or of its images at the positions `index` (n,)."""
        whole = self._whole_split(split)
        return WholeSplit(whole if index is None else whole.take(index), self.eval_batch_size, self._conditioned)

    def training_batch(self, number: int) -> Batch:
        """Batch `number` of the training sequence for this process, binarised and augmented."""
        rank, world = rank_and_world()
        splits, _ = self._loaded
        split = splits.get("grey", splits["train"])
        start = (number * world + rank) * self.batch_size
        order = training_order(self.seed, len(split.labels), start, self.batch_size, split.images.device)
        images, labels, index, _ = take(split, order)
        random = generator(self.seed, DRAW, number, rank)
        if self.binarize == "dynamic":
            images = dynamic_draw(images, random)
        if self.augment == "hflip":
            mirror = moved(torch.randint(0, 2, (len(images), 1, 1, 1), generator=random), images.device)
            images = torch.where(mirror > 0, images.flip(-1), images)
        batch = self._conditioned(Batch(images, labels, index))
        tensors = [None if tensor is None else moved(tensor, self._target) for tensor in batch]
        return Batch(*tensors)  # type: ignore[arg-type]

    def train_dataloader(self) -> TrainingSequence:
        """The training sequence, starting at `position`."""
        return TrainingSequence(self.training_batch, lambda: self.position)

    def val_dataloader(self) -> WholeSplit:
        """The validation split."""
        return self.batches("valid")

    def test_dataloader(self) -> WholeSplit:
        """The official test split."""
        return self.batches("test")

    def move_to(self, device: torch.device | str) -> None:
        """Move all images to a GPU if they fit into a quarter of its free memory; otherwise move only training batches.

        Call this before `batches`, whose result keeps references to the tensors of that moment.
        """
        device, (splits, _) = torch.device(device), self._loaded
        size = sum(tensor.nbytes for split in splits.values() for tensor in split)
        self._target = device
        if device.type != "cpu" and size <= torch.get_device_module(device).mem_get_info(device)[0] / 4:
            for name, split in splits.items():
                splits[name] = Split(split.images.to(device), split.labels.to(device))

    def state_dict(self) -> dict[str, Any]:
        """The position in the training sequence. Everything else is a function of the options."""
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the position of a checkpoint."""
        self.position = state_dict["position"]

    def _whole_split(self, name: str) -> Split:
        """A split of whole images, from which a context has not been split off."""
        choose("split", name, SPLITS)
        return self._loaded[0][name]

    def _conditioned(self, batch: Batch) -> Batch:
        """A batch of whole images -> the part that is modelled, with its context."""
        if self.context is None:
            return batch
        images, context = self.context(batch.images, self.whole)
        return Batch(images.contiguous(), batch.labels, batch.index, None if context is None else context.contiguous())

    @property
    def summary(self) -> str:
        """One line for the user: the number of images, classes and splits, and remarks about how they were read."""
        splits, names = self._loaded
        counts = {name: len(splits[name].labels) for name in SPLITS}
        classes = f" in {len(names)} classes ({listed(names, 10)})" if names else ", no classes"
        sizes = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        train = self.hashes["train"]
        equal = int(sum(torch.isin(self.hashes[name], train).sum() for name in ("valid", "test")))
        known = hasattr(self.source, "table")  # points of a small grid: equal ones are no fault
        copies = [f"{equal:,} valid and test images equal training images"] if equal and not known else []
        remarks = [*self._remarks, *copies]
        return "; ".join([f"{self.name}: {sum(counts.values()):,} images{classes}: {sizes}", *remarks])

    @property
    def hashes(self) -> dict[str, torch.Tensor]:
        """Split -> a hash of every whole image before binarisation, int64 (N,)."""
        self._loaded  # noqa: B018  (loading sets the hashes)
        return self._hashes

    @property
    def fingerprints(self) -> dict[str, str]:
        """Split -> one hash of its images and labels. Equal data has equal hashes, in any order of the images."""
        return {name: fingerprint(self.hashes[name], self._loaded[0][name].labels) for name in SPLITS}

    @cached_property
    def _loaded(self) -> tuple[dict[str, Split], tuple[str, ...]]:
        """(the splits, the names of the classes).

        With dynamic binarisation, the split "grey" has the 8-bit training images from which batches are drawn.
        """
        official = self.source.load(self.root)
        splits = original = self._divided(official)
        if self.levels is not None:
            check_levels(self.levels, official.levels, self.binarize)
        if self.binarize not in ("none", "larochelle") and official.levels != 256:
            raise RequestError(
                f"data.binarize={self.binarize} needs images of 256 levels: these have {official.levels}"
            )
        self._levels = 2 if self.binarize != "none" else self.levels or official.levels
        if self._levels != official.levels:

            def changed(name: str, split: Split) -> Split:
                images = split.images
                if self.binarize != "none":
                    return Split(static_binarization(self.binarize, images, name), split.labels)
                return Split(reduce_levels(images, self._levels, official.levels), split.labels)

            # Official splits are binarised whole, so that the draw depends neither on `validation` nor on `limit`.
            splits = self._divided(
                replace(
                    official,
                    train=changed("train", official.train),
                    test=changed("test", official.test),
                    valid=official.valid and changed("valid", official.valid),
                )
            )
        self._hashes = {name: hashes(split.images) for name, split in original.items()}
        self._remarks = official.remarks
        if self.binarize == "dynamic":
            splits["grey"] = original["train"]
        return splits, official.class_names

    def _divided(self, official: Splits) -> dict[str, Split]:
        """The first `limit` images of every split. Validation is cut from training if the source does not have it."""
        train, valid = (
            (official.train, official.valid) if official.valid else self._cut(official.train, official.numbers)
        )
        splits = {"train": train, "valid": valid, "test": official.test}
        return {name: split.take(slice(self.limit)) for name, split in splits.items()}

    def _cut(self, train: Split, numbers: torch.Tensor | None) -> tuple[Split, Split]:
        """Divide the official training images: (training split, validation split).

        `numbers`: see `Splits.numbers`.
        """
        total = len(train.labels)
        share = 0 < self.validation < 1
        count = min(total - 1, max(1, round(self.validation * total))) if share else self.validation
        if not isinstance(count, int) or not 1 <= count < total:
            raise RequestError(
                f"data.validation={self.validation} is not possible with {total} training images: "
                f"give a number from 1 to {total - 1}, or a share between 0 and 1"
            )
        if numbers is None:
            return cut(train, count)
        chosen = lowest(numbers, self.validation, 1, total - 1) if share else lowest(numbers, 1.0, 0, count)
        return train.take(~chosen), train.take(chosen)


def choose(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise RequestError if the value of the option `key` is not among the choices."""
    if value not in choices:
        raise RequestError(f"data.{key}={value} is not known; {nearest(str(value), choices)}")


def at_least(least: int, key: str, value: int) -> None:
    """Raise RequestError unless the value of the option `key` is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise RequestError(f"data.{key}={value} is not possible; it is an integer, at least {least}")
