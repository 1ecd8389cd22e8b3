"""Every latent Gaussian model, with every head, on domains whose images can be listed and whose z can be integrated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import zoo

from genlab.core import Completer, Features, ImageSpec, Latent, Likelihood, RequestError, Sampler, Trainable, to_steps

LISTED = {
    "2x2 binary": ImageSpec(1, 2, 2, 2),
    "1x2 RGB, 2 levels": ImageSpec(3, 1, 2, 2),
    "2x1, 4 levels": ImageSpec(1, 2, 1, 4),
}
ASKED = zoo.ASKED_LATENT
SOME = zoo.Hidden(ASKED, LISTED["2x2 binary"], "bernoulli")
EVERY = pytest.mark.parametrize("case", zoo.hidden(zoo.SPECS))
# Heads do not know the nets: the convolutional one is asked with one head of each kind of step.
LISTABLE = pytest.mark.parametrize(
    "case",
    [
        p
        for p in zoo.hidden(LISTED, asked_on_all=False)
        if p.values[0].model == ASKED or p.values[0].head in ("categorical", "logistic_mixture")
    ],
)


def grid(points: int = 40):
    """Gauss-Hermite nodes of standard normal noise of two dimensions: (N, 2) and log weights (N,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    z = torch.cartesian_prod(*[torch.from_numpy(nodes)] * 2)
    log_w = torch.from_numpy(weights / weights.sum()).log()
    return z, torch.cartesian_prod(log_w, log_w).sum(1)


@torch.no_grad()
def log_likelihoods(model, x):
    """log p(x | z) of every image and node (B, N), nats, and the nodes' log weights. A node is decoded once."""
    noise, log_w = grid()
    z = model.from_noise(noise)
    pixels = model._given_z(z, None)
    each = [pixels.log_prob(image.expand(len(z), -1, -1)).sum(1) for image in to_steps(x, model.step_channels)]
    return torch.stack(each), log_w


def wide(model):
    """q wider than the prior, so that no weight is huge and means converge."""
    rows = model.encoder.layers[-1]
    rows.weight.data[2:], rows.bias.data[2:] = 0, 0.4
    return model


def draws(n, x, of):
    """n draws (n, B) of something that `of` makes of every image, all in one batch."""
    return of(x.repeat(n, 1, 1, 1)).view(n, len(x))


def exact(model, x):
    """log p(x) (B,) nats, by quadrature."""
    found, log_w = log_likelihoods(model, x)
    return (found + log_w).logsumexp(1)


@EVERY
def test_protocols_shapes_and_integers_in_range(case):
    model = case.tiny()
    for protocol in (Trainable, Likelihood, Sampler, Completer, Features, Latent):
        assert isinstance(model, protocol)
    assert not model.exact
    x = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert x.shape == (5, *case.spec.shape)
    assert x.dtype == torch.long
    assert 0 <= x.min() <= x.max() < case.spec.levels
    assert torch.equal(x, model.sample(5, generator=torch.Generator().manual_seed(0)))
    assert model.log_prob(x).shape == model.objective(x)["loss"].shape == (5,)
    assert model.reconstruct(x).shape == x.shape
    assert list(model.features(x))[-1] == "code"
    cool = model.sample(5, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert 0 <= cool.min() <= cool.max() < case.spec.levels


@pytest.mark.slow
@LISTABLE
def test_probabilities_of_all_images_sum_to_one(case):
    model = case.tiny()
    assert exact(model, zoo.every_image(case.spec)).exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
@torch.no_grad()
@LISTABLE
def test_weights_are_unbiased_and_bounds_are_ordered(case):
    """The mean of w is p(x), within four standard errors; ELBO <= IWAE(10) <= IWAE(100) <= log p(x) of all images."""
    model, x = wide(case.tiny(scale=0.3)), zoo.every_image(case.spec)[::3]
    truth = exact(model, x)
    torch.manual_seed(0)
    log_w = draws(2000, x, model.log_prob)
    ratio = (log_w - truth).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() < 5 * error + 1e-3).all()
    bounds = [(log_w.view(-1, k, len(x)).logsumexp(1) - math.log(k)).mean(0) for k in (1, 10, 100)]
    noise = 5 * log_w.std().item() / math.sqrt(log_w.numel())
    for worse, better in zip(bounds, [*bounds[1:], truth], strict=True):
        assert worse.mean() < better.mean() + noise
    assert (truth - bounds[0]).mean() > 5e-3


@pytest.mark.slow
@torch.no_grad()
@LISTABLE
def test_the_loss_is_the_negative_elbo(case):
    """With the closed-form KL or with weights: the same number, with less noise."""
    model, x = case.tiny(), zoo.every_image(case.spec)[:8]
    torch.manual_seed(0)
    terms = {name: draws(2000, x, lambda x, name=name: model.objective(x)[name]) for name in ("loss", "rate")}
    sampled = -draws(2000, x, model.log_prob)
    error = (terms["loss"].var(0) + sampled.var(0)).div(2000).sqrt()
    assert ((terms["loss"].mean(0) - sampled.mean(0)).abs() < 4.5 * error + 1e-6).all()
    assert (terms["rate"] == terms["rate"][0]).all() == (case.prior == "normal")  # no noise in it


@pytest.mark.slow
@torch.no_grad()
@LISTABLE
def test_samples_follow_the_probabilities(case):
    model, n = case.tiny(seed=1), 100_000 if case.model == ASKED else 10_000
    p = exact(model, zoo.every_image(case.spec)).exp()
    found = zoo.histogram(model.sample(n, generator=torch.Generator().manual_seed(0)), case.spec)
    rare = p * n < 5
    expected = torch.cat([p[~rare] * n, p[rare].sum()[None] * n + 1e-9])
    seen = torch.cat([found[~rare], found[rare].sum()[None]])
    chi2 = ((seen - expected).square() / expected.clamp(min=5)).sum().item()
    freedom = len(expected) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "case",
    [  # the slower model once: both have the same completion
        p
        for p in zoo.hidden(LISTED)
        if p.values[0].head in (("bernoulli", "logistic_mixture") if p.values[0].model == ASKED else ("bernoulli",))
    ],
)
def test_completions_tend_to_the_conditional(case):
    """Of 64 particles an image; the known pixel comes last in raster order, which is all the same to these models."""
    model, every = case.tiny(seed=2), zoo.every_image(case.spec)
    known = torch.zeros(case.spec.height, case.spec.width, dtype=torch.bool)
    known[-1, -1] = True
    x, n = every[-1], 1500
    p = exact(model, every).exp() * (every[:, :, known] == x[:, known]).flatten(1).all(1)
    made = model.complete(
        x.expand(n, -1, -1, -1), known.expand(n, -1, -1), particles=64, generator=torch.Generator().manual_seed(0)
    )
    assert (made.images[:, :, known] == x[:, known]).all()
    assert (made.effective_particles >= 1).all()
    assert (made.effective_particles <= 64 + 1e-6).all()
    found = zoo.histogram(made.images, case.spec) / n
    assert (found - p / p.sum()).abs().sum() < 0.1


