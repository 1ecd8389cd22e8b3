"""Gaussian mixtures: EM is EM, masses sum to 1, conditionals and samples are those of the probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from scipy.stats import multivariate_normal, norm
from sklearn.mixture import GaussianMixture as Reference
from trainees import Crash, checkpoint, config, outcome, same, trained

from genlab.core import Completer, Features, Filters, Fitted, ImageSpec, Likelihood, Primed, RequestError, Sampler
from genlab.measure.bits import log_marginal
from genlab.models import GaussianMixture
from genlab.models.gaussians import Cells, Full, LowRank, log_mass
from genlab.processes import resume

LISTED = ImageSpec(1, 2, 2, 4)
PAIR = ImageSpec(1, 1, 2, 4)
KINDS = {
    "cells": {"pixels": "discretised"},
    "diagonal": {"pixels": "dequantised"},
    "full": {"pixels": "dequantised", "covariance": "full"},
    "low_rank": {"pixels": "dequantised", "covariance": "low_rank", "rank": 1},
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture(kind, spec=LISTED, components=3, seed=0, **changes):
    """Components that differ, of about half the range in width; float64."""
    torch.manual_seed(seed)
    made = GaussianMixture(spec, components=components, **(KINDS[kind] | changes)).double().eval()
    with torch.no_grad():
        made.logits.normal_()
        made.gaussians.means.uniform_(0.1, 0.9)
        made.gaussians.log_std.uniform_(-2.3, -1.5)
        for extra in ("lower", "loadings"):
            if hasattr(made.gaussians, extra):
                getattr(made.gaussians, extra).normal_(0, 0.15)
    return made


def covariances(made):
    """Of every component, (M, D, D), in units of the range."""
    g, s = made.gaussians, made.gaussians.deviation()
    if isinstance(g, Full):
        return torch.stack([t @ t.T for t in map(g.triangle, range(len(s)))])
    own = torch.diag_embed(s.square())
    return own + g.loadings @ g.loadings.mT if isinstance(g, LowRank) else own


def components(made):
    """(probability, mean, covariance) of each, for scipy."""
    of = made.logits.softmax(0), made.gaussians.means, covariances(made)
    return zip(*(part.detach().numpy() for part in of), strict=True)


def images(spec, n=300, seed=0):
    """Images around a few centres."""
    g = seeded(seed)
    centres = torch.rand(4, *spec.shape, generator=g) * spec.levels
    x = centres[torch.randint(4, (n,), generator=g)] + 0.12 * spec.levels * torch.randn(n, *spec.shape, generator=g)
    return x.round().clamp(0, spec.levels - 1).long()


# ---- probabilities


def test_masses_sum_to_one_and_are_those_of_the_normal_distribution():
    mean, s = torch.linspace(-0.5, 1.5, 7).double(), torch.tensor([1e-3, 0.05, 0.4, 3.0]).double()
    x = torch.arange(8)
    log_p = log_mass(x, mean[:, None, None], s[:, None], 8)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(7, 4).double(), rtol=0, atol=1e-12)
    edges = np.r_[-np.inf, np.arange(1, 8) / 8, np.inf]
    cdf = norm.cdf((edges - mean.numpy()[:, None, None]) / s.numpy()[:, None])
    np.testing.assert_allclose(log_p.exp().numpy(), np.diff(cdf), atol=1e-12)
    assert log_mass(x, torch.tensor(0.5), torch.tensor(1e-3), 8).isfinite().all()  # 400 deviations away


def test_masses_have_the_gradient_that_they_should():
    mean, s = (v.double().requires_grad_() for v in (torch.rand(3, 1), 0.05 + torch.rand(3, 1)))
    assert torch.autograd.gradcheck(lambda m, d: log_mass(torch.arange(5), m, d, 5), (mean, s))


@pytest.mark.parametrize("spec", zoo.LISTABLE.values(), ids=list(zoo.LISTABLE))
def test_probabilities_of_all_images_sum_to_one(spec):
    made = mixture("cells", spec)
    assert made.exact
    assert made.log_prob(zoo.every_image(spec)).exp().sum().item() == pytest.approx(1, abs=1e-9)


@EVERY
def test_log_prob_is_the_density_of_scipy(kind):
    """A mass is compared with the density in the middle of a narrow cell."""
    spec = ImageSpec(1, 2, 2, 256) if kind == "cells" else LISTED
    made, x = mixture(kind, spec), zoo.random_images(spec, 20)
    torch.manual_seed(4)
    found = made.log_prob(x)
    torch.manual_seed(4)
    u = 0.5 if kind == "cells" else torch.rand(x.shape)
    y = ((x.double() + u) / spec.levels).flatten(1)
    x_inside = ((x > 0) & (x < spec.levels - 1)).flatten(1).all(1)
    parts = [p * multivariate_normal(mean, cov).pdf(y) for p, mean, cov in components(made)]
    expected = torch.from_numpy(np.sum(parts, 0)).log() - spec.dims * np.log(spec.levels)
    tolerance = 1e-3 if kind == "cells" else 1e-9
    torch.testing.assert_close(found.detach()[x_inside], expected[x_inside], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["diagonal", "full", "low_rank"])
def test_dequantised_pixels_are_bounded_by_the_mass_of_their_cells(kind):
    made, x = mixture(kind, PAIR), zoo.every_image(PAIR)
    assert not made.exact
    torch.manual_seed(0)
    with torch.no_grad():
        log_w = made.log_prob(x.repeat(40000, 1, 1, 1)).view(40000, -1)  # draws of u, all at once
    exact = torch.from_numpy(np.log(cell_masses(made)).flatten())
    torch.testing.assert_close(log_w.logsumexp(0) - np.log(40000), exact, rtol=0, atol=0.03)
    assert (log_w.mean(0) < exact).all()
    assert exact.exp().sum() < 1


def cell_masses(made, tails=(False, False)):
    """P of every image of two pixels, (K, K), by scipy; `tails`: whether the outermost cells of a pixel take them."""
    k = PAIR.levels
    edges = [np.r_[-9.0 if tail else 0, np.arange(1, k) / k, 10.0 if tail else 1] for tail in tails]
    total = np.zeros((k, k))
    for p, mean, cov in components(made):
        corner = [[multivariate_normal(mean, cov).cdf([a, b]) for b in edges[1]] for a in edges[0]]
        total += p * np.diff(np.diff(corner, axis=0), axis=1)
    return total


def test_low_rank_is_the_full_covariance_with_the_same_matrix():
    low = mixture("low_rank", rank=2)
    full = mixture("full")
    full.load_state_dict(full.state_dict() | {"logits": low.logits, "gaussians.means": low.gaussians.means})
    with torch.no_grad():
        for m, covariance in enumerate(covariances(low)):
            triangle = torch.linalg.cholesky(covariance)
            full.gaussians.keep(m, low.gaussians.means[m], triangle.diagonal().square())
            full.gaussians.lower[m] = triangle
    y = torch.rand(6, 4).double()
    for at in (torch.arange(4), torch.tensor([2]), torch.tensor([0, 3])):
        one, other = (made.gaussians.log_density(y[:, at], at, 0.7) for made in (low, full))
        torch.testing.assert_close(one, other)
    at, which = torch.tensor([1, 2]), torch.arange(3).repeat_interleave(4000)
    v = torch.tensor([0.2, 0.9]).double().expand(len(which), 2)
    a, b = (
        made.gaussians.complete(
            v, at, which, torch.randn(len(which), made.gaussians.noise_size, generator=seeded()).double(), 0.7
        )
        for made in (low, full)
    )
    for m in range(3):
        torch.testing.assert_close(a[which == m].mean(0), b[which == m].mean(0), rtol=0, atol=0.02)
        torch.testing.assert_close(a[which == m].T.cov(), b[which == m].T.cov(), rtol=0, atol=0.01)
    conditional = b[which == 0][:, [0, 3]]
    c, known, rest = covariances(full)[0], [1, 2], [0, 3]
    gain = c[rest][:, known] @ torch.linalg.inv(c[known][:, known])
    mean = full.gaussians.means[0]
    torch.testing.assert_close(
        conditional.mean(0), mean[rest] + gain @ (v[0] - mean[known]), rtol=0, atol=0.02
    )  # fmt: skip
    expected = 0.7 * (c[rest][:, rest] - gain @ c[known][:, rest])
    torch.testing.assert_close(conditional.T.cov(), expected, rtol=0, atol=0.01)


# ---- samples and completions


def test_samples_follow_the_probabilities():
    made = mixture("cells")
    drawn = zoo.histogram(made.sample(20000, generator=seeded()), LISTED) / 20000
    assert (drawn - made.log_prob(zoo.every_image(LISTED)).exp()).abs().sum() / 2 < 0.05


@pytest.mark.parametrize("kind", ["full", "low_rank"])
def test_samples_follow_the_density(kind):
    """Tails are put at black and white."""
    made = mixture(kind, PAIR)
    drawn = zoo.histogram(made.sample(20000, generator=seeded()), PAIR).view(4, 4) / 20000
    assert (drawn - torch.from_numpy(cell_masses(made, (True, True)))).abs().sum() / 2 < 0.02


@pytest.mark.parametrize("position", range(4))
def test_completions_of_cells_follow_the_conditional(position):
    """By brute force over all images, whichever pixel is known, without particles."""
    made, n = mixture("cells"), 4000
    assert made.completion == "exact"
    x = made.sample(1, generator=seeded(position))
    known = torch.zeros(n, 2, 2, dtype=torch.bool)
    known.view(n, 4)[:, position] = True
    done = made.complete(x.expand(n, -1, -1, -1), known, generator=seeded(5))
    assert done.effective_particles is None
    every = zoo.every_image(LISTED)
    p = made.log_prob(every).exp() * (every == x).flatten(1)[:, position]
    assert (zoo.histogram(done.images, LISTED) / n - p / p.sum()).abs().sum() / 2 < 0.05


@pytest.mark.parametrize("kind", ["diagonal", "full", "low_rank"])
def test_completions_of_dequantised_pixels_find_the_conditional(kind):
    made, n = mixture(kind, PAIR), 4000
    assert made.completion == "weighted"
    known = torch.zeros(n, 1, 2, dtype=torch.bool)
    known[..., 0] = True
    table = torch.from_numpy(cell_masses(made, (False, True)))
    for value in range(4):
        x = torch.tensor([value, 0]).view(1, 1, 1, 2).expand(n, -1, -1, -1)
        done = made.complete(x, known, particles=32, generator=seeded(5))
        drawn = zoo.histogram(done.images, PAIR).view(4, 4)[value] / n
        assert (drawn - table[value] / table[value].sum()).abs().sum() / 2 < 0.03
        assert (done.effective_particles < 32).all()
        assert (done.effective_particles > 1).all()


@EVERY
def test_known_pixels_never_change_and_an_image_does_not_depend_on_the_others(kind):
    made, x = mixture(kind, zoo.RGB), zoo.random_images(zoo.RGB, 4)
    known = torch.rand(4, 3, 5, generator=seeded()) < 0.5
    known[3], known[2] = False, True
    done = made.complete(x, known, particles=3, generator=seeded()).images
    keep = known[:, None].expand_as(x)
    assert torch.equal(done[keep], x[keep])
    assert torch.equal(done[2], x[2])
    assert done.min() >= 0
    assert done.max() < zoo.RGB.levels
    same_mask = made.complete(x, known[:1].expand(4, -1, -1), particles=3, generator=seeded()).images
    assert torch.equal(same_mask[0], done[0])
    one, again, other = (made.sample(6, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@EVERY
def test_temperature_scales_covariances(kind):
    made = mixture(kind, ImageSpec(1, 2, 2, 256), components=1)
    with torch.no_grad():
        made.gaussians.means.fill_(0.5)
    for temperature in (0.1, 0.2):
        y = made.sample(20000, temperature=temperature, generator=seeded()).flatten(1).double() / 256
        torch.testing.assert_close(y.T.cov(), temperature * covariances(made)[0].detach(), rtol=0, atol=2e-3)


@EVERY
def test_protocols_and_responsibilities(kind):
    made, x = mixture(kind), zoo.random_images(LISTED, 5)
    for protocol in (Likelihood, Sampler, Completer, Features, Filters, Fitted, Primed):
        assert isinstance(made, protocol)
    r = made.features(x)["responsibilities"]
    assert r.shape == (5, 3)
    torch.testing.assert_close(r.sum(1), torch.ones(5).double())
    assert torch.equal(r, made.features(x)["responsibilities"])
    assert made.filters().shape == (3, *LISTED.shape)
    with pytest.raises(RequestError, match="unconditional"):
        made.log_prob(x, torch.zeros(5))


# ---- EM (T21)


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("floor", [1e-3, 0.15])
def test_em_never_lowers_the_log_likelihood(kind, floor):
    spec = ImageSpec(1, 3, 3, 16)
    torch.manual_seed(1)
    made = GaussianMixture(spec, components=5, floor=floor, **KINDS[kind]).double()
    x = images(spec)
    made.prime(x, seed=3)
    nats = torch.stack([-made.fit_step(x, seed=3)["loss"].mean() for _ in range(15)])
    assert (nats.diff() > -1e-9).all()
    assert nats[-1] > nats[0] + 1e-3
    assert made.gaussians.deviation().min() >= floor
    assert made.logits.softmax(0).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_em_is_that_of_scikit_learn_from_the_same_start(kind):
    spec, steps = ImageSpec(1, 2, 3, 16), 7
    made, x = mixture(kind, spec, floor=1e-6), images(spec)
    y = made._values(x, seeded(9)).numpy()
    precisions = torch.linalg.inv(covariances(made)).detach()
    if kind == "diagonal":
        precisions = precisions.diagonal(dim1=1, dim2=2)
    reference = Reference(
        3, covariance_type="diag" if kind == "diagonal" else "full", tol=0, reg_covar=0, max_iter=steps,
        weights_init=made.logits.softmax(0).tolist(), means_init=made.gaussians.means.detach().numpy(),
        precisions_init=precisions.numpy(),
    )  # fmt: skip
    with pytest.warns(match="did not converge"):
        reference.fit(y)
    losses = [made.fit_step(x, seed=9)["loss"] for _ in range(steps)]
    np.testing.assert_allclose(made.logits.softmax(0).detach(), reference.weights_, rtol=1e-6)
    np.testing.assert_allclose(made.gaussians.means.detach(), reference.means_, rtol=1e-6)
    found = covariances(made).detach()
    found = found.diagonal(dim1=1, dim2=2) if kind == "diagonal" else found
    np.testing.assert_allclose(found, reference.covariances_, rtol=1e-5, atol=1e-9)
    in_levels = -losses[-1].mean().item() + spec.dims * np.log(spec.levels)  # scikit-learn's is before the last M step
    assert in_levels == pytest.approx(reference.lower_bound_, rel=1e-9)


@pytest.mark.slow
@EVERY
def test_em_ends_where_the_gradient_vanishes(kind):
    spec = ImageSpec(1, 2, 2, 16)
    made, x = GaussianMixture(spec, components=2, floor=1e-3, **KINDS[kind]).double(), images(spec, 100)
    made.prime(x, seed=0)
    for _ in range(200):
        made.fit_step(x, seed=0)
    nats = made._log_joint(made._values(x, seeded(0))).logsumexp(1).mean()
    nats.backward()
    assert all(p.grad.abs().max() < 1e-3 for p in made.parameters())


@pytest.mark.slow
@EVERY
def test_gradient_training_finds_a_likelihood_near_that_of_em(kind):
    spec = ImageSpec(1, 2, 2, 16)
    x, nats = images(spec), {}
    torch.manual_seed(0)
    by_gradient = GaussianMixture(spec, components=4, fit="gradient", floor=0.02, **KINDS[kind])
    assert not by_gradient.fitted
    by_gradient.prime(x, seed=0)
    optimiser = torch.optim.Adam(by_gradient.parameters(), lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        by_gradient.objective(x)["loss"].mean().backward()
        optimiser.step()
    by_em = GaussianMixture(spec, components=4, floor=0.02, **KINDS[kind])
    by_em.prime(x, seed=0)
    for _ in range(40):
        by_em.fit_step(x, seed=0)
    with torch.no_grad():
        nats = {m: log_marginal(m, x, draws=50).mean().item() for m in (by_gradient, by_em)}
    assert nats[by_gradient] > nats[by_em] - 0.5


def test_a_start_is_a_function_of_the_images_and_the_seed():
    x = images(LISTED)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(GaussianMixture(LISTED, components=3))
        made[-1].prime(x, seed=5)
    for name, value in made[0].state_dict().items():
        assert torch.equal(value, made[1].state_dict()[name])
    assert made[0].log_prob(x).mean() > GaussianMixture(LISTED, components=3).log_prob(x).mean() + 0.5


def test_components_without_images_are_left_alone():
    made = GaussianMixture(LISTED, components=4).double()
    x = torch.zeros(20, 1, 2, 2, dtype=torch.long)
    made.prime(x, seed=0)
    for _ in range(3):
        loss = made.fit_step(x, seed=0)["loss"]
    assert loss.isfinite().all()
    assert all(p.isfinite().all() for p in made.parameters())


# ---- in a run


def mixed(**changes):
    model = {"_target_": "genlab.models.GaussianMixture", "components": 3, "floor": 0.05}
    return {f"model__{key}": value for key, value in model.items()} | {
        "names__model": "gaussian_mixture", "train__log_every": 1
    } | changes  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "batch"), [("cells", 2), ("low_rank", 7)])
def test_a_run_by_em_that_was_killed_and_resumed_is_the_run_that_was_not(tmp_path, kind, batch):
    changes = mixed(**{f"model__{key}": value for key, value in KINDS[kind].items()})
    whole = outcome(trained(tmp_path / "whole", **changes))
    with pytest.raises(Crash):
        trained(tmp_path / "run", data__crash_at=batch, **changes)
    from omegaconf import OmegaConf

    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(config(**changes)))
    resume.run(tmp_path / "run", ["trust=[trainees]"], "genlab resume")
    same(outcome(tmp_path / "run"), whole)
    assert whole["results"]["test"]["weights"] == "raw"
    assert checkpoint(tmp_path / "run")["genlab"]["step"] == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer__accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        ({"trainer__devices": 2, "trainer__strategy": "ddp"}, "devices=2"),
        ({"data__binarize": "dynamic"}, "binarize=dynamic"),
        ({"data__augment": "hflip"}, "augment=hflip"),
        ({"model__covariance": "full"}, "pixels=dequantised"),
        ({"model__covariance": "ful"}, "not known"),
        ({"model__floor": 0}, "floor above 0"),
        ({"model__covariance": "low_rank", "model__pixels": "dequantised", "model__rank": 16}, "rank=16"),
    ],
)
def test_wrong_requests_are_one_sentence_and_leave_nothing(tmp_path, changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        trained(tmp_path / "run", **mixed(**changes))
    assert not (tmp_path / "run").exists()


def test_a_mixture_trained_by_gradient_is_an_ordinary_run(tmp_path):
    folder = trained(tmp_path / "run", **mixed(model__fit="gradient"))
    assert outcome(folder)["results"]["test"]["weights"] == "ema"
    assert isinstance(GaussianMixture(LISTED).gaussians, Cells)
