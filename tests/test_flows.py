"""Every invertible layer: inverse, log-determinant against the Jacobian, density against quadrature (oracle T17)."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from genlab.core import RequestError
from genlab.flows import (
    ActNorm,
    AffineCoupling,
    Logit,
    Mixing,
    MixtureCoupling,
    MultiScale,
    Pad,
    Split,
    Squeeze,
    Stack,
    Uniform,
    Variational,
    mixture,
)
from genlab.nets import ResNet
from genlab.train import ema

NET = partial(ResNet, width=8, depth=1)
AFFINE = partial(AffineCoupling, net=NET)
MIXTURE = partial(MixtureCoupling, net=NET, components=3)
SHAPE = 4, 1, 2  # 8 numbers
CONTEXT = 3

LAYERS = {
    "actnorm": lambda: ActNorm(SHAPE),
    "mixing": lambda: Mixing([2, 0, 3, 1]),
    "affine": lambda: AFFINE(SHAPE),
    "affine, odd": lambda: AFFINE((3, 1, 2)),
    "affine, context": lambda: AFFINE(SHAPE, context_width=CONTEXT),
    "mixture": lambda: MIXTURE(SHAPE),
    "mixture, context": lambda: MIXTURE(SHAPE, context_width=CONTEXT),
    "split": lambda: Split(SHAPE, leaving=3),
    "split, context": lambda: Split(SHAPE, leaving=3, context_width=CONTEXT),
    "top": lambda: Split(SHAPE, leaving=4, context_width=CONTEXT),
    "squeeze": lambda: Squeeze(),
    "multi-scale, affine": lambda: MultiScale((2, 2, 2), coupling=AFFINE, levels=2, steps=2),
    "multi-scale, mixture": lambda: MultiScale((3, 2, 2), coupling=MIXTURE, levels=1, steps=3, context_width=CONTEXT),
}
SHAPES = {
    "affine, odd": (3, 1, 2),
    "squeeze": (1, 2, 4),
    "multi-scale, affine": (2, 2, 2),
    "multi-scale, mixture": (3, 2, 2),
}


def rough(layer, scale=0.2, seed=0):
    """The layer in float64 with random weights, so that it is not the identity."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(0, scale)
    return layer.double().eval()


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer, a batch for it, and a context."""
    layer = rough(LAYERS[request.param]())
    if isinstance(layer, ActNorm):
        layer.mean.fill_(0.3), layer.std.fill_(1.7)
    y = torch.randn(5, *SHAPES.get(request.param, SHAPE), dtype=torch.double)
    return layer, y, torch.randn(5, CONTEXT, 4, 4, dtype=torch.double) if needs_context(layer) else None


def needs_context(layer):
    return any(getattr(m, "maps", None) is not None or getattr(m, "context", None) is not None for m in layer.modules())


@torch.no_grad()
def test_back_and_forth(case):
    layer, y, context = case
    assert layer.exact
    z, log_det = layer(y, context)
    assert log_det.shape == (5,)
    torch.testing.assert_close(layer.inverse(z, context), y, rtol=0, atol=1e-10)
    z = torch.randn_like(z)
    torch.testing.assert_close(layer(layer.inverse(z, context), context)[0], z, rtol=0, atol=1e-10)


def test_log_determinant_is_that_of_the_jacobian(case):
    layer, y, context = case
    _, log_det = layer(y, context)
    for i in range(2):
        given = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda one, given=given: layer(one, given)[0], y[i : i + 1])
        size = y[0].numel()
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian.reshape(size, size))[1])


def test_a_context_matters(case):
    layer, y, context = case
    if context is not None:
        assert not torch.allclose(layer(y, context)[0], layer(y, context + 1)[0])


def test_gradients_reach_every_parameter(case):
    layer, y, context = case
    z, log_det = layer(y, context)
    parameters = list(layer.parameters())
    if parameters:
        (z.square().sum() + log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_the_inverse_of_a_mixture_passes_gradients_on():
    """The gradients for latents and parameters are those of finite differences."""
    layer = rough(MIXTURE((2, 1, 1)))
    z = torch.randn(3, 2, 1, 1, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layer.inverse, (z,), eps=1e-5, atol=1e-6)
    bias = layer.net.last.bias
    slope = torch.autograd.grad(layer.inverse(z).sum(), bias)[0]
    with torch.no_grad():
        step = torch.randn_like(bias) * 1e-5
        before = layer.inverse(z).sum()
        bias += step
        torch.testing.assert_close(layer.inverse(z).sum() - before, (slope * step).sum(), rtol=1e-3, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_of_a_mixture_ends_before_its_last_step(dtype, monkeypatch):
    """Rounding errors do not prevent convergence: every value converges, and few values need many steps."""
    sizes = []
    slow = mixture.logit_cdf
    monkeypatch.setattr(mixture, "logit_cdf", lambda y, *parts: sizes.append(y.numel()) or slow(y, *parts))
    layer = rough(MIXTURE((4, 8, 8))).to(dtype)
    layer.inverse(3 * torch.randn(32, 4, 8, 8, dtype=dtype))
    assert len(sizes) < mixture.BISECTIONS
    assert sum(sizes) < 40 * sizes[0]


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_logit_goes_back_and_its_determinant_counts_levels(alpha):
    layer = Logit(levels=4, alpha=alpha)
    y = 4 * torch.rand(5, 1, 2, 3, dtype=torch.double)
    z, log_det = layer(y)
    torch.testing.assert_close(layer.inverse(z), y, rtol=0, atol=1e-10)
    slope = torch.func.vmap(torch.func.grad(lambda v: layer(v.view(1, 1))[0].squeeze()))(y.flatten())
    torch.testing.assert_close(log_det, slope.log().view(5, -1).sum(1))
    with pytest.raises(RequestError, match="alpha"):
        Logit(levels=4, alpha=0.5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("coupling", [AFFINE, MIXTURE], ids=["affine", "mixture"])
def test_a_density_of_two_numbers_integrates_to_one(coupling):
    shape = 2, 1, 1
    flow = rough(
        Stack([Mixing([1, 0]), coupling(shape), Mixing([1, 0]), coupling(shape), Split(shape, leaving=2)]), 0.3
    )
    t = torch.linspace(-5.3, 5.3, 301, dtype=torch.double)  # y = sinh t reaches 100: the tails are those of logistics
    line, width = t.sinh(), t.cosh() * (t[1] - t[0])
    y = torch.cartesian_prod(line, line).view(-1, 2, 1, 1)
    z, log_det = flow(y)
    density = (log_det - 0.5 * z.square().flatten(1).sum(1) - math.log(2 * math.pi)).exp()
    assert (density * torch.cartesian_prod(width, width).prod(1)).sum().item() == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_actnorm_starts_from_its_first_batch_once():
    norm, first, second = ActNorm((3, 2, 2)), torch.randn(64, 3, 2, 2) * 5 + 7, torch.randn(64, 3, 2, 2)
    assert torch.equal(norm.eval()(first)[0], first)  # evaluation takes no statistics
    z, _ = norm.train()(first)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(3), rtol=0, atol=1e-5)
    expected = norm(second)[0]
    restored = ActNorm((3, 2, 2)).train()
    restored.load_state_dict(norm.state_dict())
    torch.testing.assert_close(restored(second)[0], expected)
    assert torch.equal(restored.mean, norm.mean)


@torch.no_grad()
def test_averaged_weights_copy_the_statistics_of_actnorm():
    norm = ActNorm((3, 2, 2)).train()
    average = ema.frozen_copy(norm)
    y = torch.randn(64, 3, 2, 2) * 5 + 7
    z, _ = norm(y)
    ema.update(average, norm, 0.9)
    torch.testing.assert_close(average(y)[0], z)
    average(torch.zeros_like(y))
    assert torch.equal(average.mean, norm.mean)


@torch.no_grad()
def test_a_mixing_starts_as_the_permutation_it_was_asked_for():
    y = torch.randn(2, 4, 3, 3)
    z, log_det = Mixing([2, 0, 3, 1])(y)
    assert torch.equal(z, y[:, [2, 0, 3, 1]])
    assert not log_det.any()


@torch.no_grad()
def test_padding_weighs_its_noise():
    """E[N(y, e) / N(e)] = N(y), here for every draw of e, because N(e) cancels."""
    pad, y = Pad((2, 3, 1)), torch.randn(4, 2, 3, 1)
    z, log_weight = pad(y)
    assert z.shape == (4, 2, 4, 2)
    assert torch.equal(pad.inverse(z), y)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(normal.log_prob(z).sum((1, 2, 3)) + log_weight, normal.log_prob(y).sum((1, 2, 3)))
    assert not pad.exact


@torch.no_grad()
def test_a_multi_scale_flow_pads_odd_sizes_and_says_that_it_is_not_exact():
    odd = rough(MultiScale((3, 5, 7), coupling=AFFINE, levels=9, steps=1), 0.05)
    y = torch.randn(2, 3, 5, 7, dtype=torch.double)
    z, _ = odd(y)
    assert z.shape == (2, odd.dims)
    torch.testing.assert_close(odd.inverse(z), y, rtol=0, atol=1e-10)
    assert not odd.exact
    assert MultiScale((3, 8, 4), coupling=AFFINE, levels=2, steps=1).exact
    with pytest.raises(RequestError, match="levels"):
        MultiScale((3, 8, 4), coupling=AFFINE, levels=0, steps=1)


@torch.no_grad()
def test_variational_noise_starts_uniform():
    layer = Variational(shape=(1, 3, 2), levels=4, net=NET).double()
    x = torch.randint(4, (500, 1, 3, 2)).double()
    y, log_weight = layer(x)
    u = (y - x).flatten().sort().values
    assert (u - torch.linspace(0, 1, len(u))).abs().max() < 0.05  # Kolmogorov and Smirnov's distance
    torch.testing.assert_close(log_weight, torch.zeros(500, dtype=torch.double), rtol=0, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 1)])
def test_variational_noise_has_the_density_it_says(shape):
    """E[1 / q(u | x)] for u ~ q is the volume of the unit cube, 1."""
    layer = rough(Variational(shape=shape, levels=4, net=NET), 0.05)
    for x in (0.0, 3.0):
        y, log_weight = layer(torch.full((40000, *shape), x, dtype=torch.double))
        assert log_weight.std() > 0.005
        assert log_weight.exp().mean().item() == pytest.approx(1, abs=0.03)
        assert torch.equal(layer.inverse(y), torch.full_like(y, x))


def test_dequantisation_keeps_to_the_bins_in_float32():
    x = torch.full((20000, 1, 2, 2), 255.0)
    for layer in (Uniform(shape=(1, 2, 2), levels=256), Variational(shape=(1, 2, 2), levels=256, net=NET)):
        y, _ = layer(x)
        assert y.max() < 256
        assert torch.equal(layer.inverse(y), x)
        assert not layer.exact
