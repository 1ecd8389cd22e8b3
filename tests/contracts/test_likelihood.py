"""T4, T6, T11, T12: probabilities of all images sum to 1, samples follow them, the units are right, training works."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from scipy.stats import chi2

from genlab.core import ImageSpec, from_steps
from genlab.measure.bits import bits_per_dim

SOFTMAX = ("bernoulli", "categorical", "conditional_categorical")
# How near heads of other shapes come to certainty, in bits/dim. One that is not here has to learn something at least.
PEAKS = {"logistic_mixture": 0.3, "logistic": 0.4, "gaussian_full": 0.4}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("case", "scale"), zoo.alternating(zoo.nets_and_heads(zoo.LISTABLE), (0.3,), (1.0,)))
def test_probabilities_of_all_images_sum_to_one(case, scale):
    made = case.tiny(scale=scale)
    assert made.log_prob(zoo.every_image(case.spec)).exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", zoo.in_turn(zoo.nets_and_heads({k: v for k, v in zoo.LISTABLE.items() if k != "3x3 binary"}))
)
def test_samples_follow_the_likelihood(case):
    """G-test of samples against exp(log_prob) of every image. Fewer of the slower nets: how they draw is their head's
    and their family's, and that their steps are their forward pass is tested elsewhere to the last digits.
    """
    made = case.tiny(scale=0.3)
    probability = made.log_prob(zoo.every_image(case.spec)).exp().detach()
    n, generator = 50_000 if case.model == zoo.ASKED else 10_000, torch.Generator().manual_seed(0)
    images = torch.cat([made.sample(10_000, generator=generator) for _ in range(n // 10_000)])  # memory for a cache
    counts = zoo.histogram(images, case.spec)
    # Cells with few expected counts are put together, as the test's approximation asks.
    rare = probability * n < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([probability[~rare], probability[rare].sum()[None]]) * n
    if expected[-1] < 5:
        observed, expected = observed[:-1], expected[:-1]
        assert counts[rare].sum() < 60
    seen = observed > 0
    g = 2 * (observed[seen] * (observed[seen] / expected[seen]).log()).sum().item()
    assert chi2.sf(g, len(observed) - 1) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"), zoo.alternating(zoo.models(zoo.SPECS), (torch.double, 1e-10), (torch.float, 1e-4))
)
def test_log_prob_gathered_while_sampling_is_the_log_prob_of_the_sample(case, dtype, tolerance):
    made = case.tiny(scale=0.2, dtype=dtype)
    state, previous, values, nats = made.net.start(6, torch.device("cpu")), None, [], 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(case.spec.dims // made.net.step_channels):
        h, state = made.net.step(previous, state)
        pixels = made.head(h)
        previous = pixels.sample(torch.rand(6, made.head.noise_size, generator=generator))
        nats = nats + pixels.log_prob(previous)
        values.append(previous)
    x = from_steps(torch.stack(values, 1), case.spec)
    torch.testing.assert_close(made.log_prob(x), nats, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("case", [p for p in zoo.models(zoo.SPECS) if p.values[0].head in SOFTMAX])
def test_an_untrained_model_costs_exactly_log2_of_the_levels(case):
    """Of heads that begin as a softmax over equal logits."""
    made = case.tiny(scale=None)
    bits = bits_per_dim(made.log_prob(zoo.random_images(case.spec, 4)), case.spec)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(case.spec.levels)))


@pytest.mark.slow
@pytest.mark.parametrize("case", zoo.models(zoo.SPECS))
def test_gradient_reaches_every_parameter_and_the_likelihood_stays_float32_in_bf16(case):
    made = case.tiny(scale=0.2, dtype=torch.float).train()
    x = zoo.random_images(case.spec, 8)
    made.objective(x)["loss"].mean().backward()
    dead = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.log_prob(x).dtype == torch.float


BY_HEART = [  # a Gaussian of a given width is never sure, and one width for all values is the last to shrink
    p
    for p in zoo.one_a_net(zoo.nets_and_heads({"grey": ImageSpec(1, 6, 5, 16), "rgb": ImageSpec(3, 3, 3, 16)}))
    if p.values[0].head not in ("gaussian_fixed", "gaussian_learned")
]
BY_HEART += [
    p for p in zoo.models({"binary": zoo.BINARY}) if (p.values[0].model, p.values[0].head) == ("pixelcnn", "bernoulli")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", BY_HEART)
def test_eight_images_can_be_learnt_by_heart(case):
    """Within 0.05 bits/dim of the 3 bits that say which of 8 random images it is: optimisation works.

    Peaks are sharp only in the limit, a mixture of them sooner than one, which cannot put its mass on eight values.
    """
    sizes = zoo.MEDIUM | ({"width": 32} if case.model == "pixelcnnpp" else {})  # has the most layers by far
    made = case.tiny(scale=None, dtype=torch.float, sizes=sizes).train()
    x = zoo.random_images(case.spec, 8)
    steps, most = (400, 0.05) if case.head in SOFTMAX else (800, PEAKS.get(case.head))
    if most is None:
        bits = bits_per_dim(made.log_prob(x).detach(), case.spec).mean().item()
        most = bits - math.log2(8) / case.spec.dims - 0.3
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        nats = made.objective(x)["loss"]
        excess = bits_per_dim(-nats.detach(), case.spec).mean().item() - math.log2(8) / case.spec.dims
        if excess < most:
            break
        nats.mean().backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    assert 0 <= excess < most
