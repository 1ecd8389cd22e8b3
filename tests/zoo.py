"""Every model yaml with every legal head, shrunk to sizes at which all questions can be asked."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from omegaconf import OmegaConf

from genlab.build import build
from genlab.compose import Request, configs_folder, groups
from genlab.core import ImageSpec, RequestError

# Keywords that make a model small, wherever a yaml has them.
SMALL = {"width": 12, "depth": 2, "feature_width": 7}

GREY = ImageSpec(1, 5, 4, 4)
RGB = ImageSpec(3, 3, 5, 3)
BINARY = ImageSpec(1, 4, 5, 2)
SPECS = {"grey": GREY, "rgb": RGB, "binary": BINARY}

# Domains whose images can all be listed.
LISTABLE = {
    "2x2 binary": ImageSpec(1, 2, 2, 2),
    "3x3 binary": ImageSpec(1, 3, 3, 2),
    "1x2 RGB, 3 levels": ImageSpec(3, 1, 2, 3),
    "2x1, 2 channels, 3 levels": ImageSpec(2, 2, 1, 3),
    "2x2, 4 levels": ImageSpec(1, 2, 2, 4),
}


# … and large enough to learn eight images by heart.
MEDIUM = {"width": 64, "depth": 2, "feature_width": 64}


@cache
def _composed(model: str, head: str):
    return Request("train", [], command="").check([f"model={model}", f"model/head={head}"]).model


def config(model: str, head: str, sizes=SMALL):
    """The model config with those sizes, as a plain dict."""
    plain = OmegaConf.to_container(_composed(model, head), resolve=True)
    _resize(plain, sizes)
    return plain


def _resize(node, sizes) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            _resize(value, sizes)
        elif key in sizes:
            node[key] = sizes[key]


def tiny(
    model: str, head: str, spec: ImageSpec, *, scale: float | None = 0.5, seed: int = 0, dtype=torch.double, sizes=SMALL
):
    """A small model with random weights of that scale everywhere (None: as initialised)."""
    torch.manual_seed(seed)
    made = build(config(model, head, sizes), spec).to(dtype).eval()
    if scale is not None:
        with torch.no_grad():
            for p in made.parameters():
                p.normal_(0, scale)
    return made


def cases(specs: dict[str, ImageSpec]):
    """(id, model, head, spec) for all model and head yamls and specs that build together; each model at least once."""
    known = groups([configs_folder()])
    found = []
    for model in known["model"]:
        legal = []
        for head, (name, spec) in itertools.product(known["model/head"], specs.items()):
            try:
                build(config(model, head), spec)
            except RequestError:
                continue
            legal.append((f"{model}-{head}-{name}", model, head, spec))
        assert legal, f"model={model} accepts no head on any of {list(specs)}"
        found += legal
    return found


def every_image(spec: ImageSpec) -> torch.Tensor:
    """All K^(CHW) images, (N, C, H, W)."""
    values = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.dims)
    return values.view(-1, *spec.shape)


def random_images(spec: ImageSpec, n: int, seed: int = 0) -> torch.Tensor:
    """n uniformly random images."""
    return torch.randint(spec.levels, (n, *spec.shape), generator=torch.Generator().manual_seed(seed))
