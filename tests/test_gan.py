"""GANs: losses with known optima (T22), nets for any image, samples and completions that depend on their own z."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from omegaconf import OmegaConf
from torch import nn

from genlab.build import build
from genlab.core import Adversarial, Completer, Features, ImageSpec, Likelihood, RequestError, Sampler
from genlab.models.gan import STARTS
from genlab.models.gan_losses import LOSSES, gradient_penalty
from genlab.nets import DCGANDiscriminator
from genlab.request.compose import Request

SPECS = {
    "mnist": ImageSpec(1, 28, 28, 256, classes=10),
    "cifar": ImageSpec(3, 32, 32, 256, classes=10),
    "odd": ImageSpec(3, 5, 9, 200, classes=3),
    "binary": ImageSpec(1, 4, 6, 2, classes=2),
    "pixel": ImageSpec(2, 1, 1, 5, classes=2),
}


def gan(spec=SPECS["odd"], *, label=False, spectral_norm=True, seed=0, **changes):
    """A small GAN in double precision and evaluation mode, running statistics and all."""
    plain = OmegaConf.to_container(zoo._composed("gan"), resolve=True)
    plain |= {"context": zoo._part("context", "label") if label else None, "latent_dim": 5, **changes}
    for player in ("generator", "discriminator"):
        plain[player]["widths"] = [4, 6]
    plain["discriminator"]["spectral_norm"] = spectral_norm
    torch.manual_seed(seed)
    made = build(plain, spec).double()
    for _ in range(10):
        made.turn("discriminator", images(spec), labels(spec) if label else None)
    return made.eval()


def images(spec, n=6, seed=0):
    return torch.randint(spec.levels, (n, *spec.shape), generator=torch.Generator().manual_seed(seed))


def labels(spec, n=6):
    return torch.arange(n) % spec.classes


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- losses


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_closed_forms(name):
    real, fake = torch.randn(2, 50, dtype=torch.double).mul(3)
    sigmoid = torch.sigmoid
    players = {
        "nonsaturating": (-(sigmoid(real).log() + (1 - sigmoid(fake)).log()), -sigmoid(fake).log()),
        "hinge": (torch.clamp(1 - real, min=0) + torch.clamp(1 + fake, min=0), -fake),
        "wgan_gp": (fake - real, -fake),
    }
    torch.testing.assert_close(LOSSES[name].discriminator(real, fake), players[name][0])
    torch.testing.assert_close(LOSSES[name].generator(fake), players[name][1])
    assert LOSSES[name].penalised == (name == "wgan_gp")


def test_the_best_discriminator_of_two_gaussians_is_the_log_ratio_of_their_densities():
    """T22. Of N(0, 1) and N(m, s^2) it is a parabola in x; its loss is 2 ln 2 - 2 JS."""
    m, s = 1.0, 2.0
    grid = torch.linspace(-12, 14, 4001, dtype=torch.double)
    p = torch.distributions.Normal(0.0, 1.0).log_prob(grid).double()
    q = torch.distributions.Normal(m, s).log_prob(grid).double()
    step = grid[1] - grid[0]
    basis = torch.stack([torch.ones_like(grid), grid, grid**2], 1)
    weights = torch.zeros(3, dtype=torch.double, requires_grad=True)
    loss_of = LOSSES["nonsaturating"].discriminator

    def loss():  # -E_p log D - E_q log(1 - D), each expectation a sum over the grid
        score, never = basis @ weights, torch.full_like(grid, math.inf)
        return ((p.exp() * loss_of(score, -never) + q.exp() * loss_of(never, score)) * step).sum()

    adam = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        adam.zero_grad()
        value = loss()
        value.backward()
        return value

    adam.step(closure)
    exact = torch.tensor([math.log(s) + m**2 / (2 * s**2), -m / s**2, 1 / (2 * s**2) - 0.5], dtype=torch.double)
    torch.testing.assert_close(weights.detach(), exact, atol=1e-4, rtol=0)
    mixed = torch.logaddexp(p, q) - math.log(2)
    js = ((p.exp() * (p - mixed) + q.exp() * (q - mixed)) * step).sum() / 2
    assert loss().item() == pytest.approx(2 * math.log(2) - 2 * js.item(), abs=1e-8)


def test_the_hinge_loss_is_least_at_plus_and_minus_one_where_the_data_are_apart():
    loss = LOSSES["hinge"].discriminator
    one = torch.ones(1)
    assert loss(one, -one) == 0
    assert loss(0.9 * one, -one) > 0
    assert loss(one, -0.9 * one) > 0


def test_the_gradient_penalty_of_a_linear_critic_is_the_distance_of_its_slope_from_one():
    """T22: (|w| - 1)^2, wherever between the images; and its gradient reaches the weights."""
    weight = torch.randn(3 * 4 * 5, dtype=torch.double, requires_grad=True)
    real, fake = torch.randn(2, 7, 3, 4, 5, dtype=torch.double)
    penalty = gradient_penalty(lambda y: y.flatten(1) @ weight, real, fake)
    with torch.no_grad():  # validation wants the number
        torch.testing.assert_close(gradient_penalty(lambda y: y.flatten(1) @ weight, real, fake), penalty.detach())
    expected = (weight.norm() - 1) ** 2
    torch.testing.assert_close(penalty, expected.expand(7))
    (slope,) = torch.autograd.grad(penalty.mean(), weight)
    torch.testing.assert_close(slope, (2 * (weight.norm() - 1) * weight / weight.norm()).detach())


def test_the_gradient_penalty_is_taken_between_the_images():
    """Of |y|^2 / 2 the slope is y itself: on the segment from 3 to 5 the penalty is (t - 1)^2, t in 3..5."""
    real, fake = torch.full((500, 1, 1, 1), 3.0), torch.full((500, 1, 1, 1), 5.0)
    torch.manual_seed(0)
    penalty = gradient_penalty(lambda y: (y.square() / 2).flatten(1).sum(1), real, fake)
    assert ((penalty >= 4) & (penalty <= 16)).all()
    assert penalty.sqrt().mean().item() == pytest.approx(3, abs=0.1)
    assert penalty.sqrt().std().item() == pytest.approx(2 / math.sqrt(12), abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("label", [False, True])
def test_spectral_norm_makes_the_largest_singular_value_of_every_layer_one(label):
    """T22: power iteration follows it in training, and stands still in evaluation."""
    net = gan(label=label).discriminator
    for p in net.parameters():
        p.data.mul_(3)
    x, y = torch.randn(2, *SPECS["odd"].shape, dtype=torch.double), labels(SPECS["odd"], 2) if label else None
    net.train()
    for _ in range(200):
        net(x, y)
    net.eval()
    layers = [*net.layers, net.last, *([net.projection, net.context.embedding] if label else [])]
    for layer in layers:
        assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(x, y)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_critic_has_no_batch_norm_and_scores_each_image_by_itself():
    net = gan(spectral_norm=False, loss="wgan_gp").discriminator.train()
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules())
    x = torch.randn(6, *SPECS["odd"].shape, dtype=torch.double)
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


# ---- the model


@pytest.mark.slow
@pytest.mark.parametrize("label", [False, True], ids=["", "label"])
@pytest.mark.parametrize("name", SPECS)
def test_any_image_with_every_capability_but_a_likelihood(name, label):
    spec = SPECS[name]
    made = gan(spec, label=label)
    assert isinstance(made, (Sampler, Completer))
    assert isinstance(made, Features)
    assert isinstance(made, Adversarial)
    assert not isinstance(made, Likelihood)
    assert not hasattr(made, "log_prob")
    y = labels(spec) if label else None
    x = made.sample(6, context=y, generator=noise())
    spec.check(x)
    assert x.min() >= 0
    assert x.max() < spec.levels
    assert [len(h) for h in made.features(x, y).values()] == [6, 6]
    for player in ("generator", "discriminator"):
        terms = made.turn(player, x, y)
        assert terms["loss"].shape == (6,)
        assert all(not value.requires_grad and value.shape == (6,) for key, value in terms.items() if key != "loss")


@pytest.mark.slow
def test_scaling_is_undone_by_rounding():
    for spec in SPECS.values():
        made = gan(spec)
        x = images(spec)
        y = made.scaled(x)
        assert y.min() >= -1
        assert y.max() <= 1
        assert torch.equal(made.quantised(y), x)
        assert torch.equal(made.quantised(y + 0.9 / (spec.levels - 1)), x)
        assert made.quantised(torch.full((1, *spec.shape), 1.5)).max() == spec.levels - 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_turn_moves_one_player(loss):
    made = gan(loss=loss, label=True).train()
    spec = SPECS["odd"]
    for player, other in (("generator", "discriminator"), ("discriminator", "generator")):
        made.zero_grad()
        getattr(made, other).requires_grad_(False)
        made.turn(player, images(spec), labels(spec))["loss"].mean().backward()
        getattr(made, other).requires_grad_(True)
        assert all(p.grad is None for p in getattr(made, other).parameters())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in getattr(made, player).parameters())
        assert any(p.grad.abs().sum() > 0 for p in getattr(made, player).context.parameters())


@pytest.mark.slow
def test_the_penalty_is_part_of_the_loss_of_wgan_gp_alone():
    x = images(SPECS["odd"])
    torch.manual_seed(0)
    terms = gan(loss="wgan_gp", penalty=3.0).turn("discriminator", x)
    gap = terms["fake_score"] - terms["real_score"]
    torch.testing.assert_close(terms["loss"].detach(), gap + 3 * terms["gradient_penalty"])
    assert "gradient_penalty" not in gan().turn("discriminator", x)


def test_losses_are_of_the_weights_precision_under_autocast():
    made = gan(label=True).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for player in ("generator", "discriminator"):
            terms = made.turn(player, images(SPECS["odd"]), labels(SPECS["odd"]))
            assert {value.dtype for value in terms.values()} == {torch.float}


def test_the_projection_is_an_inner_product_with_what_the_score_is_linear_in():
    """D(x, a) - D(x, b) = <V (e(a) - e(b)), phi(x)>, Miyato & Koyama's eq. 3."""
    net = gan(label=True).discriminator
    y = torch.randn(4, *SPECS["odd"].shape, dtype=torch.double)
    a, b = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 2, 2])
    phi = net.maps(y)[-1].flatten(1)
    e = net.context.embedding.weight
    expected = (((e[a] - e[b]) @ net.projection.weight.T) * phi).sum(1)
    torch.testing.assert_close(net(y, a) - net(y, b), expected)
    assert expected[2] == 0


