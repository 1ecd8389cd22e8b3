"""Which models are asked what, in pretend_ops.py: every yaml, small, with the data that it wants."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import zoo
from omegaconf import OmegaConf
from torch import nn

from genlab.build import build
from genlab.data import Grey, HalfMean, ImageData, Label, Split, Splits

QUICK = (
    "pixelcnn label", "gated_pixelcnn conditional_categorical", "gan label", "gaussian_mixture em", "ppca",
    "stacked_ae",
)  # fmt: skip
RESUMED = (*QUICK, "flow", "latent_gaussian", "mixture_density", "classifier")  # learners and buffers of each kind
# One of each class of learner. The first is also stopped, which is the guard's own work.
GUARDED = ("gated_pixelcnn conditional_categorical", "gan label", "gaussian_mixture em")
GENERATORS = ("none", "cpu", "device")
FIT_IN_THEIR_OWN_WAY = ("gan", "gaussian_mixture", "ppca", "flow")  # more than an objective and its gradient


MADE: dict[str, nn.Module] = {}  # models by the name of their subject


class Dots:
    """Random colour images of 3 x 4 pixels, of three classes."""

    name = "dots"

    def load(self, root: Any) -> Splits:
        """24 to train and validate on, 7 to test on."""
        random = torch.Generator().manual_seed(5)
        x = torch.randint(0, 256, (31, 3, 3, 4), dtype=torch.uint8, generator=random)
        labels = torch.randint(0, 3, (31,), generator=random)
        return Splits(Split(x[:24], labels[:24]), Split(x[24:], labels[24:]), ("a", "b", "c"))


@dataclasses.dataclass
class Subject:
    """A model and the data for it. `make(spec)` gives the model's config."""

    name: str
    make: Callable[[Any], dict[str, Any]]
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained: bool = True
    repeats: bool = False  # other subjects have all of its parts, so that the tests leave it out
    generators: tuple[str, ...] = GENERATORS  # whose the generators are that it draws from

    def images(self) -> ImageData:
        """Its data, on the CPU."""
        options = {"validation": 8, "batch_size": 4, "eval_batch_size": 5, "seed": 3, **self.data}
        return ImageData(Dots(), **options)

    def model(self, spec: Any) -> nn.Module:
        """With weights that are not all zero, which untrained heads' are; on the CPU, the same at every call."""
        if self.name not in MADE:
            torch.manual_seed(0)
            model = build(self.make(spec), spec)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.05 * torch.randn_like(p))
            MADE[self.name] = model
        return copy.deepcopy(MADE[self.name])


CONTEXTS: dict[str, dict[str, Any]] = {"none": {}, "label": {"context": Label()}, "image": {"context": Grey()}}


def subjects() -> Iterator[Subject]:
    """All of `_subjects`. They take generators in turn: a family has one piece of code for them. RESUMED take all."""
    for number, subject in enumerate(_subjects()):
        turn = GENERATORS if subject.name in RESUMED else (GENERATORS[number % 3],)
        yield dataclasses.replace(subject, generators=turn)


def once(everything: list[Subject]) -> list[Subject]:
    """What the tests take of all subjects, which are in the table of docs/gpu.md: every net, step, head, family, code
    and corruption. A training is that of the learner: of a model that only has an objective, the gradient is enough.
    """
    return [
        dataclasses.replace(s, trained=s.trained and (s.name in RESUMED or s.name.split()[0] in FIT_IN_THEIR_OWN_WAY))
        for s in everything
        if not s.repeats
    ]


