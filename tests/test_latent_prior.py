"""The prior of a latent Gaussian model: a causal density of z, from which z is drawn, and which begins at N(0, I)."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import zoo

from genlab import cli
from genlab.coding.bit_stack import BitStack
from genlab.coding.bits_back import CELL, _pop_latents, _push_latents
from genlab.core import ImageSpec, RequestError
from genlab.models.latent_bound import Bound
from genlab.models.latent_prior import LatentPrior, log_normal
from genlab.nets import RealMADE
from genlab.viz import representations
from genlab.viz.pictures import MANIFOLD_SIDE

SPEC = ImageSpec(1, 2, 2, 2)
CASE = zoo.Hidden("latent_gaussian", SPEC, "bernoulli", prior="autoregressive")
NORMAL = zoo.Hidden("latent_gaussian", SPEC, "bernoulli")


def prior(units, scale=0.5, seed=0, width=12):
    """One with random weights of that scale everywhere, in double precision."""
    made = LatentPrior(units, partial(RealMADE, width=width, depth=2)).double()
    generator = torch.Generator().manual_seed(seed)
    for p in made.parameters():
        p.data = scale * torch.randn(p.shape, generator=generator, dtype=torch.double)
    return made


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("units", [1, 2])
def test_the_density_integrates_to_one(units, temperature):
    axis = torch.linspace(-25, 25, 1001, dtype=torch.double)
    z = torch.cartesian_prod(*[axis] * units).view(-1, units)
    made = prior(units, scale=0.3)
    mass = made.log_prob(z, temperature).exp().sum() * (axis[1] - axis[0]) ** units
    assert mass.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("units", [1, 2, 7])
def test_a_unit_is_given_the_earlier_units_alone_and_all_of_them(units):
    made = prior(units, width=60)
    for which in (0, 1):  # the mean, the log-variance
        slopes = sum(
            torch.autograd.functional.jacobian(lambda z: made.conditionals(z)[which], z).abs()  # noqa: B023
            for z in noise(20, units)
        )
        assert not slopes.triu().any()
        assert (slopes.tril(-1) != 0).sum() == units * (units - 1) / 2


@torch.no_grad()
def test_z_and_its_noise_are_one_another_and_the_density_is_that_of_the_noise():
    made, e = prior(5), noise(8, 3, 5)
    z = made.from_noise(e)
    torch.testing.assert_close(made.noise_of(z)[0], e)
    for one, of_one in zip(z.view(-1, 5)[:3], e.view(-1, 5)[:3], strict=True):
        slopes = torch.autograd.functional.jacobian(lambda z: made.noise_of(z)[0], one)
        torch.testing.assert_close(made.log_prob(one), log_normal(of_one) + slopes.logdet())


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_density(temperature):
    """The share of draws in each of 100 cells of the plane is the integral of the density over it."""
    model, n, side, fine = CASE.tiny(), 40_000, 10, 40
    z = model.prior(n, temperature=temperature, generator=torch.Generator().manual_seed(0))
    inner = [z[:, i].quantile(torch.tensor([0.02, 0.98], dtype=torch.double)).tolist() for i in range(2)]
    steps = [(high - low) / side for low, high in inner]
    at = [
        low + step * (torch.arange(side * fine).double() + 0.5) / fine
        for (low, _), step in zip(inner, steps, strict=True)
    ]
    density = model.latent_prior.log_prob(torch.cartesian_prod(*at), temperature).exp()
    blocks = density.view(side, fine, side, fine).mean((1, 3)) * steps[0] * steps[1]
    cell = torch.stack([((z[:, i] - inner[i][0]) / steps[i]).floor().long() for i in range(2)], 1)
    inside = ((cell >= 0) & (cell < side)).all(1)
    seen = torch.bincount(cell[inside] @ torch.tensor([side, 1]), minlength=side**2).view(side, side)
    expected = blocks * n
    assert inside.double().mean() > 0.8
    assert (((seen - expected).square() / expected.clamp(min=5)).sum()) < side**2 + 5 * math.sqrt(2 * side**2)


@torch.no_grad()
def test_the_mean_weight_is_the_probability_by_quadrature_over_z_itself():
    """Not over the noise, so the network is on the other side of the equation: E[w] = integral of p(x | z) p(z)."""
    model, x = CASE.tiny(scale=0.4), zoo.every_image(SPEC)
    rows = model.encoder.layers[-1]
    rows.weight[2:], rows.bias[2:] = 0, 0.4  # q as wide as the prior or wider: no weight is huge
    axis = torch.linspace(-12, 12, 241, dtype=torch.double)
    z = torch.cartesian_prod(axis, axis)
    log_cell = model.latent_prior.log_prob(z) + 2 * math.log(axis[1] - axis[0])
    pixels = model.pixels_given(z)
    truth = torch.stack(
        [(pixels.log_prob(each.view(-1, 1).expand(len(z), -1, -1)).sum(1) + log_cell).logsumexp(0) for each in x]
    )
    assert truth.exp().sum().item() == pytest.approx(1, abs=1e-6)
    torch.manual_seed(0)
    ratio = (model.log_prob(x.repeat(20_000, 1, 1, 1)).view(-1, len(x)) - truth).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert error.max() < 0.05
    assert ((ratio.mean(0) - 1).abs() < 4.5 * error).all()


@torch.no_grad()
def test_completions_are_those_of_the_tempered_prior():
    """One pixel is to be drawn given three, at T = 0.5, under a prior that is far from N(0, I). The pixels' logit is
    the sum of z, so that the known ones say much about it.
    """
    model, every, t, n = CASE.tiny(scale=0.3), zoo.every_image(SPEC), 0.5, 8000
    model.latent_prior.net.layers[-1].bias.copy_(torch.tensor([-1.0, -0.5, 1.0, 0.5]))  # means, log-variances
    model._decoded = lambda z, condition: z.sum(1)[:, None, None].expand(-1, SPEC.dims, model.head.proj.in_features)
    model.head.proj.weight.fill_(1 / model.head.proj.in_features)
    model.head.proj.bias.zero_()
    z = model.from_noise(math.sqrt(t) * noise(200_000, 2))
    each = torch.stack([model._log_likelihood(x.expand(len(z), -1, -1, -1), z, None, t).sum(1) for x in every[-2:]])
    share = each.exp().mean(1)
    known = torch.tensor([[True, True], [True, False]])
    made = model.complete(every[-1].expand(n, -1, -1, -1), known.expand(n, -1, -1), particles=64, temperature=t, seed=0)
    found = zoo.histogram(made.images, SPEC)[-2:] / n
    assert (found - share / share.sum()).abs().max() < 0.02


@torch.no_grad()
def test_the_kl_of_every_unit_sums_to_that_of_q_on_average():
    """And a unit's KL is not negative for any draw."""
    made, (mean, log_var) = prior(4), (0.5 * noise(4), noise(4, seed=1))
    torch.manual_seed(0)
    e = noise(100_000, 4, seed=2)
    z, each = mean + (log_var / 2).exp() * e, made.kl(mean, log_var, e)
    assert (each >= 0).all()
    weights = log_normal(z, mean, log_var) - made.log_prob(z)
    error = math.sqrt((weights.var() + each.sum(1).var()) / len(z))
    assert (each.sum(1).mean() - weights.mean()).abs() < 4.5 * error
    assert each.sum(1).std() < weights.std()


