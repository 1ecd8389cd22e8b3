"""T6, T7 of heads of several values a step: joint distributions, samples, temperatures, means, the order of colours."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2, kstest

from genlab.core import RequestError
from genlab.heads import ConditionalCategorical, Logistic, LogisticMixture
from genlab.heads.discretised import log_mass
from genlab.heads.logistic_mixture import LogisticMixturePixels

HEADS = {
    "logistic": Logistic,
    "logistic_mixture": lambda **sizes: LogisticMixture(**sizes, components=3),
    "conditional_categorical": lambda **sizes: ConditionalCategorical(**sizes, hidden=6),
}
ALL = pytest.mark.parametrize("name", HEADS)


def random_head(name, channels=3, levels=4, scale=0.7, seed=0):
    """A head with random weights for 5 features, in double precision."""
    torch.manual_seed(seed)
    made = HEADS[name](width=5, channels=channels, levels=levels).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, scale)
    return made


def features(n=1, seed=1):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def every_pixel(channels, levels):
    return torch.cartesian_prod(*[torch.arange(levels)] * channels).view(-1, channels)


def joint(pixels_of, channels, levels):
    """Probabilities (K,) * C of every pixel, given one row of features."""
    x = every_pixel(channels, levels)
    return pixels_of(len(x)).log_prob(x).exp().detach().view((levels,) * channels)


def conditionals(p):
    """p(x_i | x_<i) of a joint (K,) * C, each (K,) * (i + 1)."""
    marginals = [p.sum(tuple(range(i + 1, p.dim()))) if i + 1 < p.dim() else p for i in range(p.dim())]
    return [m / m.sum(-1, keepdim=True) for m in marginals]


def raised(p, temperature):
    """The joint whose conditionals are those of p to the power 1 / temperature, normalised."""
    raised = torch.ones((), dtype=p.dtype)
    for conditional in conditionals(p):
        power = conditional ** (1 / temperature)
        raised = raised.unsqueeze(-1) * power / power.sum(-1, keepdim=True)
    return raised


@ALL
@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 9), (2, 5), (3, 4), (4, 3)])
def test_mass_of_all_pixels_is_one(name, channels, levels):
    for seed in range(3):
        head = random_head(name, channels, levels, scale=1.5, seed=seed)
        p = joint(lambda n, head=head: head(features().expand(n, -1)), channels, levels)
        assert p.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.0])
def test_samples_follow_the_likelihood_at_every_temperature(name, temperature):
    head, n = random_head(name), 100_000
    pixels = head(features().expand(n, -1))
    noise = torch.rand(n, head.noise_size, generator=torch.Generator().manual_seed(2))
    drawn = (pixels if temperature == 1 else pixels.tempered(temperature)).sample(noise)
    p = raised(joint(lambda n: head(features().expand(n, -1)), 3, 4), temperature).flatten()
    counts = torch.bincount((drawn * torch.tensor([16, 4, 1])).sum(1), minlength=64).double()
    rare = p * n < 5  # put together, as the test's approximation asks
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([p[~rare], p[rare].sum()[None]]) * n
    seen = observed > 0
    g = 2 * (observed[seen] * (observed[seen] / expected[seen]).log()).sum().item()
    assert chi2.sf(g, len(observed) - 1) > 1e-4


@ALL
@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_temperature_is_a_power_of_every_conditional(name, temperature):
    head = random_head(name)
    p = joint(lambda n: head(features().expand(n, -1)), 3, 4)
    truth = raised(p, temperature)
    torch.testing.assert_close(
        joint(lambda n: head(features().expand(n, -1)).tempered(temperature), 3, 4), truth, rtol=1e-9, atol=1e-12
    )
    twice = joint(lambda n: head(features().expand(n, -1)).tempered(2).tempered(temperature / 2), 3, 4)
    torch.testing.assert_close(twice, truth, rtol=1e-9, atol=1e-12)


@ALL
def test_samples_are_uniform_under_their_own_conditionals(name):
    """T7: randomised probability integral transform, for features of their own at every pixel."""
    n, levels = 3000, 64
    head = random_head(name, levels=levels, scale=0.4)
    pixels, generator = head(features(n)), torch.Generator().manual_seed(3)
    x = pixels.sample(torch.rand(n, head.noise_size, generator=generator))
    spelled, values = pixels.tempered(1), list(x.unbind(-1))
    for i, value in enumerate(values):
        p = spelled.conditional(values[:i]).logits.softmax(-1)
        here = p.gather(1, value[:, None])[:, 0]
        below = p.cumsum(1).gather(1, value[:, None])[:, 0] - here
        pit = below + here * torch.rand(n, generator=generator)
        assert kstest(pit.detach().numpy(), "uniform").pvalue > 1e-4


@ALL
def test_later_colours_never_act_on_earlier_ones(name):
    head = random_head(name)
    p = joint(lambda n: head(features().expand(n, -1)), 3, 4)
    red, green, blue = conditionals(p)
    independent = torch.allclose(green, green[:1].expand_as(green)) and torch.allclose(blue, blue[:1, :1])
    assert independent == (not head.chains_colours)
    with torch.no_grad():  # all that is blue's alone
        if name == "conditional_categorical":
            head.weight[2], head.bias[2], head.inner.weight[12:] = 0.3, 0.1, 0.2
            head.tables[0][:, 6:], head.tables[1][:] = 0.4, 0.5
        elif name == "logistic_mixture":
            for group in (3, 6, 8, 9):  # mean, log scale, the two coefficients
                head.proj.weight.view(-1, 3, 5)[group] = 0.3
        else:
            head.proj.weight[[2, 5]] = 0.3
    changed = conditionals(joint(lambda n: head(features().expand(n, -1)), 3, 4))
    torch.testing.assert_close(changed[0], red)
    torch.testing.assert_close(changed[1], green)
    assert not torch.allclose(changed[2], blue)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_mixture_is_the_formula_of_the_paper(channels):
    """Written out: a component's mean of channel i is mu_i + sum_{j<i} tanh(c_ij) x_j, with x on [-1, 1]."""
    components, levels = 3, 6
    head = random_head("logistic_mixture", channels, levels)
    groups = (features() @ head.proj.weight.T + head.proj.bias).view(-1, components).detach()
    pairs = [(i, j) for j in range(channels) for i in range(j + 1, channels)]
    for x in every_pixel(channels, levels)[:: 7 if channels > 2 else 1]:
        total = 0.0
        for k, weight in enumerate(groups[0].softmax(0)):
            nats = weight.log()
            for i in range(channels):
                shift = sum(
                    groups[1 + 2 * channels + pairs.index((i, j)), k].tanh() * (2 * x[j].double() / (levels - 1) - 1)
                    for j in range(i)
                )
                mean, log_s = groups[1 + i, k] + shift, groups[1 + channels + i, k]
                nats = nats + log_mass(x[i].double(), mean, log_s, levels)
            total += nats.exp()
        found = head(features()).log_prob(x[None]).exp()
        torch.testing.assert_close(found, total[None], rtol=1e-10, atol=1e-14)


