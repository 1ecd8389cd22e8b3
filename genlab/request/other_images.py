"""Images that a model was not trained on, for `against=` of genlab score.

    data:NAME/SPLIT, FILE.npy, GLOB     other images, brought to the model's size and colours
    constant                            one value everywhere, a different one for each image
    noise                               independent uniform values
    rotated                             the images themselves, turned by 90 degrees
    inverted                            the images themselves, with black and white exchanged

Larger images are cropped to their middle, smaller ones get a black border; grey is the mean of the colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genlab.build import build_data
from genlab.core import ImageSpec, RequestError
from genlab.request.compose import Request, split_hydra
from genlab.request.image_set import Images, ImageSet, read_image_set

MADE = ("constant", "noise", "rotated", "inverted")


def other_images(name: str, own: ImageSet, places: Mapping[str, Any], trust: Any, limit: int) -> ImageSet:
    """At most `limit` images as `name` describes them. Raises RequestError if they cannot be made."""
    spec = own.spec
    generator = torch.Generator().manual_seed(0)
    n = min(limit, len(own))
    if name == "constant":
        values = torch.arange(n) * spec.levels // n
        return Images(name, spec, values.view(n, 1, 1, 1).expand(n, *spec.shape))
    if name == "noise":
        return Images(name, spec, torch.randint(spec.levels, (n, *spec.shape), generator=generator))
    if name == "rotated":
        if spec.height != spec.width:
            raise RequestError("against=rotated: the model's images are not square")
        return Images(name, spec, own.part(0, n).rot90(1, (2, 3)))
    if name == "inverted":
        return Images(name, spec, spec.levels - 1 - own.part(0, n).long())
    if not name.startswith("data:"):
        return read_image_set("against", name, spec, places, trust, limit=limit, fit=True)
    images, levels = _split(name, places, trust)
    if levels != spec.levels:
        raise RequestError(f"against={name} has {levels} levels, the model's images {spec.levels}")
    return Images(name, spec, brought_to(images[:limit], spec))


def brought_to(x: Tensor, spec: ImageSpec) -> Tensor:
    """Integers (n, c, h, w) -> (n, C, H, W): cropped to the middle or with a black border, in the colours of `spec`."""
    x = x.long()
    if x.shape[1] != spec.channels:
        x = x.float().mean(1, keepdim=True).round().long().expand(-1, spec.channels, -1, -1)
    for dim, size in ((2, spec.height), (3, spec.width)):
        extra = x.shape[dim] - size
        if extra >= 0:
            x = x.narrow(dim, extra // 2, size)
        else:
            before = -extra // 2
            pad = (before, -extra - before)
            x = torch.nn.functional.pad(x, (*pad, 0, 0) if dim == 3 else (0, 0, *pad))
    return x


def _split(name: str, places: Mapping[str, Any], trust: Any) -> tuple[Tensor, int]:
    data_name, _, split = name.removeprefix("data:").partition("/")
    if split not in ("train", "valid", "test"):
        raise RequestError(f"against={name}: give one of data:{data_name}/train, …/valid and …/test")
    config = split_hydra(Request("train", [f"data={data_name}"], command="").config())[0].data
    if places.get("root") is not None:
        config.root = places["root"]
    data = build_data(config, trust)
    return data.split(split).images, data.spec.levels