@pytest.mark.parametrize("changes", [{}, {"beta": 0.5, "free_bits": 0.1}, {"bound": "iwae", "train_draws": 3}])
def test_it_begins_as_the_normal_prior_to_the_last_digit(changes):
    x, found = zoo.every_image(SPEC), []
    known = torch.zeros(len(x), 2, 2, dtype=torch.bool)
    known[:, 0] = True
    for case in (NORMAL, CASE):
        model = case.tiny(scale=None, **changes)  # the encoder's weights are made before the prior's
        model.load_state_dict(NORMAL.tiny(scale=0.5, seed=3).state_dict(), strict=False)
        torch.manual_seed(1)
        numbers = [*model.train().objective(x).values(), *model.eval().objective(x).values()]
        numbers += [model.log_prob(x), model.kl_per_unit(x)]
        made = torch.Generator().manual_seed(0)
        numbers += [model.prior(9, temperature=0.7, generator=made), model.sample(9, generator=made)]
        numbers += [*model.complete(x, known, particles=4, temperature=0.7, generator=made)]
        found.append(numbers)
    for normal, autoregressive in zip(*found, strict=True):
        assert torch.equal(normal, autoregressive)


@pytest.mark.parametrize("bound", [{}, {"bound": "dreg", "train_draws": 4}], ids=["elbo", "dreg"])
def test_it_learns_a_posterior_that_is_no_standard_normal(bound):
    """q is far from N(0, I) when averaged over its images: two strips, one of which is bent. Nothing but the prior is
    trained, so its bound can be better for one reason alone.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(256, 1, generator=generator)
    mean, log_var = torch.cat([first, first.square() - 1], 1), torch.full((256, 2), -4.0)
    made = LatentPrior(2, partial(RealMADE, width=32, depth=2))
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)

    def loss(prior):
        torch.manual_seed(0)
        return Bound(**bound).loss(lambda z: z.new_zeros(len(z)), mean, log_var, torch.tensor(1), prior)["loss"].mean()

    normal = loss(LatentPrior(2)).item()
    assert loss(made).item() == normal
    for _ in range(200):
        optimiser.zero_grad()
        loss(made).backward()
        optimiser.step()
    assert loss(made).item() < normal - 1  # nats an image; the best one possible is about 1.5 better


@torch.no_grad()
def test_every_point_of_a_walk_and_of_a_manifold_is_a_draw_of_the_prior(tmp_path):
    """Their noise is N(0, I), or its quantiles; on great circles of z itself it would not be."""
    model, n = CASE.tiny(scale=0.8), 4000
    ends, seen = model.prior(2 * n, generator=torch.Generator().manual_seed(0)), []
    model.decode = lambda z, context=None: seen.append(z) or torch.zeros(len(z), *SPEC.shape)
    representations.prior_interpolation(model, ends[:n], ends[n:], 5)
    z = seen.pop().view(n, 5, 2)
    for end, expected in ((z[:, 0], ends[:n]), (z[:, -1], ends[n:])):
        torch.testing.assert_close(end, expected, rtol=1e-3, atol=1e-3)  # a cosine of 4e-8 for 0, and steep functions
    middle = model.noise_of(z[:, 2])
    assert (middle.T.cov() - torch.eye(2)).abs().max() < 0.1
    assert middle.mean(0).abs().max() < 0.07
    straight = model.noise_of((ends[:n] + ends[n:]) * math.sqrt(0.5))
    assert (straight.T.cov() - torch.eye(2)).abs().max() > 0.2

    from genlab.viz import pictures
    from genlab.viz.subject import Subject

    subject = Subject(model, None, "valid", tmp_path / "metrics.csv")
    Subject.first_context, kept = None, Subject.first_context
    try:
        pictures.manifold(subject)
    finally:
        Subject.first_context = kept
    levels = torch.special.ndtr(model.noise_of(torch.cat(seen))).view(MANIFOLD_SIDE, MANIFOLD_SIDE, 2)
    torch.testing.assert_close(levels[0, :, 0], (torch.arange(MANIFOLD_SIDE).double() + 0.5) / MANIFOLD_SIDE)


@torch.no_grad()
def test_latents_are_coded_in_as_many_bits_as_their_density_says():
    model = CASE.tiny(dtype=torch.float)
    z = (model.prior(2000, generator=torch.Generator().manual_seed(0)).double() / CELL).round().long()
    nats = model.latent_prior.log_prob((z * CELL).float()).double().sum().item()
    stack = BitStack(64)
    before = stack.bits
    _push_latents(stack, model, z.numpy())
    assert stack.bits - before == pytest.approx(z.numel() * 12 - nats / math.log(2), abs=0.02 * z.numel())
    assert (_pop_latents(stack, model, len(z)) == z.numpy()).all()
    stack.check_restored()


@torch.no_grad()
def test_any_latent_of_a_posterior_is_coded_however_narrow_the_prior_is():
    model = CASE.tiny(scale=0.0, dtype=torch.float)
    model.latent_prior.net.layers[-1].bias.copy_(torch.tensor([16.0, 16.0, -30.0, -30.0]))  # means, log-variances
    z = (torch.tensor([[-48.0, -48.0], [48.0, 16.0]]) / CELL).long().numpy()  # a q reaches no further
    stack = BitStack(64)
    _push_latents(stack, model, z)
    assert (_pop_latents(stack, model, 2) == z).all()
    stack.check_restored()


def test_checkpoints_know_the_normal_prior_without_a_key():
    config = NORMAL.config()
    del config["prior"]
    old = zoo.tiny(config, SPEC)
    assert old.state_dict().keys() == NORMAL.tiny().state_dict().keys()
    assert not [name for name in old.state_dict() if "prior" in name]
    assert CASE.tiny().state_dict().keys() > old.state_dict().keys()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=vqvae", "model/prior=normal"], "the codes of a VQ-VAE are whole numbers"),
        (["model=vqvae", "model/prior=autoregressive"], "the codes of a VQ-VAE are whole numbers"),
        (["model=latent_gaussian", "model/prior=pixelcnn"], "choose model/prior=normal or autoregressive"),
        (["model=latent_gaussian", "model/prior=autoregressive", "model.inference=map"], "needs model/prior=normal"),
        (["model=latent_gaussian", "model/prior=autoregressive", "model.prior.depth=0"], "depth of at least 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words, sentence, tmp_path, capsys):
    assert cli.run(["train", *words, "trainer=smoke", f"hydra.run.dir={tmp_path}/run"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_constructor_refuses_a_prior_of_integers():
    with pytest.raises(RequestError, match="real numbers"):
        LatentPrior(2, partial(torch.nn.Linear))
