"""What a family claims by its protocols, asked of every model yaml whose family has no contracts of its own."""

from __future__ import annotations

import pytest
import torch
import zoo
from scipy.stats import chi2

from genlab.core import Completer, ImageSpec, Likelihood, Sampler, Trainable

SPEC = ImageSpec(1, 2, 2, 2, classes=3, context=zoo.SECOND)
N = 20_000


def cases(spec):
    """Configs of the models, on images of the spec."""
    asked = zoo.family("Autoregressive", *zoo.AUTOENCODERS, *zoo.LATENT)
    plain = {model: zoo.shrunk(model) for model in zoo.choices("model") if model not in asked}
    return [pytest.param(config, id=m) for m, config in plain.items() if zoo.accepted(config, spec) is not None]


def given(made, n):
    """One context, n times, or None."""
    if made.conditioning == "label":
        return torch.ones(n, dtype=torch.long)
    return zoo.random_images(made.spec.context, 1).expand(n, -1, -1, -1) if made.conditioning == "image" else None


def assert_drawn_from(images, p):
    """G-test; cells with few expected counts are put together, as its approximation asks."""
    counts, expected = zoo.histogram(images, SPEC), p * len(images)
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None] + 1e-9])
    seen = observed > 0
    g = 2 * (observed[seen] * (observed[seen] / expected[seen]).log()).sum().item()
    assert chi2.sf(g, max(1, len(observed) - 1)) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("config", cases(SPEC))
def test_an_exact_likelihood_sums_to_one_and_is_what_samples_and_exact_completions_follow(config):
    made, every = zoo.tiny(config, SPEC), zoo.every_image(SPEC)
    if not (isinstance(made, Likelihood) and made.exact):
        pytest.skip("claims no exact likelihood")
    p = made.log_prob(every, given(made, len(every))).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    if isinstance(made, Sampler):
        assert_drawn_from(made.sample(N, seed=0, context=given(made, N)), p)
    if isinstance(made, Completer) and made.completion == "exact":
        known = torch.tensor([[False, False], [False, True]])  # the last pixel: every order has something before it
        x = torch.ones(N, *SPEC.shape, dtype=torch.long)
        images = made.complete(x, known.expand(N, -1, -1), seed=0, context=given(made, N)).images
        p = p * ((every == 1) | ~known).flatten(1).all(1)
        assert_drawn_from(images, p / p.sum())


@torch.no_grad()
@pytest.mark.parametrize("config", cases(zoo.GREY))
def test_what_is_known_stays_seeds_decide_and_losses_are_one_an_image(config, monkeypatch):
    monkeypatch.setattr("genlab.models.flow.LANGEVIN_STEPS", 3)
    monkeypatch.setattr("genlab.models.gan.SEARCH_STEPS", 3)
    made, x = zoo.tiny(config, zoo.GREY, scale=None), zoo.random_images(zoo.GREY, 4)
    context = given(made, 4)
    if isinstance(made, Sampler):
        one, again, other = (made.sample(64, seed=seed, context=given(made, 64)) for seed in (0, 0, 1))
        assert not one.is_floating_point()
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert one.shape == (64, *made.spec.shape)
        assert 0 <= one.min() <= one.max() < made.spec.levels
    if isinstance(made, Completer):
        known = torch.rand(4, *made.spec.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5
        done = made.complete(x, known, seed=0, context=context).images
        keep = known[:, None].expand_as(x)
        assert torch.equal(done[keep], x[keep])
    if isinstance(made, Likelihood):
        torch.manual_seed(0)
        assert made.log_prob(x, context).shape == (4,)
    if isinstance(made, Trainable):
        terms = made.objective(x, context)
        assert all(term.shape == (4,) for term in terms.values())
        assert "loss" in terms
