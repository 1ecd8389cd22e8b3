"""Every model yaml, family by family, shrunk to sizes at which all questions can be asked.

Autoregressive ones (`Case`): with every legal head and context. Autoencoders (`Coding`): with every legal head, every
code and every corruption. Latent Gaussian models (`Hidden`): with every legal head and context.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from genlab.build import build
from genlab.build.gate import Gate
from genlab.core import ImageSpec, RequestError
from genlab.request.folders import configs_folder, groups

# Keywords that make a model small, wherever a yaml has them.
SMALL = {"width": 12, "depth": 2, "feature_width": 7, "layers": 2, "key_width": 5, "value_width": 3}
SMALL |= {"attention_heads": 3, "block_length": 3, "block": [2, 3], "flange": [1, 1], "resolutions": 2}

# Enough to see what is legal, which no size decides.
SMALLEST = SMALL | {"depth": 1, "layers": 1, "resolutions": 1}

# … and large enough to learn eight images by heart.
MEDIUM = {"width": 64, "depth": 2, "feature_width": 64, "layers": 1, "resolutions": 2}

# Values of a net's keywords that make another net of it.
VARIANTS: dict[str, dict[str, dict]] = {
    "gated_pixelcnn": {"": {}, "-dilated": {"dilations": [1, 2]}},
    "pixel_transformer": {f"-{kind}": {"attention": kind} for kind in ("full", "local_1d", "local_2d")},
}

# The second image is smaller than the image and has another alphabet; there are three classes.
SECOND = ImageSpec(2, 2, 3, 5)
GREY = ImageSpec(1, 5, 4, 4, classes=3, context=SECOND)
RGB = ImageSpec(3, 3, 5, 3, classes=3, context=SECOND)
BINARY = ImageSpec(1, 4, 5, 2, classes=3, context=SECOND)
SPECS = {"grey": GREY, "rgb": RGB, "binary": BINARY}

# Domains whose images can all be listed.
LISTABLE = {
    name: replace(spec, classes=3, context=SECOND)
    for name, spec in {
        "2x2 binary": ImageSpec(1, 2, 2, 2),
        "3x3 binary": ImageSpec(1, 3, 3, 2),
        "1x2 RGB, 3 levels": ImageSpec(3, 1, 2, 3),
        "2x1, 2 channels, 3 levels": ImageSpec(2, 2, 1, 3),
        "2x2, 4 levels": ImageSpec(1, 2, 2, 4),
    }.items()
}

CONTEXTS = ("none", "label", "image")

# Layers of autoencoders are lists of widths; a width that a yaml asks for becomes:
NARROW = {512: 8, 256: 6, 32: 2, 64: 3, 128: 4}
CODES = {"latent_dim": 6, "features": 4, "k": 2, "pretrain_steps": 1}
AUTOENCODERS = ("Autoencoder", "StackedAutoencoder")
LATENT = ("LatentGaussian",)
PRIORS = ("normal", "autoregressive")  # of latents, not of a VQ-VAE's codes
SIZES = (
    SMALL | CODES | {"codes": 5, "code_width": 3, "latent_dim": 2, "levels": 2, "steps": 1, "components": 3}
)  # of any family

# Gaussian heads differ in where their width comes from alone: one net is asked about all of them.
ALIKE, ASKED = ("gaussian_fixed", "gaussian_learned"), "pixelcnn"
ASKED_LATENT = "latent_gaussian"


def tiny(config: dict, spec: ImageSpec, *, scale: float | None = 0.5, seed: int = 0, dtype=torch.double):
    """A model in evaluation mode with random weights of that scale everywhere (None: as initialised)."""
    if scale is None:
        torch.manual_seed(seed)
        return build(config, spec).to(dtype).eval()
    made = copy.deepcopy(_template(json.dumps(config), spec, dtype))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, scale)
    return made


@cache
def _template(config: str, spec: ImageSpec, dtype) -> torch.nn.Module:
    """A model whose copies get weights of their own: a dozen tests ask about each."""
    return build(json.loads(config), spec).to(dtype).eval()


def accepted(config: dict, spec: ImageSpec) -> torch.nn.Module | None:
    """The model if its constructors accept one another and the images. Unlike `build`, it makes no sketch first."""
    plan = Gate("model", (), lambda each: issubclass(each, torch.nn.Module)).plan(config | {"_partial_": True}, "model")
    try:
        return plan()(spec=spec)
    except RequestError:
        return None


@dataclass(frozen=True)
class Case:
    """One model yaml (and variant) with a head and a context, on images of a spec."""

    model: str
    variant: str
    head: str
    context: str
    spec: ImageSpec

    def config(self, sizes=SMALL):
        """The model config with those sizes, as a plain dict."""
        plain = OmegaConf.to_container(_composed(self.model), resolve=True)
        plain["head"] = _part("head", self.head)
        plain["context"] = None if self.context == "none" else _part("context", self.context)
        plain["net"] |= VARIANTS.get(self.model, {"": {}})[self.variant]
        _resize(plain, sizes)
        return plain

    def tiny(self, *, scale: float | None = 0.5, seed: int = 0, dtype=torch.double, sizes=SMALL):
        """A small model with random weights of that scale everywhere (None: as initialised)."""
        return tiny(self.config(sizes), self.spec, scale=scale, seed=seed, dtype=dtype)

    def given(self, n: int, seed: int = 0):
        """Contexts of n images, different ones: labels, images or None."""
        if self.context == "label":
            return (torch.arange(n) + seed) % self.spec.classes
        return random_images(self.spec.context, n, seed + 100) if self.context == "image" else None


@dataclass(frozen=True)
class Coding:
    """One autoencoder yaml with a head, a code and a corruption, on images of a spec."""

    model: str
    spec: ImageSpec
    head: str = "none"
    code: str = "dense"
    corruption: str = "none"

    def config(self, **changes):
        """The model config, small, as a plain dict; `changes` go over its own keys."""
        plain = OmegaConf.to_container(_composed(self.model), resolve=True)
        for group in ("head", "code", "corruption"):
            plain[group] = _part(group, getattr(self, group))
        _resize(plain, CODES)
        _narrow(plain)
        return plain | changes

    def tiny(self, *, scale: float | None = 0.5, seed: int = 0, dtype=torch.double, **changes):
        """A small model with random weights of that scale everywhere (None: as initialised)."""
        return tiny(self.config(**changes), self.spec, scale=scale, seed=seed, dtype=dtype)


@dataclass(frozen=True)
class Hidden:
    """One latent Gaussian yaml with a head, a context and a prior, on images of a spec."""

    model: str
    spec: ImageSpec
    head: str
    context: str = "none"
    prior: str = "normal"

    def config(self, **changes):
        """The model config, small, as a plain dict; `changes` go over its own keys."""
        plain = OmegaConf.to_container(_composed(self.model), resolve=True)
        plain["head"] = _part("head", self.head)
        plain["context"] = None if self.context == "none" else _part("context", self.context)
        plain["prior"] = _part("prior", self.prior)
        _resize(plain, SMALL | CODES | {"latent_dim": 2})
        _narrow(plain)
        return plain | changes

    def tiny(self, *, scale: float | None = 0.5, seed: int = 0, dtype=torch.double, **changes):
        """A small model with random weights of that scale everywhere (None: as initialised)."""
        return tiny(self.config(**changes), self.spec, scale=scale, seed=seed, dtype=dtype)

    given = Case.given


@cache
def _composed(model: str) -> DictConfig:
    """The config of a model yaml with its default parts, as Hydra composes it (which test_configs.py compares)."""
    return OmegaConf.create(_read(configs_folder() / "model" / f"{model}.yaml"))


def _read(path: Path) -> dict:
    """A yaml with the parts that its defaults list names. Hydra needs a quarter of a second for each model."""
    plain = OmegaConf.to_container(OmegaConf.load(path))
    found: dict = {}
    for entry in plain.pop("defaults", []):
        ((group, choice),) = entry.items() if isinstance(entry, dict) else ((None, entry),)
        if group == "/model@_here_":  # a part that is a whole model
            found |= _read(configs_folder() / "model" / f"{choice}.yaml")
        elif group == "prior" and choice != "normal":
            found[group] = _read(configs_folder() / "model" / group / f"{choice}.yaml")
            del found[group]["context"]  # `context=none` belongs to the whole model
        elif group and not group.startswith("override "):
            found[group] = _part(group, choice)
    return found | plain


@cache
def family(*classes: str) -> tuple[str, ...]:
    """The model yamls whose class is one of these."""
    return tuple(m for m in choices("model") if _composed(m)._target_.rpartition(".")[2] in classes)


@cache
def choices(group: str) -> list[str]:
    """What there is to choose from in a group of configs."""
    return list(groups([configs_folder()])[group])


@cache
def _part(group: str, name: str):
    """A part of a model; nothing where its yaml says so ("none")."""
    plain = OmegaConf.to_container(OmegaConf.load(configs_folder() / "model" / group / f"{name}.yaml"))
    return plain if "_target_" in plain else plain.get(group)


def shrunk(model: str) -> dict:
    """The config of any model yaml with small sizes everywhere, as a plain dict."""
    return _shrink(OmegaConf.to_container(_composed(model), resolve=True))


def _shrink(node: dict) -> dict:
    for key, value in node.items():
        if isinstance(value, dict):
            _shrink(value)
        elif key in ("hidden", "widths") and isinstance(value, list):
            node[key] = [NARROW.get(width, 4) for width in value][:2]
        elif key in SIZES:
            node[key] = SIZES[key]
    return node


def _narrow(plain) -> None:
    """Layers of an encoder and a decoder."""
    for side in ("encoder", "decoder"):
        for key in {"hidden", "widths"} & plain[side].keys():
            plain[side][key] = [NARROW[width] for width in plain[side][key]]


def _resize(node, sizes) -> None:
    for key, value in node.items():
        if isinstance(value, dict):
            _resize(value, sizes)
        elif key in sizes:
            node[key] = sizes[key]


@cache
def _legal(spec: ImageSpec) -> tuple[tuple[Case, int], ...]:
    """Unconditional cases on images of the spec, and values per step. Heads in the order of preference."""
    heads = sorted(set(choices("model/head")) - {"none"}, key=lambda head: (head != "categorical", head))
    found = []
    for model in family("Autoregressive"):
        for variant, head in itertools.product(VARIANTS.get(model, {"": {}}), heads):
            case = Case(model, variant, head, "none", spec)
            if head in ALIKE and model != ASKED:
                continue
            made = accepted(case.config(SMALLEST), spec)
            if made is not None:
                found.append((case, made.net.step_channels))
    return tuple(found)


def _named(cases: Iterable[tuple[str, Case]]):
    params = [pytest.param(c, id=f"{c.model}{c.variant}-{c.head}-{c.context}-{name}") for name, c in cases]
    assert params
    return _quick_first(params)


def _quick_first(params):
    """Those with a part that no earlier one has are for `make check` too; the rest is slow."""
    seen: set[tuple[int, str]] = set()
    found = []
    for param in params:
        parts = {part for part in enumerate(param.id.split("-")) if part not in seen}
        seen |= parts
        found.append(pytest.param(*param.values, id=param.id, marks=() if parts else pytest.mark.slow))
    return found


def _in_turn(cases: list[tuple[str, Case]], parts: Callable[[Case], tuple[str, ...]]) -> Iterator[tuple[str, Case]]:
    """Of cases that differ in their spec alone, one: its spec comes in turn, by the places of the parts.

    So every pair of parts occurs, and every part occurs with every spec; but not everything with everything, for parts
    that do not know one another fail in pairs if at all.
    """
    by_parts: dict[tuple[str, ...], list[tuple[str, Case]]] = {}
    for name, case in cases:
        by_parts.setdefault(parts(case), []).append((name, case))
    places = [
        {part: place for place, part in enumerate(dict.fromkeys(column))} for column in zip(*by_parts, strict=True)
    ]
    for key, alike in by_parts.items():
        yield alike[sum(place[part] for place, part in zip(places, key, strict=True)) % len(alike)]


def models(specs: dict[str, ImageSpec], contexts: tuple[str, ...] = ("none",)):
    """Every model with every head that is legal, on one of the specs; every net and head on each: see `_in_turn`."""
    pairs = [(name, case) for name, spec in specs.items() for case, _ in _legal(spec)]
    assert {case.model for _, case in pairs} == set(family("Autoregressive")), "a model accepts no head"
    chosen = {case: name for name, case in _in_turn(pairs, lambda case: (case.model + case.variant, case.head))}
    if contexts == ("none",):
        chosen |= {case: name for name, case in pairs if case.model == ASKED}
        return _named((name, case) for case, name in chosen.items())
    with_context = [(name, replace(case, context=context)) for context in contexts for name, case in pairs]
    return _named(_in_turn(with_context, lambda case: (case.context, case.model + case.variant, case.head)))


def nets(specs: dict[str, ImageSpec], contexts: tuple[str, ...] = ("none",)):
    """Every net with one head of each kind that a net can tell apart: values per step. A context is on one of the
    specs: see `_in_turn`.
    """
    found = []
    for name, spec in specs.items():
        first = {(case.model, case.variant, step): case for case, step in reversed(_legal(spec))}
        found += [(name, case, str(step)) for (_, _, step), case in first.items()]
    steps = {case: step for _, case, step in found}
    with_context = [(name, replace(case, context=c)) for c in contexts if c != "none" for name, case, _ in found]

    def parts(case: Case) -> tuple[str, ...]:
        return case.context, case.model + case.variant, steps[replace(case, context="none")]

    plain = [(name, case) for name, case, _ in found if "none" in contexts]
    return _named([*plain, *_in_turn(with_context, parts)])


def alternating(params, *values: tuple):
    """Each case with one of the values; the cases of a net have them in turn."""
    seen: Counter[str] = Counter()
    found = []
    for param in params:
        (case,) = param.values
        net = case.model + case.variant
        value = values[seen[net] % len(values)]
        seen[net] += 1
        found.append(pytest.param(case, *value, id=f"{param.id}-{value[0]}", marks=param.marks))
    return found


def in_turn(params):
    """Of cases that differ in their spec alone, one: see `_in_turn`."""
    by_case = {param.values[0]: param for param in params}
    chosen = _in_turn([("", case) for case in by_case], lambda case: (case.model + case.variant, case.head))
    return _quick_first([by_case[case] for _, case in chosen])


def nets_and_heads(specs: dict[str, ImageSpec], net: str = "pixelcnn"):
    """Every net with one head of each kind, and every head with one net."""
    chosen = {param.values[0]: param for param in nets(specs)}
    chosen |= {param.values[0]: param for param in models(specs) if param.values[0].model == net}
    return list(chosen.values())


def one_a_net(params):
    """Of the cases of each net the last, and all of the net that is asked about all heads: see `in_turn`."""
    last = {(param.values[0].model, param.values[0].variant): param.values[0] for param in params}
    chosen = [param for param in params if param.values[0].model == ASKED or param.values[0] in last.values()]
    return in_turn(chosen)


def part(config: dict, **finish):
    """A part of a model by itself, out of its config; one that a family finishes takes what is missing."""
    made = instantiate(config)
    return made(**finish) if config.get("_partial_") else made


def every_image(spec: ImageSpec) -> torch.Tensor:
    """All K^(CHW) images, (N, C, H, W)."""
    values = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.dims)
    return values.view(-1, *spec.shape)


def random_images(spec: ImageSpec, n: int, seed: int = 0) -> torch.Tensor:
    """n uniformly random images."""
    return torch.randint(spec.levels, (n, *spec.shape), generator=torch.Generator().manual_seed(seed))


def histogram(images: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """How often each of `every_image` occurs, (K^(CHW),)."""
    place = spec.levels ** torch.arange(spec.dims - 1, -1, -1)
    return torch.bincount((images.flatten(1) * place).sum(1), minlength=spec.levels**spec.dims).double()


@cache
def legal(model: str, group: str, spec: ImageSpec) -> tuple[str, ...]:
    """Heads, codes or corruptions that an autoencoder yaml accepts for images of the spec."""
    configs = {choice: Coding(model, spec, **{group: choice}).config() for choice in choices(f"model/{group}")}
    return tuple(choice for choice, config in configs.items() if accepted(config, spec) is not None)


def codings(specs: dict[str, ImageSpec]):
    """Every autoencoder as plain as can be on every spec, and with each head, code and corruption on one of them: the
    parts do not know one another. (`test_everything_goes_with_everything` is about the rest of the combinations.)
    """
    pairs = [
        (name, Coding(model, spec, **{group: choice}))
        for model, (name, spec) in itertools.product(family(*AUTOENCODERS), specs.items())
        for group in ("head", "code", "corruption")
        for choice in legal(model, group, spec)
    ]
    plain = [(name, case) for name, case in pairs if case == Coding(case.model, case.spec)]
    others = [pair for pair in pairs if pair not in plain]
    chosen = [*_in_turn(others, lambda case: (case.model, case.head + case.code + case.corruption)), *plain]
    found = dict.fromkeys(chosen)
    params = [pytest.param(c, id=f"{c.model}-{c.head}-{c.code}-{c.corruption}-{name}") for name, c in found]
    return _quick_first(params)


def hidden(specs: dict[str, ImageSpec], contexts: tuple[str, ...] = ("none",), asked_on_all: bool = True):
    """Every latent Gaussian model with every head that is legal and every context, on one of the specs; ASKED_LATENT
    without a context on all of them, if `asked_on_all`, and on one of them with every prior.
    """
    pairs = [
        (name, case)
        for model, (name, spec), head, context in itertools.product(
            family(*LATENT), specs.items(), choices("model/head"), contexts
        )
        if accepted((case := Hidden(model, spec, head, context)).config(), spec) is not None
    ]
    chosen = dict.fromkeys(_in_turn(pairs, lambda case: (case.context, case.model, case.head)))
    if asked_on_all:
        chosen |= {(name, case): None for name, case in pairs if (case.model, case.context) == (ASKED_LATENT, "none")}
    asked = next((name, case) for name, case in chosen if case.model == ASKED_LATENT)
    chosen |= {(asked[0], replace(asked[1], prior=prior)): None for prior in PRIORS}
    params = [pytest.param(c, id=f"{c.model}-{c.head}-{c.context}-{name}-{c.prior}") for name, c in chosen]
    return _quick_first(params)