def test_a_drawn_colour_is_rounded_before_the_next_is_conditioned_on_it():
    """Red falls on 10.4, so it is 10, and green 90.2 above it is 100; above 10.4 it would be 101."""
    half = 255 / 2
    on_scale = torch.tensor([10.4, 90.2]) / half
    mu = torch.stack([on_scale[0] - 1, on_scale[1]])  # green = mean + 1 * (red on [-1, 1])
    parameters = torch.cat([torch.zeros(1), mu, torch.full((2,), -7.0), torch.tensor([20.0])]).view(6, 1, 1)
    pixels = LogisticMixturePixels(parameters, (1,), 2, 256)
    assert pixels.sample(torch.tensor([[0.3, 0.5, 0.5]])).tolist() == [[10, 100]]


@ALL
def test_means(name):
    levels = torch.arange(9, dtype=torch.double)
    one = random_head(name, 1, 9)
    p = joint(lambda n: one(features().expand(n, -1)), 1, 9)
    torch.testing.assert_close(one(features()).mean()[0, 0].detach(), p @ levels)
    head = random_head(name, 3, 9)
    pixels = head(features())
    p = joint(lambda n: head(features().expand(n, -1)), 3, 9)
    torch.testing.assert_close(pixels.mean()[0, 0].detach(), p.sum((1, 2)) @ levels)  # the first: exactly
    for mean in (pixels.mean(), pixels.tempered(0.5).mean()):
        assert mean.shape == (1, 3)
        assert ((mean >= 0) & (mean <= 8)).all()