@torch.no_grad()
@EVERY
def test_known_pixels_never_change_and_seeds_decide(case):
    model, x = case.tiny(), zoo.random_images(case.spec, 3)
    known = torch.rand(3, *case.spec.shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5
    for particles in (1, 4):
        made, again, other = (
            model.complete(x, known, particles=particles, generator=torch.Generator().manual_seed(seed)).images
            for seed in (0, 0, 1)
        )
        assert torch.equal(made, again)
        assert not torch.equal(made, other)
        assert torch.equal(made.where(known[:, None], 0), x.where(known[:, None], 0))
    assert torch.equal(model.complete(x, torch.ones_like(known)).images, x)


@pytest.mark.parametrize("case", zoo.hidden(zoo.SPECS, ("none", "label", "image")))
def test_gradient_reaches_every_parameter_and_numbers_stay_float32_in_bf16(case):
    model, x = case.tiny(scale=0.3, dtype=torch.float).train(), zoo.random_images(case.spec, 4)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.objective(x, case.given(4))
        assert all(term.dtype == torch.float for term in terms.values())
    terms["loss"].mean().backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert not missing
    assert int(model.step) == 1


@torch.no_grad()
@pytest.mark.parametrize("case", zoo.hidden({"grey": zoo.GREY, "rgb": zoo.RGB}, ("label", "image")))
def test_a_context_changes_everything_and_must_be_there(case):
    model, x = case.tiny(), zoo.random_images(case.spec, 4)
    one, two = case.given(4), case.given(4, seed=1)

    def seeded():
        return torch.Generator().manual_seed(0)

    torch.manual_seed(0)
    first = model.log_prob(x, one)
    torch.manual_seed(0)
    assert (first != model.log_prob(x, two)).all()
    assert not torch.equal(
        model.decode(model.encode(x, context=one), one), model.decode(model.encode(x, context=one), two)
    )
    known = torch.rand(4, *case.spec.shape[1:]) < 0.5
    done = model.complete(x, known, context=one, particles=3, generator=seeded())
    assert torch.equal(done.images.where(known[:, None], 0), x.where(known[:, None], 0))
    assert torch.equal(
        model.sample(4, context=one, generator=seeded()), model.sample(4, context=one, generator=seeded())
    )
    for asked in (lambda: model.log_prob(x), lambda: model.sample(4), lambda: model.objective(x)):
        with pytest.raises(RequestError, match="conditioned on"):
            asked()
    plain = zoo.Hidden(case.model, case.spec, case.head).tiny()
    with pytest.raises(RequestError, match="unconditional"):
        plain.log_prob(x, one)


# ---- what trains


@torch.no_grad()
def test_an_average_of_elbos_with_closed_form_kl_is_no_bound():
    """The counterexample: "log p(x | z) - KL", averaged as if it were log w, exceeds log p(x).

    Here q is wider than the prior, and some images are likely far from z = 0 alone: the mean of p(x | z) over q is more
    than p(x), by more than the KL charges. The same draws of log w stay below.
    """
    model, x = wide(SOME.tiny(seed=2, scale=0.8)), zoo.every_image(SOME.spec)
    model.encoder.layers[-1].weight.data[:2], model.encoder.layers[-1].bias.data[:2] = 0, 0
    truth, n = exact(model, x), 4000
    torch.manual_seed(0)
    wrong = draws(n, x, lambda x: -model.objective(x)["loss"]).logsumexp(0) - math.log(n)
    torch.manual_seed(0)
    right = draws(n, x, model.log_prob).logsumexp(0) - math.log(n)
    assert (wrong - truth).max() > 0.4
    assert (right - truth).max() < 0.1


def gradients(model, x, seed):
    torch.manual_seed(seed)
    model.zero_grad()
    model.objective(x)["loss"].mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.slow
def test_dreg_has_the_decoders_gradient_of_iwae_and_on_average_the_encoders():
    x = zoo.every_image(SOME.spec)[3:9]
    iwae, dreg = (SOME.tiny(bound=bound, train_draws=4).train() for bound in ("iwae", "dreg"))
    sums = [{}, {}]
    for seed in range(200):
        found = [gradients(model, x, seed) for model in (iwae, dreg)]
        for name in found[0]:
            if name.startswith(("decoder", "head")):
                torch.testing.assert_close(found[0][name], found[1][name])
            else:
                for total, of in zip(sums, found, strict=True):
                    total.setdefault(name, []).append(of[name])
    assert sums[0]
    for name in sums[0]:
        plain, double = (torch.stack(total[name]) for total in sums)
        error = (plain - double).std(0) / math.sqrt(len(plain))
        assert ((plain - double).mean(0).abs() < 5 * error + 1e-9).all()


def test_dreg_is_still_where_q_is_right():
    """A decoder that ignores z, and q the prior: log w is the same for every z, and there is nothing to learn."""
    x = zoo.every_image(SOME.spec)[3:9]
    found = {}
    for bound in ("iwae", "dreg"):
        model = SOME.tiny(bound=bound, train_draws=4).train()
        for part in (model.encoder.layers[-1], model.decoder.layers[0]):
            part.weight.data.zero_()
            part.bias.data.zero_()
        found[bound] = gradients(model, x, 0)["encoder.layers.2.bias"]
    assert not found["dreg"].any()
    assert found["iwae"].any()


@pytest.mark.slow
def test_a_guess_trains_on_the_mean_alone_and_fits_the_widths_beside_it():
    x = zoo.every_image(SOME.spec)[3:9]
    model = SOME.tiny(inference="map").train()
    with torch.no_grad():
        z = model.encode(x)
    torch.manual_seed(0)
    terms = model.objective(x)
    expected = terms["distortion"] + (z.square() + math.log(2 * math.pi)).sum(1) / 2
    torch.testing.assert_close(terms["loss"].detach(), expected)
    first, second = gradients(model, x, 0), gradients(model, x, 1)
    for name in first:  # no noise reaches anything but the widths
        assert torch.equal(first[name], second[name]) == (name != "log_var"), name
    plain = torch.stack([gradients(model, x, seed)["log_var"] for seed in range(150)])
    model.eval()  # where the loss is the negative ELBO
    elbo = torch.stack([gradients(model, x, seed)["log_var"] for seed in range(150)])
    error = (plain.var(0) + elbo.var(0)).div(150).sqrt()
    assert ((plain.mean(0) - elbo.mean(0)).abs() < 4.5 * error).all()


def test_what_training_pays_for_the_kl():
    x = zoo.every_image(SOME.spec)
    for changes, price in (
        ({"beta": 0.5}, lambda kl, step: 0.5 * kl.sum(1)),
        ({"warm_up": 4}, lambda kl, step: min(1, step / 4) * kl.sum(1)),
        ({"free_bits": 0.2}, lambda kl, step: torch.where(kl.mean(0) > 0.2, kl, 0.2).sum(1)),
    ):
        model = SOME.tiny(**changes).train()
        for step in range(1, 7):
            torch.manual_seed(step)
            terms = model.objective(x)
            mean, log_var = model.posterior(x)
            kl = (mean.square() + log_var.exp() - 1 - log_var) / 2
            torch.testing.assert_close(terms["loss"], terms["distortion"] + price(kl, step))
        torch.manual_seed(0)
        terms = model.eval().objective(x)
        torch.testing.assert_close(terms["loss"], terms["distortion"] + terms["rate"])
        assert int(model.step) == 6


def test_free_bits_have_no_gradient():
    model = SOME.tiny(free_bits=1e6, scale=0.1).train()
    x = zoo.every_image(SOME.spec)
    terms = model.objective(x)
    (terms["loss"] - terms["distortion"]).detach()
    price = model.bound.price(model.posterior(x)[0].square() / 2, model.step)
    assert (
        not price.requires_grad
        or not torch.autograd.grad(price.sum(), model.encoder.layers[-1].bias, allow_unused=True)[0].any()
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"head": None}, "p\\(x | z\\)"),
        ({"latent_dim": 0}, "1 or more"),
        ({"bound": "best"}, "elbo|iwae|dreg"),
        ({"inference": "guess"}, "posterior|map"),
        ({"beta": -1.0}, "0 or more"),
        ({"bound": "iwae"}, "2 or more"),
        ({"train_draws": 3}, "elbo takes 1"),
        ({"bound": "iwae", "train_draws": 2, "beta": 2.0}, "bound=elbo"),
        ({"inference": "map", "warm_up": 3}, "bound=elbo"),
        ({"inference": "map", "bound": "dreg", "train_draws": 2}, "one z for each image"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        SOME.tiny(**changes)
