"""Probabilistic PCA: where a bound can be held against the truth (oracles T14, T15)."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import multivariate_normal

from genlab.core import Completer, Features, ImageSpec, Latent, Likelihood, RequestError, Sampler
from genlab.models import PPCA

SPEC = ImageSpec(1, 2, 3, 256)


def made(inference="exact", seed=0, latent_dim=2, spec=SPEC):
    torch.manual_seed(seed)
    model = PPCA(spec, latent_dim=latent_dim, inference=inference).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3) if name != "log_sigma" else p.fill_(-1.5)
        model.mean += 0.5
    return model


def images(n, seed=0, spec=SPEC):
    """Correlated values well inside the range, (n, C, H, W)."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(spec.dims, spec.dims, generator=torch.Generator().manual_seed(9)).double()
    y = 0.5 + 0.03 * (torch.randn(n, spec.dims, generator=random).double() @ mix.T)
    return (y * spec.levels).floor().clamp(0, spec.levels - 1).long().view(-1, *spec.shape)


@torch.no_grad()
def test_density_is_that_of_the_multivariate_normal():
    model, y = made(), torch.rand(7, 6).double()
    covariance = model.loadings @ model.loadings.T + (2 * model.log_sigma).exp() * torch.eye(6)
    truth = multivariate_normal.logpdf(y.numpy(), model.mean.numpy(), covariance.numpy())
    torch.testing.assert_close(model.log_density(y), torch.from_numpy(truth) - 6 * math.log(256))


@torch.no_grad()
def test_bounds_are_ordered_below_the_truth():
    """T14: ELBO <= IWAE(5) <= IWAE(50) <= IWAE(500) <= exact, of the same y."""
    model = made("encoder")
    y = torch.rand(50, 6).double()
    torch.manual_seed(0)
    log_w = model.log_weight(y.repeat(2000, 1)).view(2000, 50)
    bounds = [(log_w.view(-1, k, 50).logsumexp(1) - math.log(k)).mean().item() for k in (1, 5, 50, 500)]
    bounds.append(model.log_density(y).mean().item())
    assert bounds == sorted(bounds)
    assert bounds[-1] - bounds[0] > 0.1


@torch.no_grad()
def test_rate_and_distortion_of_exact_inference():
    """With one unit the exact posterior is what `posterior` says, and the rate its KL from the prior."""
    model, x = made(latent_dim=1), images(6)
    model.dequantised = lambda x: ((x + 0.5) / 256).flatten(1)
    terms, (mean, log_var) = model.objective(x), model.posterior(x)
    kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2
    torch.testing.assert_close(terms["rate"], kl)
    nodes = mean + (log_var / 2).exp() * torch.randn(4000, 6, 1)
    each = torch.stack([model._conditional(model.dequantised(x), z) for z in nodes])
    assert torch.allclose(-each.mean(0), terms["distortion"], atol=0.1)


@torch.no_grad()
def test_with_the_true_posterior_every_weight_is_the_density():
    """T14: W with orthogonal columns has a posterior of independent units, which the encoder can be."""
    model = made("encoder")
    model.loadings[:] = torch.linalg.qr(model.loadings).Q * torch.tensor([0.5, 0.2])
    s2 = (2 * model.log_sigma).exp()
    m = model.loadings.square().sum(0) + s2
    model.encoder.weight[:] = (model.loadings / m).T
    model.encoder.bias[:] = model.encoder.weight @ (0.5 - model.mean)
    model.log_var[:] = (s2 / m).log()
    y = torch.rand(50, 6).double()
    torch.testing.assert_close(model.log_weight(y), model.log_density(y), rtol=0, atol=1e-11)
    mean, log_var = model.posterior(images(5))
    model.inference = "exact"
    for found, truth in zip((mean, log_var), model.posterior(images(5)), strict=True):
        torch.testing.assert_close(found, truth)


@pytest.mark.slow
@pytest.mark.parametrize(("inference", "steps"), [("exact", 300), ("encoder", 700)])
def test_training_ends_at_the_maximum_that_is_known(inference, steps):
    """T15: s^2 is the mean of the trailing eigenvalues; the likelihood is that of the closed form within 1e-2 nats."""
    model, x = made(inference), images(2000)
    torch.manual_seed(0)
    y = model.dequantised(x)
    values = torch.linalg.eigvalsh(torch.cov(y.T, correction=0))
    s2, kept = values[:4].mean(), values[4:]
    best = -(kept.log().sum() + 4 * s2.log() + 6 + 6 * math.log(2 * math.pi)) / 2 - 6 * math.log(256)
    model.dequantised = lambda _: y
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        optimiser.zero_grad()
        model.objective(x)["loss"].mean().backward()
        optimiser.step()
    with torch.no_grad():
        assert abs(model.log_density(y).mean().item() - best.item()) < 1e-2
        assert model.log_sigma.exp().item() == pytest.approx(s2.sqrt().item(), rel=0.01)
        gap = model.log_density(y).mean() - (-model.objective(x)["loss"].mean())
        assert abs(gap.item()) < 0.03  # the encoder's bound has become tight