def test_mean_of_a_mixture_clear_of_black_and_white_is_exact():
    levels = torch.arange(33, dtype=torch.double)
    c = torch.tensor([0.3, -0.4, 0.2]).atanh()
    # Component logits, three means, three log scales, coefficients, of two components.
    rows = [[0.5, -0.5], [-0.1, 0.2], [0.05, -0.2], [0.1, 0.0], *[[-3.5, -3.3]] * 3, *c[:, None].expand(3, 2).tolist()]
    parameters = torch.tensor(rows, dtype=torch.double)[..., None]
    pixels = LogisticMixturePixels(parameters, (1,), 3, 33)
    p = joint(lambda n: LogisticMixturePixels(parameters.expand(-1, -1, n), (n,), 3, 33), 3, 33)
    truth = torch.stack([p.sum((1, 2)) @ levels, p.sum((0, 2)) @ levels, p.sum((0, 1)) @ levels])
    torch.testing.assert_close(pixels.mean()[0], truth, rtol=0, atol=5e-3)


@ALL
@pytest.mark.parametrize("channels", [1, 3])
def test_any_leading_dimensions_and_the_prepared_version_are_the_same(name, channels):
    head = random_head(name, channels)
    h, generator = features(12), torch.Generator().manual_seed(0)
    noise = torch.rand(12, head.noise_size, generator=generator)
    prepared, whole, grid = head.for_steps()(h), head(h), head(h.view(2, 3, 2, 5))
    x = whole.sample(noise)
    assert x.dtype == torch.long
    assert torch.equal(prepared.sample(noise), x)
    assert torch.equal(grid.sample(noise.view(2, 3, 2, -1)).view(12, channels), x)
    for f in (lambda p, x: p.log_prob(x), lambda p, x: p.tempered(0.7).log_prob(x)):
        torch.testing.assert_close(f(prepared, x), f(whole, x))
        torch.testing.assert_close(f(grid, x.view(2, 3, 2, channels)).view(12), f(whole, x))
    torch.testing.assert_close(grid.mean().view(12, channels), whole.mean())
    torch.testing.assert_close(whole.log_prob(x.to(torch.uint8)), whole.log_prob(x))
    for wrong in ((12, channels + 1), (11, channels), (1, 1)):
        with pytest.raises(ValueError, match="do not match"):
            whole.log_prob(torch.zeros(wrong, dtype=torch.long))


@ALL
def test_ends_of_the_uniform_numbers_stay_in_range(name):
    head = random_head(name, 3, 16, scale=5).float()
    for end in (0.0, 1 - 2**-24):
        x = head(features(50).float()).sample(torch.full((50, head.noise_size), end))
        assert ((x >= 0) & (x < 16)).all()


def test_an_untrained_conditional_categorical_costs_log2_of_the_levels():
    head = ConditionalCategorical(width=5, channels=3, levels=256)
    bits = -head(torch.randn(7, 5)).log_prob(torch.randint(256, (7, 3))) / math.log(2)
    torch.testing.assert_close(bits, torch.full((7,), 24.0))
    with pytest.raises(RequestError, match="hidden >= 1"):
        ConditionalCategorical(width=4, channels=3, levels=256, hidden=0)
