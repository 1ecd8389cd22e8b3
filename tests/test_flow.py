"""The flow as a model of integers: its bound against quadrature (oracle T18), samples, completions, files."""

from __future__ import annotations

import itertools
from functools import partial

import numpy
import pytest
import torch
import zoo
from omegaconf import OmegaConf

from genlab.build import build
from genlab.core import Completer, Features, ImageSpec, Likelihood, RequestError, Sampler
from genlab.flows import AffineCoupling, Logit, Mixing, MixtureCoupling, Split, Stack, Uniform, Variational
from genlab.measure import bits
from genlab.models import Flow
from genlab.nets import ResNet

NET = partial(ResNet, width=8, depth=1)
SMALL = [f"model.net.{key}" for key in ("width=8", "depth=1")] + ["model.flow.levels=2"]
SPECS = {"grey": zoo.GREY, "rgb": zoo.RGB, "one pixel": ImageSpec(1, 1, 1, 4)}
CHOICES = list(itertools.product(("affine", "mixture"), ("uniform", "variational")))


def config(*words):
    """The yaml's model, small, with words of a request."""
    plain = OmegaConf.create(OmegaConf.to_container(zoo._composed("flow"), resolve=True))
    for word in [*SMALL, *words]:
        key, _, value = word.partition("=")
        group = key.removeprefix("model/")
        if group != key:
            plain[group] = zoo._part(group, value)
        else:
            OmegaConf.update(plain, key.removeprefix("model."), int(value))
    return OmegaConf.to_container(plain)


def tiny(spec, *words, scale=0.1, dtype=torch.double):
    """A small flow with random weights of that scale added."""
    torch.manual_seed(0)
    made = build(config(*words), spec).to(dtype).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(scale * torch.randn_like(p))
    return made


class Vector(Stack):
    """A flow of a few channels at one place, which needs no squeeze: two couplings."""

    def __init__(self, shape, *, coupling, context_width=0):
        turn = [*range(1, shape[0]), 0]
        layers = [Mixing(turn), coupling(shape)] * (shape[0] > 1) + [Mixing(turn), coupling(shape)] * (shape[0] > 1)
        super().__init__([*layers, Split(shape, leaving=shape[0])])
        self.dims = shape[0]

    def forward(self, y, context=None):
        z, log_det = super().forward(y, context)
        return z.flatten(1), log_det

    def inverse(self, z, context=None):
        return super().inverse(z[:, :, None, None], context)


def listable(pixels, dequantisation=Uniform, scale=0.2, coupling=None):
    """A flow of one or two values of four levels: their probabilities are integrals over squares."""
    torch.manual_seed(1)
    made = Flow(
        ImageSpec(pixels, 1, 1, 4), dequantisation=dequantisation, squash=Logit, flow=Vector,
        coupling=coupling or partial(MixtureCoupling, components=3), net=NET,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for p in made.parameters():
            p.add_(scale * torch.randn_like(p))
        for p in made.dequantisation.parameters():  # wilder noise has weights without a variance
            p.mul_(0.3)
    return made


@torch.no_grad()
def probabilities(made, points=32):
    """P(x) of every image by Gauss and Legendre's rule over its box (N,)."""
    spec = made.spec
    rule, weights = (torch.from_numpy(numbers) / 2 for numbers in numpy.polynomial.legendre.leggauss(points))
    rule = rule + 0.5
    places = torch.cartesian_prod(*[rule] * spec.dims).view(-1, *spec.shape)
    weights = torch.cartesian_prod(*[weights] * spec.dims).view(len(places), -1).prod(1)
    return torch.stack([(made.log_density(x + places).exp() * weights).sum() for x in zoo.every_image(spec).double()])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dequantisation", [Uniform, partial(Variational, net=NET)], ids=["uniform", "variational"])
def test_the_bound_is_below_the_integral_and_rises_with_the_draws(dequantisation):
    made = listable(2, dequantisation)
    p = probabilities(made)
    assert p.sum().item() == pytest.approx(1, abs=2e-3)  # the logit has poles at both ends of the range
    images, n = zoo.every_image(made.spec), 1000
    log_w = made.log_prob(images.repeat(n, 1, 1, 1)).view(n, len(images))
    error = 4 * log_w.exp().std(0) / n**0.5 + 2e-3 * p
    assert ((log_w.exp().mean(0) - p).abs() < error).all()
    bounds = [(log_w.unfold(0, k, k).logsumexp(2) - torch.tensor(k).log()).mean(0) for k in (1, 10, 100)]
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < bounds[2]).all()
    assert (bounds[2] < p.log() + error / p).all()


