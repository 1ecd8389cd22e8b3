"""What a model is conditioned on: every public method that knows of contexts uses it, and refuses to do without it; a
model that did not ask for one refuses it everywhere. Every yaml, with every context that it can be built with.
"""

from __future__ import annotations

import inspect

import pytest
import torch
import zoo

from genlab.core import Completer, Features, RequestError, Sampler

SPEC, N = zoo.GREY, 3
# Whose features are of the image alone, by design: a discriminator's maps, a classifier's last layer, codes. A
# classifier's label is what it learns to say, so only its objective is told.
BLIND = {("gan", "features"), ("classifier", "features"), ("vqvae", "features")}
FREE = {("classifier", "features")}
DRAWING = ("sample", "complete")


def config(model, context):
    plain = zoo.shrunk(model)
    return plain if context is None else plain | {"context": zoo._part("context", context)}


def cases():
    """Every yaml as it is where it has no place for a context, else with each that it accepts."""
    found = []
    for model in zoo.choices("model"):
        for context in ("none", "label", "image") if "context" in zoo._composed(model) else (None,):
            made = zoo.accepted(config(model, context), SPEC)
            if made is None:
                assert context == "image", "it refuses what it should be able to do"
                continue
            found.append(pytest.param(model, context, made.conditioning, id=f"{model}-{made.conditioning}"))
    return found


def contexts(kind, seed=0):
    """Of N images, none alike."""
    return (
        (torch.arange(N) + seed) % SPEC.classes if kind == "label" else zoo.random_images(SPEC.context, N, 100 + seed)
    )


def methods(model):
    """Names of the public methods that take a context, by itself or as a field of `Draw`."""
    return [
        name
        for name, method in inspect.getmembers(type(model), inspect.isfunction)
        if not name.startswith("_") and (name in DRAWING or "context" in inspect.signature(method).parameters)
    ]


def asked(model, name, context, player="generator"):
    """What a method answers, as a list of tensors; the noise is always the same."""
    torch.manual_seed(0)
    x = zoo.random_images(SPEC, N)
    latents = int(getattr(model, "latent_dim", 0)) or (int(model.flow.dims) if hasattr(model, "flow") else 1)
    words = {
        "x": x,
        "y": x + torch.rand(x.shape, dtype=torch.double) * 0.9 + 0.05,
        "h": torch.randn(N, latents, dtype=torch.double),
        "z": torch.randn(N, latents, dtype=torch.double),
        "known": torch.arange(SPEC.height)[None, :, None].expand(N, -1, SPEC.width) < 2,
        "n": N,
        "batch": N,
        "player": player,
        "choose": lambda pixels, before: pixels.next_logits(before).argmax(-1),
    }
    method = getattr(model, name)
    parameters = inspect.signature(method).parameters
    needed = [key for key, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    out = method(**{key: words[key] for key in needed if key != "context"}, context=context)
    out = out.next_logits([]) if hasattr(out, "next_logits") else out
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, tuple) else (out,)
    return [part.detach() for part in parts if part is not None]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "context", "kind"), cases())
def test_a_context_is_used_everywhere_or_refused_everywhere(model, context, kind, monkeypatch):
    monkeypatch.setattr("genlab.models.flow.LANGEVIN_STEPS", 3)  # steps of a completion
    monkeypatch.setattr("genlab.models.gan.SEARCH_STEPS", 3)
    made = zoo.tiny(config(model, context), SPEC, scale=0.5)
    names = methods(made)
    assert "features" in names or not isinstance(made, Features)
    assert set(DRAWING) <= set(names) or not isinstance(made, (Sampler, Completer))
    if kind == "none":
        for name in names:
            asked(made, name, None)
            for other in ("label", "image"):
                with pytest.raises(RequestError, match="unconditional"):
                    asked(made, name, contexts(other))
        return
    for name in names:
        if (model, name) not in FREE:
            with pytest.raises(RequestError):
                asked(made, name, None)
        if (model, name) in BLIND:
            continue
        for seed in range(4):  # one random net may have switched its context off by its ReLUs, not several
            other = zoo.tiny(config(model, context), SPEC, scale=0.5, seed=seed)
            one, two = (asked(other, name, contexts(kind, which)) for which in (0, 1))
            if any(not torch.equal(a, b) for a, b in zip(one, two, strict=True)):
                break
        else:
            raise AssertionError(f"{name} does not look at its context")
