"""Autoencoders: reconstructions are what they say, images do not know one another, penalties cannot be dodged."""

from __future__ import annotations

import itertools

import pytest
import torch
import zoo

from genlab.build import build
from genlab.core import Coder, Features, Likelihood, RequestError, Sampler, Trainable, from_steps, to_steps

EVERY = pytest.mark.parametrize("case", zoo.codings(zoo.SPECS))
SPECS = list(zoo.SPECS.values())
MODELS, CODES = zoo.family(*zoo.AUTOENCODERS), zoo.choices("model/code")
MODELS_AND_CODES = [(model, code) for model in MODELS for code in zoo.legal(model, "code", zoo.GREY)]
PLAIN = [model for model in MODELS if model != "stacked_ae"]  # one objective from the first step to the last
SMALL = zoo.ImageSpec(1, 3, 5, 6)


def plain(model, spec=SMALL, **parts):
    return zoo.Coding(model, spec, **parts)


# ---- what every combination does


def test_nothing_but_a_mirror_image_without_a_head_is_refused():
    """One number a unit and squared error is what layer-wise pretraining takes; all others take everything."""
    for spec in SPECS:
        heads = {head for head in zoo.choices("model/head") if head != "bernoulli" or spec.levels == 2}
        for model in MODELS:
            stacked = model == "stacked_ae"
            assert set(zoo.legal(model, "head", spec)) == ({"none"} if stacked else heads)
            assert set(zoo.legal(model, "code", spec)) == set(CODES) - ({"spike_slab"} if stacked else set())
            assert set(zoo.legal(model, "corruption", spec)) == set(zoo.choices("model/corruption"))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "code"), MODELS_AND_CODES)
def test_everything_goes_with_everything(model, code):
    """Every head that is legal, with the corruptions in turn, in training and after: finite terms of one shape, a
    gradient. Every pair of parts occurs; not every triple.
    """
    corruptions = itertools.cycle(zoo.choices("model/corruption"))
    for _ in range(CODES.index(code)):
        next(corruptions)
    for i, spec in enumerate(SPECS):
        for head in zoo.legal(model, "head", spec)[i :: len(SPECS)]:
            made = zoo.Coding(model, spec, head, code).tiny(dtype=torch.float, scale=0.3)
            x = zoo.random_images(spec, 5)
            corruption = next(corruptions)
            config = zoo.Coding(model, spec, corruption=corruption).config()["corruption"]
            made.corruption = config and zoo.part(config)
            for training in (True, False):
                terms = made.train(training).objective(x)
                assert all(t.shape == (5,) and t.isfinite().all() for t in terms.values()), (head, corruption)
                terms["loss"].mean().backward()


@EVERY
def test_shapes_protocols_and_integers_in_range(case):
    made, x = case.tiny(), zoo.random_images(case.spec, 3)
    assert isinstance(made, Coder)
    assert isinstance(made, Trainable)
    assert isinstance(made, Features)
    assert not isinstance(made, (Likelihood, Sampler))
    h = made.encode(x)
    assert h.shape == (3, made.latent_dim)
    y = made.decode(h)
    assert y.shape == x.shape
    found = made.reconstruct(x)
    assert not found.is_floating_point()
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() < case.spec.levels
    nearest = (y * (case.spec.levels - 1)).round().clamp(0, case.spec.levels - 1)
    assert torch.equal(found, nearest.long())


@torch.no_grad()
@EVERY
def test_terms_are_what_they_say(case):
    made, x = case.tiny(), zoo.random_images(case.spec, 4)
    terms, h = made.objective(x), made.encode(x)
    expected, y = made.decode(h), x.double() / (case.spec.levels - 1)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + terms["penalty"])
    torch.testing.assert_close(terms["squared_error"], (expected - y).square().flatten(1).mean(1))
    torch.testing.assert_close(terms["mean_activation"], h.mean(1))
    torch.testing.assert_close(terms["active"], (h.abs() > made.threshold).double().mean(1))
    if case.head == "none":
        assert made.measured_in == "half squared error"
        torch.testing.assert_close(terms["reconstruction"], (expected - y).square().flatten(1).sum(1) / 2)
    else:
        assert made.measured_in == "nats"


