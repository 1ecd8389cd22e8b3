"""T5: the discretised logistic sums to 1, equals its plain formula, and has finite gradients everywhere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from genlab.core import RequestError
from genlab.heads import Logistic, LogisticMixture
from genlab.heads.discretised import draw, log_mass, nearest
from genlab.heads.logistic import LogisticPixels


def every(levels, dtype=torch.double):
    """(K, 1, 1)."""
    return torch.arange(levels, dtype=dtype)[:, None, None]


def plain(x, mean, log_s, levels):
    """The formula as the paper and the file's head have it, in the precision of its arguments."""
    x, s, d = 2 * x / (levels - 1) - 1, log_s.exp(), 1 / (levels - 1)
    a, b = (x - mean + d) / s, (x - mean - d) / s
    y = (a - b).clamp(min=1e-300)
    log1mexp = torch.where(y < math.log(2), torch.log(-torch.expm1(-y)), torch.log1p(-torch.exp(-y)))
    middle = F.logsigmoid(a) + F.logsigmoid(-b) + log1mexp
    return torch.where(x <= -1, F.logsigmoid(a), torch.where(x >= 1, F.logsigmoid(-b), middle))


@pytest.mark.slow
@pytest.mark.parametrize("levels", [2, 3, 16, 255, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float, 2e-6), (torch.double, 1e-12)])
def test_mass_is_one(levels, dtype, tolerance):
    mean = torch.cat([torch.linspace(-1.3, 1.3, 301), torch.tensor([-1e4, -50, -3, 3, 50, 1e4])]).to(dtype)
    log_s = torch.cat([torch.linspace(-7, 2, 91), torch.tensor([-1e3, 5, 20, 1e3])]).to(dtype)[:, None]
    mass = log_mass(every(levels, dtype), mean, log_s, levels).exp()
    assert mass.dtype == dtype
    assert (mass.double().sum(0) - 1).abs().max() < tolerance


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_equals_the_plain_formula_tails_included(levels):
    mean = torch.linspace(-1.5, 1.5, 61, dtype=torch.double)
    log_s = torch.linspace(-7, 3, 21, dtype=torch.double)[:, None]
    found, truth = (f(every(levels), mean, log_s, levels) for f in (log_mass, plain))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
    single = log_mass(every(levels, torch.float), mean.float(), log_s.float(), levels)
    torch.testing.assert_close(single.double(), truth, rtol=1e-4, atol=2e-4)  # s itself is rounded


def test_gradients_are_those_of_the_formula():
    mean = torch.linspace(-1.4, 1.4, 7, dtype=torch.double).requires_grad_()
    log_s = torch.linspace(-4, 2, 7, dtype=torch.double).requires_grad_()
    for levels in (2, 5):
        assert torch.autograd.gradcheck(lambda m, s, k=levels: log_mass(every(k), m, s[:, None], k), (mean, log_s))


def test_gradients_are_finite_at_every_level_of_extreme_parameters():
    extremes = [-1e6, -100.0, -30.0, -7.0, -1.0, 0.0, 0.3, 20.0, 100.0, 1e6]
    for levels in (2, 256):
        mean = torch.tensor(extremes).requires_grad_()
        log_s = torch.tensor(extremes)[:, None].requires_grad_()
        nats = log_mass(every(levels, torch.float), mean, log_s, levels)
        by_mean, by_log_s = torch.autograd.grad(nats.sum(), (mean, log_s))
        assert nats.isfinite().all()
        assert (nats <= 0).all()
        assert by_mean.isfinite().all()
        assert by_log_s.isfinite().all()


