"""Temperature has one meaning: every distribution that is drawn from becomes p^(1/T), normalised.

The truth is computed from probabilities at temperature 1, on domains whose images can be listed and whose latents can
be integrated. Frequencies of samples and completions are compared with it.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import zoo
from scipy.stats import chi2

import genlab
from genlab.core import Draw, ImageSpec, Pushforward, RequestError, declared, to_steps
from genlab.heads import Categorical, LogisticMixture
from genlab.models import GaussianMixture, MixtureDensity
from genlab.models.gaussians import log_mass
from genlab.models.langevin import langevin_dynamics
from genlab.nets import MLPEncoder

TEMPERATURES = pytest.mark.parametrize("temperature", [0.5, 2.0])
LISTED = {name: zoo.LISTABLE[name] for name in ("2x2 binary", "2x1, 2 channels, 3 levels")}
GREY = {"2x2 binary": ImageSpec(1, 2, 2, 2), "2x1, 4 levels": ImageSpec(1, 2, 1, 4)}
N = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_drawn_from(images, probability, spec):
    """G-test of images against the probability of every image."""
    n, counts = len(images), zoo.histogram(images, spec)
    rare = probability * n < 5  # put together, as the test's approximation asks
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([probability[~rare] * n, probability[rare].sum()[None] * n + 1e-9])
    seen = observed > 0
    g = 2 * (observed[seen] * (observed[seen] / expected[seen]).log()).sum().item()
    assert chi2.sf(g, max(1, len(observed) - 1)) > 1e-4


def powers(log_p, temperature):
    """p^(1/T), normalised over the last dimension, in logs."""
    return (log_p / temperature).log_softmax(-1)


def given_known(probability, every, x, known):
    """Probabilities of all images (N,) given the known pixels of x (C, H, W)."""
    p = probability * ((every == x) | ~known).flatten(1).all(1)
    return p / p.sum()


# ---- pixels one after another


def tempered_chain(model, temperature):
    """Probability of every image if each value's conditional is p^(1/T), by marginals of the listed joint."""
    spec = model.spec
    joint = torch.zeros(*[spec.levels] * spec.dims, dtype=torch.double)
    every = zoo.every_image(spec)
    place = to_steps(every, 1)[..., 0]  # values in the order of generation
    joint[tuple(place.T)] = model.log_prob(every).exp()
    tempered = torch.ones((), dtype=torch.double)
    for i in range(spec.dims):
        marginal = joint.flatten(i + 1).sum(-1) if i + 1 < spec.dims else joint
        tempered = tempered.unsqueeze(-1) * powers(marginal.log(), temperature).exp()
    return tempered[tuple(place.T)]


HEADS = [p for p in zoo.models(LISTED) if p.values[0].model == zoo.ASKED]


@pytest.mark.slow
@torch.no_grad()
@TEMPERATURES
@pytest.mark.parametrize("case", HEADS)
def test_autoregressive_samples_temper_every_conditional(case, temperature):
    model = case.tiny(scale=0.4)
    probability = tempered_chain(model, temperature)
    assert (probability - model.log_prob(zoo.every_image(case.spec)).exp()).abs().sum() > 0.1
    assert_drawn_from(model.sample(N, temperature=temperature, generator=seeded()), probability, case.spec)


@pytest.mark.slow
@torch.no_grad()
@TEMPERATURES
@pytest.mark.parametrize("known_pixel", [0, -1])
def test_autoregressive_completions_are_those_of_the_tempered_model(known_pixel, temperature):
    case = next(p.values[0] for p in HEADS if p.values[0].head == "categorical" and p.values[0].spec.levels == 3)
    model, every = case.tiny(), zoo.every_image(case.spec)
    x, known = every[50], torch.zeros(2, 1, dtype=torch.bool)
    known[known_pixel] = True
    probability = given_known(tempered_chain(model, temperature), every, x, known)
    n = 1500
    done = model.complete(
        x.expand(n, -1, -1, -1), known.expand(n, -1, -1), temperature=temperature, particles=64, generator=seeded()
    )
    assert (zoo.histogram(done.images, case.spec) / n - probability).abs().sum() / 2 < 0.05


# ---- latents