@torch.no_grad()
@EVERY
def test_an_image_does_not_depend_on_the_others_after_training(case):
    made, x = case.tiny(), zoo.random_images(case.spec, 6)
    together, alone = made.objective(x), made.objective(x[2:3])
    for name, value in alone.items():
        torch.testing.assert_close(together[name][2:3], value)
    torch.testing.assert_close(made.encode(x)[2:3], made.encode(x[2:3]))
    assert torch.equal(made.reconstruct(x)[2:3], made.reconstruct(x[2:3]))


@torch.no_grad()
@EVERY
def test_features_are_named_and_of_the_clean_image(case):
    made, x = case.tiny(), zoo.random_images(case.spec, 3)
    found = made.features(x)
    assert list(found)[-1] == "code"
    assert torch.equal(found["code"], made.encode(x))
    assert set(found) == {"code", *(f"encoder{i}" for i in range(len(made.encoder.layers) - 1))}
    assert all(len(h) == 3 and h.isfinite().all() for h in found.values())
    again = made.features(x)
    assert all(torch.equal(found[name], again[name]) for name in found)


# ---- reconstruction as a likelihood


@torch.no_grad()
@pytest.mark.parametrize(
    "case", [p for p in zoo.codings({"tiny": zoo.ImageSpec(2, 2, 3, 2), "grey": SMALL}) if p.values[0].head != "none"]
)
def test_nats_are_those_of_a_distribution_over_images_given_the_code(case):
    """Probabilities of all values of a step sum to 1, whatever the code; the reconstruction is their product."""
    made, spec = case.tiny(), case.spec
    x = zoo.random_images(spec, 2)
    c, found = made.step_channels, made._decoded(made.encode(x))
    every = torch.cartesian_prod(*[torch.arange(spec.levels)] * c).view(-1, c)
    steps = to_steps(x, c)
    nats = torch.stack([made.head(found).log_prob(value.expand(steps.shape)) for value in every])  # (K^c, B, T)
    torch.testing.assert_close(nats.exp().sum(0), torch.ones(steps.shape[:2], dtype=torch.double))
    place = (steps * spec.levels ** torch.arange(c - 1, -1, -1)).sum(2)
    chosen = nats.gather(0, place[None])[0]
    torch.testing.assert_close(made.objective(x)["reconstruction"], -chosen.sum(1))


@torch.no_grad()
@pytest.mark.parametrize("model", ["linear_ae", "conv_ae"])
@pytest.mark.parametrize("head", ["categorical", "conditional_categorical"])
def test_a_step_of_the_decoder_is_a_step_of_the_image(model, head):
    """Features of the decoder in order of the image's values: change one and that value alone becomes less sure."""
    spec = zoo.ImageSpec(3, 2, 3, 3)
    made, x = plain(model, spec, head=head).tiny(), zoo.random_images(spec, 1)
    found = made._decoded(made.encode(x))
    reference = made._expected(found)
    for t in range(found.shape[1]):
        other = found.clone()
        other[:, t] += 1
        where = (made._expected(other) - reference).abs() > 1e-12
        mark = torch.zeros(1, found.shape[1], made.step_channels)
        mark[:, t] = 1
        assert (where <= (from_steps(mark, spec) > 0)).all()
        assert where.any()


# ---- corruption


class Shift(torch.nn.Module):
    """A corruption whose effect is known: the first row becomes 0.25."""

    everywhere = False

    def forward(self, y):
        touched = torch.zeros_like(y, dtype=torch.bool)
        touched[:, :, 0] = True
        return y.masked_fill(touched, 0.25), touched


@torch.no_grad()
@pytest.mark.parametrize("head", ["none", "logistic"])
@pytest.mark.parametrize("model", PLAIN)
def test_the_input_is_corrupted_in_training_alone_and_the_target_is_the_clean_image(model, head):
    made, x = plain(model, head=head).tiny(), zoo.random_images(SMALL, 4)
    made.corruption = Shift()
    seen = []
    made.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    clean, after = x.double() / 5, made.objective(x)
    during = made.train().objective(x)
    assert torch.equal(seen[0], clean)
    assert torch.equal(seen[1], Shift()(clean)[0])
    h = made.code(made.encoder(seen[1])).h
    torch.testing.assert_close(during["reconstruction"], made._reconstruction(made._decoded(h), x, None))
    assert not torch.allclose(during["reconstruction"], after["reconstruction"])
    made.eval()
    assert torch.equal(made.encode(x), made.code(made.encoder(clean)).h)
    assert torch.equal(made.encode(x, corrupted=True), h)
    assert torch.equal(made.reconstruct(x, corrupted=True), made.quantised(made.decode(h)))