def test_outermost_levels_take_the_tails_and_the_floor_bounds_the_others():
    sharp = torch.tensor(-100.0)
    for level, mean in ((0, -5.0), (255, 5.0)):
        assert log_mass(torch.tensor(float(level)), torch.tensor(mean), sharp, 256).item() == 0
    inside = log_mass(torch.tensor(100.0), torch.tensor(2 * 100 / 255 - 1), sharp, 256).exp().item()
    assert inside == pytest.approx(0.973, abs=1e-3)


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_draws_invert_the_distribution_function(levels):
    """Just inside both ends of its cell a uniform number gives the level, and the ends of [0, 1) stay in range."""
    mean, log_s = torch.tensor(0.13, dtype=torch.double), torch.tensor(-1.0, dtype=torch.double)
    mass = log_mass(torch.arange(levels).double(), mean, log_s, levels).exp()
    upper = mass.cumsum(0)
    for uniform in (upper - 1e-9, upper - mass + 1e-9):
        found = nearest(draw(uniform, mean, log_s, levels), levels)
        assert found.tolist() == list(range(levels))
    ends = nearest(draw(torch.tensor([0.0, 1 - 2**-24]), torch.tensor(0.0), torch.tensor(100.0), levels), levels)
    assert ends.tolist() == [0, levels - 1]


@pytest.mark.parametrize("head", [Logistic, LogisticMixture])
def test_half_precision_never_reaches_the_parameters(head):
    """Under autocast the projection is that of float32, to the bit: means of 256 levels need more than 8 bits."""
    made = head(width=8, channels=3, levels=256)
    torch.nn.init.normal_(made.proj.weight, 0, 0.3)
    h, x = torch.randn(2, 5, 8), torch.randint(256, (2, 5, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made(h).log_prob(x)
    assert half.dtype == torch.float
    assert torch.equal(half, made(h).log_prob(x))
    assert made(h.bfloat16()).log_prob(x).dtype == torch.float
    assert made.double()(h.double()).log_prob(x).dtype == torch.double


def test_logistic_mean_and_temperature_are_those_of_its_levels():
    parameters = torch.tensor([[-0.9, 0.2, 1.2], [-3.0, -1.0, 0.5]], dtype=torch.double)
    pixels = LogisticPixels(parameters, (3,), 11)
    levels = torch.arange(11).expand(3, 11).unsqueeze(-1)
    p = torch.stack([pixels.log_prob(levels[:, k]).exp() for k in range(11)], 1)
    torch.testing.assert_close(pixels.mean()[:, 0], (p * torch.arange(11)).sum(1))
    cold = torch.stack([pixels.tempered(0.5).log_prob(levels[:, k]).exp() for k in range(11)], 1)
    torch.testing.assert_close(cold, p**2 / (p**2).sum(1, keepdim=True))
    torch.testing.assert_close(pixels.tempered(1).mean(), pixels.mean())


@pytest.mark.parametrize(("head", "channels"), [(Logistic, 1), (LogisticMixture, 1), (LogisticMixture, 3)])
def test_the_first_loss_is_moderate_and_components_differ(head, channels):
    """On any image: not far above the 8 bits of equal probabilities."""
    made = head(width=4, channels=channels, levels=256)
    x = torch.arange(256)[:, None].expand(256, channels)
    nats = made(torch.randn(256, 4)).log_prob(x) / channels
    assert -nats.mean() / math.log(2) < 8.6
    assert -nats.min() / math.log(2) < 12
    if head is LogisticMixture:
        assert made.proj.bias.view(-1, 10)[1].unique().numel() == 10


def test_impossible_mixtures_are_refused():
    with pytest.raises(RequestError, match="at least 1 component"):
        LogisticMixture(width=4, channels=3, levels=256, components=0)


@torch.no_grad()
def test_the_mass_below_an_edge_is_the_sum_of_the_levels_below_it():
    """`next_below` is what the codec asks for instead of all levels."""
    torch.manual_seed(0)
    head = LogisticMixture(width=6, channels=3, levels=16, components=4).double()
    head.proj.weight.normal_()
    pixels = head(torch.randn(5, 6, dtype=torch.double))
    before: list[torch.Tensor] = []
    for _ in range(3):
        cdf = pixels.next_logits(before).softmax(-1).cumsum(-1).T  # (16, 5)
        edges = torch.arange(1, 16)[:, None].expand(-1, 5).double()
        assert torch.allclose(pixels.next_below(before)(edges), cdf[:-1])
        before.append(torch.randint(16, (5,)))