@torch.no_grad()
def test_log_prob_draws_weights_whose_mean_is_the_mass_of_a_cell():
    """One value of 4 levels: the mass of [x, x + 1) by the normal distribution function."""
    spec = ImageSpec(1, 1, 2, 4)
    for inference in ("exact", "encoder"):
        model = PPCA(spec, latent_dim=1, inference=inference).double()
        model.loadings[:] = torch.tensor([[0.2], [0.0]]).double()
        model.mean.fill_(0.45)
        model.log_sigma.fill_(math.log(0.2))
        x = torch.tensor([1, 2]).view(1, 1, 1, 2)
        torch.manual_seed(0)
        w = model.log_prob(x.expand(200_000, -1, -1, -1)).exp()
        normal = torch.distributions.Normal(0.45, torch.tensor([0.08**0.5, 0.2]).double())
        cell = normal.cdf((x.flatten() + 1) / 4) - normal.cdf(x.flatten() / 4)
        assert w.mean().item() == pytest.approx(cell.prod().item(), rel=0.02)


@torch.no_grad()
def test_samples_have_the_models_moments():
    model = made()
    x = model.sample(40_000, generator=torch.Generator().manual_seed(0)).flatten(1).double() / 256
    inside = (model.mean > 0.3) & (model.mean < 0.7)
    spread = (model.loadings.square().sum(1) + (2 * model.log_sigma).exp()).sqrt()
    assert inside.any()
    clipped = torch.distributions.Normal(model.mean, spread).sample((200_000,)).clamp(0, 1).mean(0)
    assert torch.allclose(x.mean(0), clipped, atol=0.01)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_multiplies_the_covariance(temperature):
    model, n = made(), 40_000
    model.loadings *= 0.2
    model.log_sigma.fill_(math.log(0.03))
    model.mean.fill_(0.5)
    y = model.sample(n, temperature=temperature, seed=0).flatten(1).double() / 256
    covariance = model.loadings @ model.loadings.T + (2 * model.log_sigma).exp() * torch.eye(6)
    assert torch.allclose(torch.cov(y.T), temperature * covariance, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_completions_are_those_of_the_conditional_gaussian(temperature):
    model, n = made(), 40_000
    model.loadings *= 0.2
    model.log_sigma.fill_(math.log(0.03))
    model.mean.fill_(0.5)
    known = torch.tensor([[True, False, True], [False, False, True]])
    x = torch.full((1, 1, 2, 3), 140)
    covariance = model.loadings @ model.loadings.T + (2 * model.log_sigma).exp() * torch.eye(6)
    a, b = known.flatten(), ~known.flatten()
    gain = covariance[b][:, a] @ torch.linalg.inv(covariance[a][:, a])
    mean = 0.5 + gain @ torch.full((3,), 140.5 / 256 - 0.5).double()
    spread = covariance[b][:, b] - gain @ covariance[a][:, b]
    made_ = model.complete(x.expand(n, -1, -1, -1), known.expand(n, -1, -1), temperature=temperature, seed=0).images
    assert (made_[:, 0, known] == 140).all()
    y = (made_[:, 0, ~known].double() + 0.5) / 256
    assert torch.allclose(y.mean(0), mean, atol=2e-3)
    assert torch.allclose(torch.cov(y.T), temperature * spread, atol=1e-4)


def test_protocols_and_refusals():
    model = made("encoder").float()
    for protocol in (Likelihood, Sampler, Completer, Features, Latent):
        assert isinstance(model, protocol)
    assert model.completion.startswith("approximate: ")  # known values are not drawn from their density in the cell
    first, again = (model.sample(4, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert model.features(images(3))["code"].shape == (3, 2)
    with pytest.raises(RequestError, match="exact or encoder"):
        PPCA(SPEC, latent_dim=2, inference="posterior")
    with pytest.raises(RequestError, match="fewer than the 6"):
        PPCA(SPEC, latent_dim=6)
