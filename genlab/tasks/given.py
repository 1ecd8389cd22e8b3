"""What drawn images are conditioned on: `label=` and `context=` of the verbs that draw, checked against the model.

A checkpoint knows how its contexts were made (`data.context` of its run), so a whole picture becomes one the same way.
n images, C' x h x w a context.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from genlab.build import build_data
from genlab.core import ImageSpec, RequestError
from genlab.data.context import SecondImage
from genlab.pictures import context_image

TAKES = {
    "none": "is unconditional",
    "label": "is conditioned on a class label",
    "image": "is conditioned on a second image",
}


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


def given(config: DictConfig, model: nn.Module, run: dict[str, Any], *, any_label: bool) -> Given:
    """What `label=` and `context=` say, or a RequestError in one sentence.

    `any_label`: without `label=` a class-conditional model goes through its classes; else it must be told.
    """
    spec: ImageSpec = model.spec  # type: ignore[assignment]
    takes, name = str(getattr(model, "conditioning", "none")), type(model).__name__
    if config.label not in (None, "all"):
        _check_label(config.label, spec)
    for key, fits in (("label", "label"), ("context", "image")):
        if config[key] is not None and takes != fits:
            raise RequestError(f"{key}={config[key]}: this {name} {TAKES[takes]}, it takes no {key}")
    if takes == "label":
        if config.label is None and not any_label:
            raise RequestError(f"this {name} {TAKES[takes]}: give label=0 to {spec.classes - 1}, or label=all")
        return _labels(config.label, config.n, spec)
    if takes == "image":
        return _second_image(config, run, spec, f"this {name} {TAKES[takes]}")
    return Given(spec, config.n)


def _check_label(label: object, spec: ImageSpec) -> None:
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < max(spec.classes, 1):
        classes = f"the data has classes 0 to {spec.classes - 1}" if spec.classes else "the data has no classes"
        raise RequestError(
            f"label={label} is not a class: {classes}" + " (all: every one of them)" * bool(spec.classes)
        )


def _labels(label: int | str | None, n: int, spec: ImageSpec) -> Given:
    classes = torch.arange(spec.classes)
    if label is None:
        turn = f", classes 0 to {spec.classes - 1} in turn,"
        return Given(spec, n, classes.repeat(-(-n // spec.classes))[:n], says=turn)
    if label == "all":
        columns = -(-n // spec.classes)
        each = f", {columns} of each of the {spec.classes} classes,"
        return Given(spec, columns * spec.classes, classes.repeat_interleave(columns), columns, each)
    return Given(spec, n, torch.full((n,), int(label)), says=f" of class {label}")


def _second_image(config: DictConfig, run: dict[str, Any], spec: ImageSpec, this_is: str) -> Given:
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
    return Given(spec, config.n, context.expand(config.n, -1, -1, -1), says=says, made_by=made_by)
