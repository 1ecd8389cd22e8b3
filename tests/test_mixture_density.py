"""Mixture density networks: exact given the second image, conditional where it is known, better than one Gaussian."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo

from genlab.build import build
from genlab.core import Completer, Features, ImageSpec, Likelihood, RequestError, Sampler, Trainable
from genlab.data import Half, HalfMean
from genlab.models import MixtureDensity
from genlab.nets import ConvEncoder, MLPEncoder
from genlab.request.compose import Request

SPEC = ImageSpec(1, 2, 2, 4, context=ImageSpec(2, 3, 2, 5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(spec=SPEC, components=3, scale=0.5, net=MLPEncoder, **sizes):
    """Float64, random weights."""
    torch.manual_seed(0)
    sizes = sizes or {"hidden": [8]}
    made = MixtureDensity(spec, net=lambda **finish: net(**finish, **sizes), components=components, floor=0.02)
    made = made.double().eval()
    with torch.no_grad():
        for p in made.net.parameters():
            p.normal_(0, scale)
        made.log_std.uniform_(-2.5, -1)
    return made


def given(n, spec=SPEC):
    return zoo.random_images(spec.context, n, 3)


@pytest.mark.parametrize("name", zoo.LISTABLE)
def test_probabilities_of_all_images_sum_to_one_whatever_the_second(name):
    spec = zoo.LISTABLE[name]
    made, every = network(spec), zoo.every_image(spec)
    for y in given(3, spec):
        p = made.log_prob(every, y.expand(len(every), -1, -1, -1)).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-9)


def test_the_second_image_matters_and_is_insisted_on():
    made, x, y = network(), zoo.random_images(SPEC, 4), given(4)
    assert not torch.allclose(made.log_prob(x, y), made.log_prob(x, y.flip(0)))
    torch.testing.assert_close(made.log_prob(x, y)[1:2], made.log_prob(x[1:2], y[1:2]))
    with pytest.raises(RequestError, match="conditioned on a second image"):
        made.log_prob(x)
    with pytest.raises(ValueError, match="2 contexts"):
        made.log_prob(x, y[:2])
    with pytest.raises(RequestError, match="data/context"):
        network(replace(SPEC, context=None))
    with pytest.raises(RequestError, match="components"):
        network(components=0)


def test_samples_and_completions_follow_the_conditional():
    made, n, every = network(), 10000, zoo.every_image(SPEC)
    y = given(1).expand(n, -1, -1, -1)
    p = made.log_prob(every, given(1).expand(len(every), -1, -1, -1)).exp().detach()
    drawn = zoo.histogram(made.sample(n, context=y, generator=seeded()), SPEC) / n
    assert (drawn - p).abs().sum() / 2 < 0.07
    x = every[p.argmax()].expand(n, -1, -1, -1)
    for position in range(4):
        known = torch.zeros(n, 2, 2, dtype=torch.bool)
        known.view(n, 4)[:, position] = True
        done = made.complete(x, known, context=y, generator=seeded(1))
        assert made.completion == "exact"
        agree = p * (every == x[:1]).flatten(1)[:, position]
        found = zoo.histogram(done.images, SPEC) / n
        assert (found - agree / agree.sum()).abs().sum() / 2 < 0.05


def test_temperature_scales_the_variance():
    spec = ImageSpec(1, 1, 1, 256, context=SPEC.context)
    made, y = network(spec, components=1, scale=0.01), given(1).expand(20000, -1, -1, -1)
    spread = [made.sample(20000, context=y, temperature=t, generator=seeded()).double().var() for t in (0.05, 0.2)]
    assert (spread[1] / spread[0]).item() == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("net", [{}, {"net": ConvEncoder, "widths": [4]}])
def test_protocols_responsibilities_and_a_gradient_everywhere(net):
    made, x, y = network(**net), zoo.random_images(SPEC, 5), given(5)
    for protocol in (Trainable, Likelihood, Sampler, Completer, Features):
        assert isinstance(made, protocol)
    r = made.features(x, y)["responsibilities"]
    torch.testing.assert_close(r.sum(1), torch.ones(5).double())
    made.objective(x, y)["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.slow
def test_two_answers_need_two_gaussians():
    """x is near 1/4 or 3/4 of the range, whatever y: one Gaussian says it is in the middle."""
    spec = ImageSpec(1, 1, 1, 32, context=ImageSpec(1, 1, 1, 8))
    side = torch.rand(400, generator=seeded()) < 0.5
    x = (torch.where(side, 8.0, 24.0) + torch.randn(400, generator=seeded(1))).round().long().view(-1, 1, 1, 1)
    y, nats = zoo.random_images(spec.context, 400), {}
    for components in (1, 2):
        made = network(spec, components, scale=0.1)
        optimiser = torch.optim.Adam(made.parameters(), lr=0.03)
        for _ in range(150):
            optimiser.zero_grad()
            made.objective(x, y)["loss"].mean().backward()
            optimiser.step()
        nats[components] = made.log_prob(x, y).mean().item()
        weights, means, _ = made.mixture(y, 400)
        mean = (weights.exp() * means[..., 0]).sum(1)
        assert (mean - 0.5).abs().max() < 0.15  # and no x is there
    entropy = 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e)).item() + torch.log(torch.tensor(2.0)).item()
    assert nats[2] == pytest.approx(-entropy, abs=0.1)
    assert nats[1] < nats[2] - 0.6


def test_the_config_builds_where_there_is_a_second_image():
    config = Request("train", ["model=mixture_density", "data/context=half_mean"], command="").config()
    whole = ImageSpec(1, 6, 8, 256, classes=10)
    for context in (Half(), HalfMean()):
        assert build(config.model, context.spec(whole)).conditioning == "image"


def test_the_mean_of_the_right_half():
    whole, context = ImageSpec(3, 5, 6, 16, classes=2), HalfMean()
    x = zoo.random_images(whole, 7).to(torch.uint8)
    mean, left = context(x, whole)
    assert mean.shape == (7, *context.spec(whole).shape) == (7, 3, 1, 1)
    assert torch.equal(left, x[..., :3])
    exact = x[..., 3:].double().mean((2, 3), keepdim=True)
    assert (mean.double() - exact).abs().max() <= 0.5
    assert mean.dtype == torch.uint8
    assert context.whole(context.spec(whole)) == whole
    assert context.spec(whole).classes == 2
    asked, answered = context.pictures(mean, left, whole)
    assert asked.shape == answered.shape == x.shape
    assert torch.equal(answered[..., -1:, -1:], mean * 17)
    with pytest.raises(RequestError, match="even width"):
        context.spec(ImageSpec(1, 5, 7))