@pytest.mark.slow
def test_labels_matter_and_are_insisted_on():
    with_label, without, spec = gan(label=True), gan(), SPECS["odd"]
    assert (with_label.conditioning, without.conditioning) == ("label", "none")
    x, known = images(spec, 2), torch.zeros(2, 5, 9, dtype=torch.bool)
    for wrong, y in ((with_label, None), (without, labels(spec, 2))):
        for call in (
            lambda m=wrong, y=y: m.sample(2, context=y),
            lambda m=wrong, y=y: m.complete(x, known, context=y),
            lambda m=wrong, y=y: m.turn("generator", x, y),
            lambda m=wrong, y=y: m.turn("discriminator", x, y),
        ):
            with pytest.raises(RequestError, match=r"conditional|conditioned"):
                call()
    with pytest.raises(ValueError, match="3 contexts"):
        with_label.sample(2, context=labels(spec, 3))
    z = torch.randn(1, 5, dtype=torch.double).expand(2, 5)
    first, second = with_label.generator(z, torch.tensor([0, 1]))
    assert not torch.equal(first, second)


def test_what_cannot_be():
    plain = OmegaConf.to_container(Request("train", ["model=gan"], "").config().model, resolve=True)
    image = OmegaConf.to_container(
        Request("train", ["model=gan", "model/context=image"], "").config().model, resolve=True
    )
    second = ImageSpec(1, 4, 4, context=ImageSpec(1, 2, 2))
    for config, spec, sentence in (
        (plain | {"loss": "hing"}, SPECS["odd"], "did you mean 'hinge'"),
        (plain | {"latent_dim": 0}, SPECS["odd"], "at least 1"),
        (plain | {"critic_steps": 0}, SPECS["odd"], "at least 1"),
        (plain | {"penalty": -1.0}, SPECS["odd"], "at least 0"),
        (image, second, "class label or on nothing"),
    ):
        with pytest.raises(RequestError, match=sentence):
            build(config, spec)


