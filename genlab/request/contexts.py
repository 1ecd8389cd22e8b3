"""What drawn images are conditioned on: `label=` and `context=` of the verbs that draw, checked against the model.

A checkpoint knows how its contexts were made (`data.context` of its run), so a whole picture becomes one the same way,
and what its classes are called.
n images, C' x h x w a context.
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
from genlab.core import ImageSpec, RequestError, nearest
from genlab.data.context import SecondImage
from genlab.request.checkpoints import model_name
from genlab.request.pictures import context_image

TAKES = {
    "none": "is unconditional",
    "label": "is conditioned on a class label",
    "image": "is conditioned on a second image",
}
SHOWN = 12  # names of classes in one sentence


@dataclass(frozen=True)
class Given:
    """`context` of every image to draw: labels (n,), images (n, C', h, w) or None. `columns` of the grid if it is to
    have a row per class. `says`: what the user is told.
    """

    spec: ImageSpec
    n: int
    context: Tensor | None = None
    columns: int | None = None
    says: str = ""
    made_by: SecondImage | None = None

    def part(self, start: int, n: int) -> Tensor | None:
        """The contexts of images start … start + n - 1."""
        return None if self.context is None else self.context[start : start + n]

    def shown(self, images: Tensor) -> tuple[Tensor, ImageSpec]:
        """Drawn images (n, C, H, W) as they are to be looked at, after the second image if there is one."""
        if self.made_by is None or self.context is None:
            return images, self.spec
        whole = self.made_by.whole(self.spec)
        contexts, drawn = self.made_by.pictures(images, self.context[:1].expand(len(images), -1, -1, -1), whole)
        return torch.cat([contexts[:1], drawn]), ImageSpec(whole.channels, whole.height, whole.width)


def given(config: DictConfig, model: nn.Module, run: dict[str, Any], *, any_label: bool, n: int | None = None) -> Given:
    """What `label=` and `context=` say, or a RequestError in one sentence, for `n` images (None: `n=`).

    `any_label`: without `label=` a class-conditional model goes through its classes; else it must be told.
    """
    spec: ImageSpec = model.spec  # type: ignore[assignment]
    n = config.n if n is None else n
    takes, name = str(getattr(model, "conditioning", "none")), model_name(model)
    classes = Classes.of(run, spec)
    label = config.label if config.label in (None, "all") else classes.number(config.label)
    for key, fits in (("label", "label"), ("context", "image")):
        if config[key] is not None and takes != fits:
            raise RequestError(f"{key}={config[key]}: {name} {TAKES[takes]}, it takes no {key}")
    if takes == "label":
        if label is None and not any_label:
            raise RequestError(f"{name} {TAKES[takes]}: give label={classes.first}, or label=all ({classes})")
        return _labels(label, n, spec, classes)
    if takes == "image":
        return _second_image(config, run, spec, n, f"{name} {TAKES[takes]}")
    return Given(spec, n)


@dataclass(frozen=True)
class Classes:
    """The classes of the data and their names, as the checkpoint has them; without names their numbers."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, run: dict[str, Any], spec: ImageSpec) -> Classes:
        """Of a run's data. A checkpoint of an earlier version has no names."""
        names = tuple(str(name) for name in run.get("class_names") or ())
        return cls(names if len(names) == spec.classes else tuple(map(str, range(spec.classes))))

    def number(self, label: object) -> int:
        """The class of that name, else of that number (from 0): a name that looks like a number is a name first."""
        text = str(label)
        if text in self.names:
            return self.names.index(text)
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self.names):
            return int(text)
        close = f"; {nearest(text, self.names)}" if self._named and get_close_matches(text, self.names, 1) else ""
        everyone = " (label=all: every one of them)" * bool(self.names)
        raise RequestError(f"label={text} is not a class: the data has {self}{everyone}{close}")

    def __getitem__(self, number: int) -> str:
        return self.names[number]

    @property
    def first(self) -> str:
        """What a user may write."""
        return self.names[0] if self._named else f"0 to {len(self.names) - 1}"

    @property
    def _named(self) -> bool:
        return self.names != tuple(map(str, range(len(self.names))))

    def __str__(self) -> str:
        if not self.names:
            return "no classes"
        if not self._named:
            return f"classes 0 to {len(self.names) - 1}"
        few = self.names if len(self.names) <= SHOWN else (*self.names[: SHOWN - 1], "…", self.names[-1])
        return f"classes {', '.join(few)}"


def _labels(label: int | str | None, n: int, spec: ImageSpec, classes: Classes) -> Given:
    each = torch.arange(spec.classes)
    if label is None:
        return Given(spec, n, each.repeat(-(-n // spec.classes))[:n], says=f", {classes} in turn,")
    if label == "all":
        columns = -(-n // spec.classes)
        says = f", {columns} of each of the {spec.classes} classes,"
        if classes.names != tuple(map(str, range(spec.classes))):
            says = f", {columns} of each of {str(classes).removeprefix('classes ')},"
        return Given(spec, columns * spec.classes, each.repeat_interleave(columns), columns, says)
    return Given(spec, n, torch.full((n,), int(label)), says=f" of class {classes[int(label)]}")


def _second_image(config: DictConfig, run: dict[str, Any], spec: ImageSpec, n: int, this_is: str) -> Given:
    if not run["data"].get("context"):
        raise RequestError(f"{this_is} whose making its run does not describe: sample(context=…) in Python takes one")
    made_by = build_data(run["data"]["context"], config.trust, role="context")
    if not isinstance(made_by, SecondImage) or spec.context is None:
        raise RequestError("ckpt: data.context of the run is not what makes second images")
    whole = made_by.whole(spec)
    if config.context is None:
        raise RequestError(
            f"{this_is}: give context=PICTURE, {spec.context.height}x{spec.context.width} (height x width), or a whole "
            f"image of {whole.height}x{whole.width} to make it from"
        )
    picture, is_whole = context_image(Path(str(config.context)), spec.context, whole)
    context = made_by(picture[None], whole)[1] if is_whole else picture[None]
    assert context is not None
    says = f" given {config.context}" + ", made into a context," * is_whole
    return Given(spec, n, context.expand(n, -1, -1, -1), says=says, made_by=made_by)
