"""Gaussian heads: masses of a rounded normal distribution, tails and broad peaks included."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from genlab.core import RequestError
from genlab.heads import GaussianFixed, GaussianFull, GaussianLearned
from genlab.heads.gaussian import GaussianPixels, log_mass

MEANS, WIDTHS = (-1.3, -1.0, -0.2, 0.0, 0.7, 1.3), (1e-3, 1e-2, 0.1, 1.0, 30.0, 1e5)
HEADS = {
    "fixed": lambda **sizes: GaussianFixed(sigma=0.1, **sizes),
    "learned": GaussianLearned,
    "a channel": lambda **sizes: GaussianLearned(per="channel", **sizes),
    "full": GaussianFull,
}


def masses(mean, width, levels):
    every = torch.arange(levels, dtype=torch.double)
    return log_mass(
        every, torch.tensor(mean, dtype=torch.double), torch.tensor(width, dtype=torch.double).log(), levels
    )


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_masses_sum_to_one_for_every_mean_and_width(levels):
    for mean in MEANS:
        for width in WIDTHS:
            assert masses(mean, width, levels).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_masses_are_those_of_the_normal_distribution():
    every = torch.arange(256).double()
    for mean in MEANS:
        for width in (1e-2, 0.1, 1.0):
            found = masses(mean, width, 256)
            edges = (every / 127.5 - 1)[:-1] + 1 / 255
            upper, lower = norm.cdf(edges, mean, width), norm.sf(edges, mean, width)
            assert found[0].exp().item() == pytest.approx(upper[0], rel=1e-6, abs=1e-300)
            assert found[-1].exp().item() == pytest.approx(lower[-1], rel=1e-6, abs=1e-300)
            inside = torch.maximum(torch.from_numpy(upper).diff(), -torch.from_numpy(lower).diff())
            assert torch.allclose(found[1:-1].exp(), inside, rtol=1e-6, atol=1e-13)


def test_tails_far_from_the_mean_are_not_lost():
    """0.01 wide, 2 away: exp(-20000 or so), where sums of exponentials are 0; about a quadratic."""
    found = masses(-1.0, 0.01, 256)
    assert found.isfinite().all()
    assert found[-1] < -1.9e4
    slope = found[100:250].diff()
    assert torch.allclose(slope.diff(), torch.tensor(-((2 / 255 / 0.01) ** 2)).double(), rtol=0.01)


def test_gradients_are_finite_everywhere():
    every = torch.arange(256).double()[:, None]
    mean = torch.tensor([m for m in MEANS for _ in WIDTHS]).double().requires_grad_()
    log_s = torch.tensor([w for _ in MEANS for w in WIDTHS]).double().log().requires_grad_()
    log_mass(every, mean, log_s, 256).sum().backward()
    assert mean.grad.isfinite().all()
    assert log_s.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_head_in_float32(name):
    torch.manual_seed(0)
    head = HEADS[name](width=5, channels=3, levels=256)
    torch.nn.init.normal_(head.proj.weight, std=0.3)
    h = torch.randn(4, 7, 5)
    pixels = head(h)
    x = torch.randint(256, (4, 7, 3))
    found = pixels.log_prob(x)
    assert found.shape == (4, 7)
    assert found.dtype == torch.float
    assert found.isfinite().all()
    few = head.for_steps()(h[:, 0])
    torch.testing.assert_close(few.log_prob(x[:, 0]), found[:, 0])
    # A temperature of 1 is the distribution itself, spelled out over the levels.
    torch.testing.assert_close(pixels.tempered(1.0).log_prob(x), found, rtol=1e-4, atol=1e-3)
    noise = torch.rand(20_000, 3)
    one = head(h[0, 0].expand(20_000, 5))
    drawn = one.sample(noise)
    assert 0 <= drawn.min() <= drawn.max() <= 255
    error = drawn.double().std(0) / math.sqrt(len(drawn))
    assert ((drawn.double().mean(0) - one.mean()[0]).abs() < 5 * error).all()
    found = torch.autograd.grad(head(h).log_prob(x).sum(), list(head.parameters()))
    assert all(g.isfinite().all() and g.any() for g in found)


def test_a_given_width_is_squared_error():
    """In the middle of the range -log P = (x - mu)^2 / 2 s^2 + const, s in units of the range."""
    head = GaussianFixed(width=1, channels=1, levels=256, sigma=0.05)
    x = torch.arange(90, 160)
    nats = -head(torch.zeros(len(x), 1)).log_prob(x[:, None])  # mu = 127.5
    expected = ((x - 127.5) / 255).square() / (2 * 0.05**2)
    torch.testing.assert_close(nats - nats.min(), expected - expected.min(), rtol=1e-2, atol=2e-3)


@pytest.mark.slow
def test_learned_widths_reach_the_error_that_is_there():
    """The best width of a Gaussian is the root of the mean squared error."""
    torch.manual_seed(0)
    head = GaussianLearned(width=1, channels=2, levels=256, per="channel")
    x = (127.5 + torch.tensor([10.0, 30.0]) * torch.randn(4000, 2)).round().clamp(0, 255).long()
    optimiser = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (-head(torch.ones(len(x), 1)).log_prob(x).mean()).backward()
        optimiser.step()
    assert torch.allclose(head.log_s.exp().flatten() * 127.5, torch.tensor([10.0, 30.0]), rtol=0.05)


def test_pixels_keep_their_shape_and_refuse_others():
    pixels = GaussianPixels(torch.zeros(3, 8), torch.zeros(1, 1), (2, 4), 256)
    assert pixels.log_prob(torch.zeros(2, 4, 3).long()).shape == (2, 4)
    with pytest.raises(ValueError, match="do not match"):
        pixels.log_prob(torch.zeros(2, 4, 2).long())


def test_what_cannot_be_is_refused():
    with pytest.raises(RequestError, match="sigma"):
        GaussianFixed(width=1, channels=1, levels=2, sigma=0.0)
    with pytest.raises(RequestError, match="per=pixel"):
        GaussianLearned(width=1, channels=1, levels=2, per="pixel")