# ---- samples and completions


def test_a_sample_depends_on_its_own_noise_alone():
    """Batch norm uses running statistics: an image is the same in any company."""
    made = gan(label=True)
    z, y = torch.randn(6, 5, dtype=torch.double), labels(SPECS["odd"])
    torch.testing.assert_close(made.generator(z, y)[:2], made.generator(z[:2], y[:2]), rtol=0, atol=1e-12)
    assert torch.equal(made.sample(6, context=y, generator=noise()), made.sample(6, context=y, generator=noise()))
    assert not torch.equal(made.sample(6, context=y, generator=noise()), made.sample(6, context=y, generator=noise(1)))


def test_the_temperature_scales_the_noise():
    made = gan(SPECS["cifar"])
    z = made.prior(3, generator=noise())
    assert torch.equal(made.prior(3, temperature=0.25, generator=noise()), z / 2)  # a quarter of the variance
    still = made.sample(4, temperature=1e-18, generator=noise())  # a deviation of 1e-9
    assert (still == still[:1]).all()
    assert not (made.sample(4, generator=noise()) == still).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["odd", "mnist"])
def test_completion_keeps_known_pixels_repeats_itself_and_gets_nearer(name):
    spec = SPECS[name]
    made = gan(spec, label=True)
    y = labels(spec, 3)
    with torch.no_grad():
        x = made.quantised(made.generator(torch.randn(3, 5, dtype=torch.double), y))  # can be met
    known = torch.zeros(3, *spec.shape[1:], dtype=torch.bool)
    known[:, : spec.height // 2 + 1] = True
    with torch.no_grad():
        images_, effective = made.complete(x, known, context=y, generator=noise())
        again = made.complete(x, known, context=y, generator=noise())
        one = made.complete(x[:1], known[:1], context=y[:1], generator=noise())
    seen = known[:, None].expand_as(x)
    assert torch.equal(images_[seen], x[seen])
    assert not images_.requires_grad
    assert torch.equal(images_, again.images)
    assert one.images.shape == x[:1].shape
    assert effective is None
    z = made.prior(3 * STARTS, generator=noise())
    wide = [t.repeat_interleave(STARTS, 0) for t in (made.scaled(x), known[:, None], y)]
    before = made._distance(z, *wide)[1].view(3, STARTS).min(1).values
    after = made._search(z, *wide)[1].view(3, STARTS).min(1).values
    assert (after < 0.5 * before).all()
    assert made.completion.startswith("approximate: ")


def test_completing_nothing_is_sampling():
    made = gan(SPECS["mnist"])
    x, known = images(SPECS["mnist"], 2), torch.zeros(2, 28, 28, dtype=torch.bool)
    drawn = made.sample(2 * STARTS, generator=noise())[::STARTS]
    assert (made.complete(x, known, generator=noise()).images - drawn).abs().max() <= 1  # rounding


def test_the_nets_need_even_kernels():
    with pytest.raises(RequestError, match="even kernel"):
        DCGANDiscriminator(spec=SPECS["odd"], widths=(4,), kernel=3)