@torch.no_grad()
def test_corruptions_touch_what_they_say():
    y = torch.rand(200, 1, 20, 20)
    for name in zoo.choices("model/corruption"):
        config = plain("linear_ae", corruption=name).config()["corruption"]
        if config is None:
            assert name == "none"
            continue
        torch.manual_seed(0)
        corruption = zoo.part(config)
        noisy, touched = corruption(y)
        assert touched.dtype == torch.bool
        assert touched.shape == y.shape
        assert torch.equal(noisy[~touched], y[~touched])
        if name == "gaussian":
            assert touched.all()
            assert (noisy - y).std().item() == pytest.approx(corruption.sigma, rel=0.02)
            assert abs((noisy - y).mean().item()) < 0.005
        else:
            assert touched.float().mean().item() == pytest.approx(corruption.share, abs=0.01)
            allowed = {"masking": {0.0}, "salt_pepper": {0.0, 1.0}}[name]
            assert set(noisy[touched].unique().tolist()) == allowed
            if name == "salt_pepper":
                assert noisy[touched].mean().item() == pytest.approx(0.5, abs=0.02)


@torch.no_grad()
@pytest.mark.parametrize("spec", [SMALL, zoo.RGB], ids=["grey", "rgb"])
def test_emphasis_weighs_touched_and_untouched_values(spec):
    case, x = plain("denoising_ae", spec, corruption="masking"), zoo.random_images(spec, 4)
    parts = []
    for emphasis in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        made = case.tiny(emphasis=list(emphasis)).train()
        torch.manual_seed(1)
        parts.append(made.objective(x)["reconstruction"])
        assert not torch.equal(parts[-1], made.eval().objective(x)["reconstruction"])
    touched, rest, both = parts
    torch.testing.assert_close(both, 2 * touched + 0.5 * rest)
    torch.manual_seed(1)
    corrupt, mask = made.corruption(made.scaled(x))
    error = (made.decode(made.code(made.encoder(corrupt)).h) - made.scaled(x)).square() / 2
    torch.testing.assert_close(touched, (error * mask).flatten(1).sum(1))


# ---- weights


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("spec", [SMALL, zoo.RGB], ids=["grey", "rgb"])
def test_tied_weights_are_the_encoders_transposed(model, spec):
    case = plain(model, spec)
    if model == "stacked_ae":
        with pytest.raises(RequestError, match="weights of their own"):
            case.tiny(tied=True)
        return
    made = case.tiny(tied=True)
    assert {name for name, _ in made.decoder.named_parameters()} == {
        f"layers.{i}.bias" for i in range(len(made.decoder.layers))
    }
    # Linear in h without its ReLUs and biases, the decoder is the transpose of the encoder: <E y, h> = <y, D h>.
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith("bias"):
                p.zero_()
        for layer in made.encoder.layers:
            layer.weight.abs_()  # so that no ReLU is off
    y, h = torch.rand(1, *spec.shape, dtype=torch.double), torch.rand(1, made.latent_dim, dtype=torch.double)
    torch.testing.assert_close((made.encoder(y) * h).sum(), (y * made.decode(h)).sum())
    made.zero_grad()
    made.decode(h).sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in made.encoder.layers)


@pytest.mark.parametrize("changes", [{"code": "spike_slab"}, {"head": "categorical"}])
def test_ties_that_cannot_be_are_refused(changes):
    with pytest.raises(RequestError, match="tied weights"):
        plain("bottleneck_ae", **changes).tiny(tied=True)
    config = plain("bottleneck_ae").config(tied=True)
    config["decoder"]["hidden"] = config["decoder"]["hidden"][::-1]
    with pytest.raises(RequestError, match="mirror image"):
        build(config, SMALL)
    config["decoder"]["hidden"] = [8]
    with pytest.raises(RequestError, match="mirror image"):
        build(config, SMALL)