@torch.no_grad()
def tempered_latent(model, temperature):
    """Probability of every grey image: z of noise N(0, T I), then each value's p(x | z)^(1/T); by quadrature."""
    import numpy

    spec = model.spec
    nodes, weights = (torch.from_numpy(part) for part in numpy.polynomial.hermite_e.hermegauss(60))
    z = model.from_noise(math.sqrt(temperature) * torch.cartesian_prod(nodes, nodes))
    weight = torch.cartesian_prod(weights, weights).prod(1) / weights.sum() ** 2
    levels = [torch.full((len(z), *spec.shape), k) for k in range(spec.levels)]
    log_p = torch.stack([model._log_likelihood(x, z, None) for x in levels], -1)  # (nodes, values, K)
    log_p = powers(log_p, temperature)
    every = to_steps(zoo.every_image(spec), 1)[..., 0]  # (N, values)
    given_z = log_p[:, torch.arange(spec.dims), every].sum(2).exp()  # (nodes, N)
    return weight @ given_z


LATENT = [
    p
    for p in zoo.hidden(GREY)
    if p.values[0].model == "latent_gaussian"
    and p.values[0].head in ("bernoulli", "categorical", "logistic", "gaussian_full", "logistic_mixture")
]


@TEMPERATURES
@pytest.mark.parametrize("case", LATENT)
def test_latent_gaussian_samples_temper_z_and_then_the_pixels(case, temperature):
    model = case.tiny(seed=1)
    probability = tempered_latent(model, temperature)
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    assert_drawn_from(model.sample(N, temperature=temperature, generator=seeded()), probability, case.spec)


@torch.no_grad()
@TEMPERATURES
@pytest.mark.parametrize("case", [p for p in LATENT if p.values[0].head in ("bernoulli", "logistic")])
def test_latent_gaussian_completions_are_those_of_the_tempered_model(case, temperature):
    model, every = case.tiny(seed=2), zoo.every_image(case.spec)
    known = torch.zeros(case.spec.height, case.spec.width, dtype=torch.bool)
    known[-1, -1] = True
    x, n = every[-1], 2000
    probability = given_known(tempered_latent(model, temperature), every, x, known)
    done = model.complete(
        x.expand(n, -1, -1, -1), known.expand(n, -1, -1), particles=64, temperature=temperature, generator=seeded()
    )
    assert (zoo.histogram(done.images, case.spec) / n - probability).abs().sum() / 2 < 0.04


@pytest.mark.slow
@torch.no_grad()
@TEMPERATURES
def test_latent_gaussian_completions_weight_by_tempered_pixels(temperature):
    """All pixels have the logit z: three known ones say much about it, and less at a high temperature."""
    spec = GREY["2x2 binary"]
    model, every = zoo.Hidden("latent_gaussian", spec, "bernoulli").tiny(), zoo.every_image(spec)
    model._decoded = lambda z, condition: z[:, :1, None].expand(-1, spec.dims, model.head.proj.in_features)
    model.head.proj.weight.fill_(1 / model.head.proj.in_features)
    model.head.proj.bias.zero_()
    known = torch.tensor([[True, True], [True, False]])
    probability = given_known(tempered_latent(model, temperature), every, every[-1], known)
    n = 10_000
    drawn = model.complete(
        every[-1].expand(n, -1, -1, -1), known.expand(n, -1, -1), temperature=temperature, particles=64, seed=0
    )
    assert (zoo.histogram(drawn.images, spec) / n - probability).abs().sum() / 2 < 0.015


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("name", ["latent_gaussian", "flow", "gan"])
def test_gaussian_latents_have_the_temperature_as_variance(name, temperature):
    spec = ImageSpec(1, 4, 4, 4)
    plain = {"latent_gaussian": zoo.Hidden("latent_gaussian", spec, "logistic").config()}
    model = zoo.tiny(plain.get(name) or small(name), spec, scale=0.1)
    assert isinstance(model, Pushforward)
    z = model.prior(N, temperature=temperature, generator=seeded()).double()
    error = 5 * math.sqrt(2 / z.numel()) * temperature
    assert z.var().item() == pytest.approx(temperature, abs=error)
    assert torch.equal(model.prior(N, Draw(temperature=temperature, generator=seeded())).double(), z)


