"""Contexts of images to draw: `label=` and `context=` of the verbs that draw images, checked against the model.

The config in the checkpoint describes how second images are made (`data.context`), so a whole picture can be turned
into a context in the same way. The checkpoint also has the names of the classes.

n images, C' x h x w a second image.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from genlab.build import build_data
from genlab.build.models import model_name
from genlab.core import ImageSpec, RequestError, nearest
from genlab.data.context import SecondImage
from genlab.request.pictures import context_image

CONDITIONING = {
    "none": "is unconditional",
    "label": "is conditioned on a class label",
    "image": "is conditioned on a second image",
}
MOST_NAMES = 12  # the largest number of class names in one message


@dataclass(frozen=True)
class Contexts:
    """The contexts of n images to draw.

    `spec`: of the images. `context`: labels (n,), second images (n, C', h, w) or None. `columns`: of a grid with one
    row per class, otherwise None. `text`: how the verb's output describes the contexts. `maker`: turns a whole image
    into a second image, for a model that is conditioned on one.
    """

    spec: ImageSpec
    n: int
    context: Tensor | None = None
    columns: int | None = None
    text: str = ""
    maker: SecondImage | None = None

    def part(self, start: int, n: int) -> Tensor | None:
        """The contexts of images start … start + n - 1."""
        return None if self.context is None else self.context[start : start + n]

    def grid(self, images: Tensor) -> tuple[Tensor, ImageSpec]:
        """Drawn images (n, C, H, W) as a grid shows them, and their spec there.

        For a model that is conditioned on a second image, that image is put first, and every drawn image is shown in a
        whole picture: for example, a drawn right half beside its left half.
        """
        if self.maker is None or self.context is None:
            return images, self.spec
        whole = self.maker.whole(self.spec)
        contexts, pictures = self.maker.pictures(images, self.context[:1].expand(len(images), -1, -1, -1), whole)
        return torch.cat([contexts[:1], pictures]), ImageSpec(whole.channels, whole.height, whole.width)


def read_contexts(
    config: DictConfig, model: nn.Module, run: dict[str, Any], *, label_required: bool, n: int | None = None
) -> Contexts:
    """The contexts that `label=` and `context=` describe, for `n` images (None: the number `n=`).

    Without `label=`, the images of a class-conditional model go through its classes in turn, unless `label_required`.
    Raises RequestError if the model does not take such a context, needs one that is not given, or the value is wrong.
    """
    spec: ImageSpec = model.spec  # type: ignore[assignment]
    n = config.n if n is None else n
    conditioning, name = str(getattr(model, "conditioning", "none")), model_name(model)
    classes = Classes.of(run, spec)
    label = config.label if config.label in (None, "all") else classes.number(config.label)
    for key, kind in (("label", "label"), ("context", "image")):
        if config[key] is not None and conditioning != kind:
            raise RequestError(f"{key}={config[key]}: {name} {CONDITIONING[conditioning]}, it takes no {key}")
    if conditioning == "label":
        if label is None and label_required:
            raise RequestError(
                f"{name} {CONDITIONING[conditioning]}: give label={classes.first}, or label=all ({classes})"
            )
        return _labels(label, n, spec, classes)
    if conditioning == "image":
        return _second_image(config, run, spec, n, f"{name} {CONDITIONING[conditioning]}")
    return Contexts(spec, n)


@dataclass(frozen=True)
class Classes:
    """The names of the data's classes, as the checkpoint has them. Classes without names are called 0, 1, 2 ….

    `str(classes)` lists them for a message.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, run: dict[str, Any], spec: ImageSpec) -> Classes:
        """The classes of a run's data. A checkpoint of an earlier version has no names of classes."""
        names = tuple(str(name) for name in run.get("class_names") or ())
        return cls(names if len(names) == spec.classes else tuple(map(str, range(spec.classes))))

    def number(self, label: object) -> int:
        """The number (from 0) of the class with this name, or if there is no such name, with this number.

        Raises RequestError if there is no such class.
        """
        text = str(label)
        if text in self.names:
            return self.names.index(text)
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self.names):
            return int(text)
        close = f"; {nearest(text, self.names)}" if self.named and get_close_matches(text, self.names, 1) else ""
        or_all = " (label=all: every one of them)" * bool(self.names)
        raise RequestError(f"label={text} is not a class: the data has {self}{or_all}{close}")

    def __getitem__(self, number: int) -> str:
        return self.names[number]

    @property
    def first(self) -> str:
        """An example of a value of `label=`, for a message."""
        return self.names[0] if self.named else f"0 to {len(self.names) - 1}"

    @property
    def named(self) -> bool:
        """Returns True if the classes have names other than their numbers."""
        return self.names != tuple(map(str, range(len(self.names))))

    def __str__(self) -> str:
        if not self.names:
            return "no classes"
        if not self.named:
            return f"classes 0 to {len(self.names) - 1}"
        few = self.names if len(self.names) <= MOST_NAMES else (*self.names[: MOST_NAMES - 1], "…", self.names[-1])
        return f"classes {', '.join(few)}"


def _labels(label: int | str | None, n: int, spec: ImageSpec, classes: Classes) -> Contexts:
    every_class = torch.arange(spec.classes)
    if label is None:
        return Contexts(spec, n, every_class.repeat(-(-n // spec.classes))[:n], text=f", {classes} in turn,")
    if label == "all":
        columns = -(-n // spec.classes)
        text = f", {columns} of each of the {spec.classes} classes,"
        if classes.named:
            text = f", {columns} of each of {str(classes).removeprefix('classes ')},"
        return Contexts(spec, columns * spec.classes, every_class.repeat_interleave(columns), columns, text)
    return Contexts(spec, n, torch.full((n,), int(label)), text=f" of class {classes[int(label)]}")


def _second_image(config: DictConfig, run: dict[str, Any], spec: ImageSpec, n: int, subject: str) -> Contexts:
    """The second image of `context=`, for every image; `subject` is how messages begin."""
    if not run["data"].get("context"):
        raise RequestError(f"{subject}, and its run does not describe how to make one: use sample(context=…) in Python")
    maker = build_data(run["data"]["context"], config.trust, role="context")
    if not isinstance(maker, SecondImage) or spec.context is None:
        raise RequestError("ckpt: data.context of the run does not make second images")
    whole = maker.whole(spec)
    if config.context is None:
        raise RequestError(
            f"{subject}: give context=PICTURE, {spec.context.height}x{spec.context.width} (height x width), or a whole "
            f"image of {whole.height}x{whole.width} to make it from"
        )
    picture, is_whole = context_image(Path(str(config.context)), spec.context, whole)
    context = maker(picture[None], whole)[1] if is_whole else picture[None]
    assert context is not None
    text = f" given {config.context}" + ", made into a context," * is_whole
    return Contexts(spec, n, context.expand(n, -1, -1, -1), text=text, maker=maker)