def _subjects() -> Iterator[Subject]:
    """Every model yaml, with every head of its own kind, and what else makes another algorithm of it.

    Nets take a label or a second image in turn, the pixelcnn both: what they do with the one they do with the other.
    """
    augmented = {"augment": "hflip"}
    binary = {"binarize": "dynamic"}
    spec = Subject("", dict).images().spec
    second = dataclasses.replace(spec, context=Grey().spec(spec).context)
    trained = set()  # nets that train and take a context with one of their heads; others of the same net only draw
    conditioned = set()  # nets whose variants do not repeat what they do with a context
    for number, param in enumerate(zoo.nets({"rgb": spec})):
        case = param.values[0]
        asked = case.model == zoo.ASKED
        first = asked or (case.model, case.variant) not in trained
        trained.add((case.model, case.variant))
        name = f"{case.model}{case.variant}" + ("" if case.head == "categorical" else f" {case.head}")
        make = lambda spec, case=case: dataclasses.replace(case, spec=spec).config()  # noqa: E731
        yield Subject(name, make, augmented, trained=first, repeats=asked and case.head == "categorical")
        contexts = ("label", "image") if asked else (("label", "image")[number % 2],)
        repeats = case.head != "categorical" if asked else case.model in conditioned
        for context in contexts if first else ():
            with_context = dataclasses.replace(case, context=context, spec=second)
            make = lambda spec, case=with_context: dataclasses.replace(case, spec=spec).config()  # noqa: E731
            yield Subject(f"{name} {context}", make, CONTEXTS[context], trained=False, repeats=repeats)
            conditioned.add(case.model)
    for param in zoo.models({"rgb": spec}):
        case = param.values[0]
        if case.model == zoo.ASKED and case.head != "categorical":
            make = lambda spec, case=case: dataclasses.replace(case, spec=spec).config()  # noqa: E731
            repeats = case.head == "conditional_categorical"  # of the nets above
            yield Subject(f"pixelcnn head {case.head}", make, trained=False, repeats=repeats)
    bernoulli = zoo.Case(zoo.ASKED, "", "bernoulli", "none", spec)
    yield Subject("pixelcnn head bernoulli", lambda s: dataclasses.replace(bernoulli, spec=s).config(), binary)
    for model in zoo.family(*zoo.AUTOENCODERS):
        for group in ("code", "corruption"):
            for choice in zoo.legal(model, group, spec):
                coding = zoo.Coding(model, spec, **{group: choice})
                if choice not in ("dense", "none") or group == "code":
                    plain = choice == "dense" or (model, group) == ("denoising_ae", "corruption")
                    name = model if choice == "dense" else f"{model} {choice}"
                    make = lambda s, c=coding: dataclasses.replace(c, spec=s).config()  # noqa: E731
                    repeats = choice not in ("dense", "none") and model not in ("bottleneck_ae", "stacked_ae")
                    yield Subject(name, make, trained=plain, repeats=repeats)
    for model in zoo.family(*zoo.LATENT):
        for head, context in (("logistic", "none"), ("gaussian_full", "label"), ("categorical", "image")):
            hidden = zoo.Hidden(model, spec, head, context)
            make = lambda s, c=hidden: dataclasses.replace(c, spec=s).config()  # noqa: E731
            name = model if context == "none" else f"{model} {head} {context}"
            repeats = context != "none" and model == "latent_gaussian"  # the convolutional one has them, too
            yield Subject(name, make, CONTEXTS[context], trained=context == "none", repeats=repeats)
    hidden = zoo.Hidden("latent_gaussian", spec, "logistic")
    for bound in ("dreg", "map"):
        changes = {"inference": "map"} if bound == "map" else {"bound": bound, "train_draws": 3}
        yield Subject(f"latent_gaussian {bound}", lambda s, c=changes: hidden.config(**c))
    yield Subject("flow", partial(alone, "flow"), augmented)
    yield Subject("flow affine label", partial(alone, "flow", coupling="affine", context="label"), CONTEXTS["label"])
    for loss, context in (("hinge", "label"), ("wgan_gp", "none")):
        make = partial(alone, "gan", context=context, loss=loss)
        yield Subject("gan label" if context == "label" else f"gan {loss}", make, CONTEXTS[context])
    for name, keys in {
        "em": {}, "em full": {"covariance": "full", "pixels": "dequantised"},
        "em low_rank": {"covariance": "low_rank", "pixels": "dequantised", "rank": 2}, "gradient": {"fit": "gradient"},
    }.items():  # fmt: skip
        yield Subject(f"gaussian_mixture {name}", partial(alone, "gaussian_mixture", components=3, **keys))
    yield Subject("mixture_density", partial(alone, "mixture_density", components=3), {"context": HalfMean()})
    yield Subject("ppca", partial(alone, "ppca", latent_dim=3))
    yield Subject("ppca encoder", partial(alone, "ppca", latent_dim=3, inference="encoder"))
    yield Subject("classifier", partial(alone, "classifier"), CONTEXTS["none"])


def alone(model: str, spec: Any, **keys: Any) -> dict[str, Any]:
    """The config of a model that is in no group of the zoo, small."""
    plain: dict[str, Any] = OmegaConf.to_container(zoo._composed(model), resolve=True)  # type: ignore[assignment]
    zoo._resize(plain, zoo.SMALL | {"levels": 2, "components": 3, "hidden": [6], "latent_dim": 3, "steps": 1})
    for part in ("generator", "discriminator", "net"):
        if "widths" in plain.get(part, {}):
            plain[part]["widths"] = [4, 6]
    if keys.get("loss") == "wgan_gp":
        plain["discriminator"]["spectral_norm"] = False
    for group in ("context", "coupling"):
        if group in keys:
            keys[group] = zoo._part(group, keys[group])
            if keys[group]:
                zoo._resize(keys[group], zoo.SMALL)
    return plain | keys