@torch.no_grad()
@pytest.mark.parametrize(("model", "code"), MODELS_AND_CODES)
def test_a_penalty_cannot_be_dodged_by_a_small_code_and_large_weights(model, code):
    """Where a code is charged for its size, larger decoder weights decode nothing larger: a smaller code is one more
    error. Without such a price the decoder is free.
    """
    made = plain(model, code=code).tiny()
    h = made.encode(zoo.random_images(SMALL, 3))
    before = made.decode(h)
    for layer in made.decoder.layers:
        layer.weight *= 2
    free = not torch.allclose(made.decode(h), before)
    assert free == (code not in ("l1", "l2"))
    assert made.decoder.unit_columns == (not free)
    if not free:  # in every layer what leaves a unit has length 1
        first = torch.eye(made.latent_dim, dtype=torch.double) @ unit(made.decoder.layers[0].weight).T
        torch.testing.assert_close(first.square().sum(1), torch.ones(made.latent_dim, dtype=torch.double))


def unit(weight):
    return weight / weight.norm(dim=0)


@pytest.mark.slow
def test_half_the_code_at_twice_the_weights_never_costs_less():
    """On a trained sparse_ae with code=l1: the loss along the dodge (encoder down, decoder up) only rises."""
    torch.manual_seed(0)
    case = plain("sparse_ae", zoo.ImageSpec(1, 4, 4, 16), code="l1")
    made = case.tiny(scale=None)
    x = 15 * (torch.rand(4, 1, 4, 4) < 0.4).long()[torch.arange(64) % 4]  # four images: worth a unit each
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        made.objective(x)["loss"].mean().backward()
        optimiser.step()
    losses = []
    for factor in (0.25, 0.5, 0.8, 1.0):
        copy = case.tiny(scale=None)
        copy.load_state_dict(made.state_dict())
        with torch.no_grad():
            for p in copy.encoder.layers[-1].parameters():
                p *= factor
            copy.decoder.layers[0].weight /= factor
            terms = copy.objective(x)
        losses.append(terms["loss"].mean().item())
    assert terms["penalty"].mean() > 1e-3  # there is something to dodge
    assert losses == sorted(losses, reverse=True)


# ---- everything else that is promised


def dead_ones(made, alive):
    return {name for name, _ in made.named_parameters()} - alive


@pytest.mark.parametrize("case", zoo.codings({"grey": zoo.GREY}))
def test_gradient_reaches_every_parameter_and_sums_stay_float32_in_bf16(case):
    x, alive = zoo.random_images(case.spec, 64), set()
    for seed in range(6):  # a ReLU may be off in one random net, not in several
        made = case.tiny(scale=0.3, dtype=torch.float, seed=seed).train()
        if case.model == "stacked_ae":
            made.step.fill_(10**6)  # pretrained
        made.objective(x)["loss"].mean().backward()
        alive |= {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if not dead_ones(made, alive):
            break
    assert not dead_ones(made, alive)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = made.objective(x)
    assert {t.dtype for t in terms.values()} == {torch.float}


@torch.no_grad()
@EVERY
def test_weights_saved_and_loaded_give_the_same_model(case):
    made, other = case.tiny(), case.tiny(seed=1)
    other.load_state_dict(made.state_dict())
    x = zoo.random_images(case.spec, 2)
    assert torch.equal(made.encode(x), other.encode(x))
    assert torch.equal(made.decode(made.encode(x)), other.decode(other.encode(x)))


def test_what_cannot_be_is_refused():
    case, x = plain("denoising_ae"), zoo.random_images(SMALL, 2)
    with pytest.raises(RequestError, match="unconditional"):
        case.tiny().objective(x, torch.zeros(2, dtype=torch.long))
    for corruption in ("none", "gaussian"):
        with pytest.raises(RequestError, match="emphasis weighs corrupted values"):
            plain("denoising_ae", corruption=corruption).tiny(emphasis=[2.0, 1.0])
    with pytest.raises(RequestError, match="two weights"):
        plain("denoising_ae", corruption="masking").tiny(emphasis=[-1.0, 1.0])
    with pytest.raises(RequestError, match="latent_dim"):
        case.tiny(latent_dim=0)
    with pytest.raises(TypeError, match="integer images"):
        case.tiny().encode(x.float())