@torch.no_grad()
def test_the_sampler_draws_what_the_likelihood_says():
    made = listable(2)
    n = 20000
    x = made.sample(n, generator=torch.Generator().manual_seed(0))
    assert (zoo.histogram(x, made.spec) / n - probabilities(made)).abs().sum() / 2 < 0.02


@pytest.mark.slow
@torch.no_grad()
def test_learning_better_noise_tightens_the_bound():
    """Variational noise learns, with the flow itself held still, and gets closer to the integral."""
    made = listable(1, partial(Variational, net=NET), scale=0.4)
    for p in made.dequantisation.parameters():
        p.mul_(0.1)
    images, exact = zoo.every_image(made.spec).repeat(128, 1, 1, 1), probabilities(made).log().mean()
    before = exact - made.log_prob(images.repeat(15, 1, 1, 1)).mean()
    optimiser = torch.optim.Adam(made.dequantisation.parameters(), lr=5e-3)
    with torch.enable_grad():
        for _ in range(120):
            optimiser.zero_grad()
            made.objective(images)["loss"].mean().backward()
            optimiser.step()
    after = exact - made.log_prob(images.repeat(15, 1, 1, 1)).mean()
    assert -0.005 < after < before / 2


@pytest.mark.slow
@pytest.mark.parametrize(("coupling", "dequantisation"), CHOICES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_choice_trains_samples_and_goes_there_and_back(spec, coupling, dequantisation):
    made = tiny(spec, f"model/coupling={coupling}", f"model/dequantisation={dequantisation}", dtype=torch.float).train()
    assert isinstance(made, Likelihood)
    assert isinstance(made, Sampler)
    assert isinstance(made, Completer)
    assert isinstance(made, Features)
    assert not made.exact
    x = zoo.random_images(spec, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = made.objective(x)["loss"]
    assert loss.dtype == torch.float
    loss.mean().backward()
    dead = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in dead if "dequantisation" in name or spec.dims > 1]
    made = made.double().eval()
    with torch.no_grad():
        y, _ = made.dequantisation(x.double())
        z, _ = made.flow(made.squash(y)[0])
        assert torch.equal(made._image(z, None), x)
    one, same, other = (made.sample(6, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (6, *spec.shape)
    assert torch.equal(one, same)
    assert spec.dims == 1 or not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() < spec.levels


@torch.no_grad()
def test_half_precision_of_the_nets_barely_moves_the_likelihood():
    made, x = tiny(zoo.RGB, dtype=torch.float), zoo.random_images(zoo.RGB, 4)
    values = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(made.log_prob(x))
    torch.testing.assert_close(*values, rtol=0.02, atol=0)


@pytest.mark.slow
@torch.no_grad()
def test_more_draws_make_a_tighter_bound_and_evaluation_calls_it_one():
    made, x = tiny(zoo.GREY, scale=0.2), zoo.random_images(zoo.GREY, 200)
    few, many = (bits.log_marginal(made, x, draws=k).mean() for k in (1, 30))
    assert few < many


@torch.no_grad()
def test_cold_samples_have_smaller_latents():
    made = tiny(zoo.RGB)
    cold, warm = (made.prior(500, temperature=t, generator=torch.Generator().manual_seed(0)) for t in (0.25, 1.0))
    torch.testing.assert_close(cold, 0.5 * warm)  # a quarter of the variance
    assert len(made.sample(50, temperature=1e-20).unique(dim=0)) == 1
    with pytest.raises(RequestError, match="above 0"):
        made.sample(50, temperature=0.0)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tempered_samples_are_images_of_a_prior_of_that_variance(temperature):
    """P_T(x) by quadrature of the density N(f(y); 0, T I) |det df/dy| over the cell of x."""
    made, n = listable(2), 20000
    x = made.sample(n, temperature=temperature, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(0.0, temperature**0.5)

    def log_density(y):
        z, log_det = made._latents(y, None)
        return log_det + normal.log_prob(z).sum(1)

    plain = probabilities(made)
    made.log_density = log_density
    p = probabilities(made)
    assert p.sum().item() == pytest.approx(1, abs=5e-3)
    assert (p - plain).abs().sum() / 2 > 0.05
    assert (zoo.histogram(x, made.spec) / n - p).abs().sum() / 2 < 0.02


@pytest.mark.slow
def test_completion_keeps_known_pixels_and_seeds_decide(monkeypatch):
    monkeypatch.setattr("genlab.models.flow.LANGEVIN_STEPS", 5)
    made = tiny(zoo.RGB, dtype=torch.float)
    x = zoo.random_images(zoo.RGB, 3)
    known = torch.rand(3, zoo.RGB.height, zoo.RGB.width, generator=torch.Generator().manual_seed(0)) < 0.5
    one, same, other = (made.complete(x, known, generator=torch.Generator().manual_seed(s)).images for s in (1, 1, 2))
    keep = known[:, None].expand_as(x)
    assert torch.equal(one[keep], x[keep])
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert made.completion.startswith("approximate: ")
    nothing = torch.zeros_like(known)
    assert made.complete(x, nothing, generator=torch.Generator().manual_seed(1)).images.max() < zoo.RGB.levels


@pytest.mark.slow
def test_completion_leans_towards_the_conditional():
    """Two values of which one is known: the histogram of the other, within what a soft walk can do. Affine couplings,
    because the walk inverts the flow hundreds of times, and their inverse is a formula.
    """
    made = listable(2, scale=0.5, coupling=AffineCoupling)
    spec = ImageSpec(1, 1, 2, 4)  # two pixels for the mask, two channels for the flow
    n, p = 1000, probabilities(made).view(4, 4)
    made.spec = spec
    flow = made.flow.inverse
    made.flow.inverse = lambda z, context=None: flow(z, context).view(-1, 1, 1, 2)
    x = torch.tensor([2, 0]).view(1, 1, 1, 2).expand(n, -1, -1, -1)
    known = torch.tensor([True, False]).view(1, 1, 2).expand(n, -1, -1)
    done = made.complete(x, known, generator=torch.Generator().manual_seed(0)).images
    wanted, found = p[2] / p[2].sum(), torch.bincount(done[:, 0, 0, 1], minlength=4) / n
    assert (wanted - p.sum(0)).abs().sum() / 2 > 0.1, "the known value says nothing about the other"
    assert (wanted - found).abs().sum() / 2 < 0.08


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["label", "image"])
def test_a_context_changes_likelihood_and_samples_and_is_asked_for(kind):
    made = tiny(zoo.RGB, f"model/context={kind}", "model.context.width=5", scale=0.3)
    x = zoo.random_images(zoo.RGB, 4)
    given = torch.arange(4) % 3 if kind == "label" else zoo.random_images(zoo.SECOND, 4)
    values, samples = [], []
    for context in (given, given.flip(0) if kind == "image" else (given + 1) % 3):
        torch.manual_seed(0)
        values.append(made.log_prob(x, context))
        samples.append(made.sample(4, context=context, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(*values)
    assert not torch.equal(*samples)
    with pytest.raises(RequestError, match="conditioned on"):
        made.sample(4)
    with pytest.raises(RequestError, match="unconditional"):
        tiny(zoo.RGB).log_prob(x, given)


@torch.no_grad()
def test_features_are_the_same_at_every_call():
    made, x = tiny(zoo.RGB), zoo.random_images(zoo.RGB, 3)
    torch.manual_seed(5)
    one = made.features(x)
    here = torch.rand(1)
    two = made.features(x)
    assert set(one) == {"level0", "level1", "latents"}
    assert all(torch.equal(one[name], two[name]) and len(one[name]) == 3 for name in one)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), here)  # and leave the stream of random numbers alone