def small(name):
    """The config of a flow or a GAN, small."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(zoo._composed(name), resolve=True)
    zoo._resize(plain, zoo.SMALL | {"levels": 1, "steps": 1, "components": 2, "latent_dim": 3, "widths": [4]})
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.25, 4.0])
def test_langevin_dynamics_keep_the_tempered_prior(temperature):
    """Without a misfit the target is N(0, T I), also if the chain does not begin there."""
    z = torch.randn(4000, 3, dtype=torch.double, generator=seeded())
    z = langevin_dynamics(z, lambda z: 0 * z, steps=150, temperature=temperature, generator=seeded(1))
    assert z.var().item() == pytest.approx(temperature, rel=0.06)


# ---- mixtures


def tempered_mixture(weights, means, s, spec, temperature):
    """Probability of every image: log weights (M,), means and deviations (M, D) in units of the range."""
    every = zoo.every_image(spec).flatten(1)
    masses = log_mass(every[:, None], means, math.sqrt(temperature) * s, spec.levels).sum(2)
    return (powers(weights, temperature) + masses).logsumexp(1).exp()


@torch.no_grad()
@TEMPERATURES
def test_mixtures_temper_the_component_and_then_its_gaussian(temperature):
    spec = GREY["2x1, 4 levels"]
    torch.manual_seed(0)
    model = GaussianMixture(spec, components=3).double()
    model.logits.copy_(torch.tensor([0.0, 1.0, 2.5]))
    model.gaussians.means.uniform_(0.1, 0.9)
    model.gaussians.log_std.uniform_(-2.3, -1.5)
    parts = model.logits.log_softmax(0), model.gaussians.means, model.gaussians.deviation()
    probability = tempered_mixture(*parts, spec, temperature)
    assert_drawn_from(model.sample(N, temperature=temperature, generator=seeded()), probability, spec)
    every, known = zoo.every_image(spec), torch.tensor([[True], [False]])
    done = model.complete(
        every[6].expand(N, -1, -1, -1), known.expand(N, -1, -1), temperature=temperature, generator=seeded(1)
    )
    assert_drawn_from(done.images, given_known(probability, every, every[6], known), spec)


@torch.no_grad()
@TEMPERATURES
def test_mixture_density_networks_temper_as_mixtures_do(temperature):
    spec = ImageSpec(1, 2, 1, 4, context=ImageSpec(1, 1, 2, 5))
    torch.manual_seed(3)
    model = MixtureDensity(spec, net=lambda **sizes: MLPEncoder(hidden=[5], **sizes), components=3).double()
    for p in model.parameters():
        p.add_(0.5 * torch.randn_like(p))
    y = torch.tensor([[[[1, 3]]]])
    probability = tempered_mixture(*(part[0] for part in model.mixture(y, 1)), spec, temperature)
    drawn = model.sample(N, context=y.expand(N, -1, -1, -1), temperature=temperature, generator=seeded())
    assert_drawn_from(drawn, probability, spec)


# ---- Draw


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a number above 0"),
        ({"temperature": -1.0}, "above 0"),
        ({"temperature": math.inf}, "above 0"),
        ({"temperature": math.nan}, "above 0"),
        ({"particles": 0}, "at least 1"),
        ({"seed": 1, "generator": seeded()}, "not both"),
    ],
)
def test_a_draw_refuses_what_cannot_be(fields, sentence):
    with pytest.raises(RequestError, match=sentence):
        Draw.of(**fields)


def test_a_draw_is_the_same_by_itself_by_its_keywords_and_by_a_seed():
    model = zoo.Case(zoo.ASKED, "", "categorical", "none", zoo.GREY).tiny(scale=0.3)
    one = model.sample(5, seed=3, temperature=0.7)
    assert torch.equal(one, model.sample(5, temperature=0.7, generator=seeded(3)))
    assert torch.equal(one, model.sample(5, Draw(temperature=0.7, generator=seeded(3))))
    assert torch.equal(one, model.sample(5, Draw(generator=seeded(3)), temperature=0.7))
    assert not torch.equal(one, model.sample(5, seed=4, temperature=0.7))
    with pytest.raises(TypeError, match="temprature"):
        model.sample(5, temprature=0.7)


def test_a_loaded_model_samples_by_a_seed():
    model = genlab.load(Path(__file__).parents[1] / "fixtures" / "checkpoints" / "pixelcnn.ckpt")
    assert torch.equal(model.sample(2, seed=0), model.sample(2, generator=seeded(0)))


def test_a_part_declares_what_it_needs_before_it_is_made():
    from functools import partial

    assert declared(LogisticMixture, "chains_colours")
    assert declared(partial(LogisticMixture, components=3), "chains_colours")
    assert not declared(partial(Categorical), "chains_colours")
    assert not declared(lambda **sizes: Categorical(**sizes), "chains_colours")
