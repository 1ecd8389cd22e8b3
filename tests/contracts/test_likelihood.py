"""T4, T6, T11, T12: probabilities of all images sum to 1, samples follow them, the units are right, training works."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from scipy.stats import chi2

from genlab.bits import bits_per_dim
from genlab.core import ImageSpec, from_steps

LISTED = [pytest.param(m, h, s, id=i) for i, m, h, s in zoo.cases(zoo.LISTABLE)]
CASES = [pytest.param(m, h, s, id=i) for i, m, h, s in zoo.cases(zoo.SPECS)]


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize(("model", "head", "spec"), LISTED)
def test_probabilities_of_all_images_sum_to_one(model, head, spec, scale):
    made = zoo.tiny(model, head, spec, scale=scale)
    assert made.log_prob(zoo.every_image(spec)).exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("model", "head", "spec"), LISTED)
def test_samples_follow_the_likelihood(model, head, spec):
    """G-test of 200,000 samples against exp(log_prob) of every image."""
    made = zoo.tiny(model, head, spec, scale=0.3)
    probability = made.log_prob(zoo.every_image(spec)).exp().detach()
    n = 200_000
    drawn = made.sample(n, generator=torch.Generator().manual_seed(0)).flatten(1)
    place = spec.levels ** torch.arange(spec.dims - 1, -1, -1)
    counts = torch.bincount((drawn * place).sum(1), minlength=len(probability)).double()
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
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-10), (torch.float, 1e-4)])
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_log_prob_gathered_while_sampling_is_the_log_prob_of_the_sample(model, head, spec, dtype, tolerance):
    made = zoo.tiny(model, head, spec, scale=0.2, dtype=dtype)
    state, previous, values, nats = made.net.start(6, torch.device("cpu")), None, [], 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(spec.dims // made.net.step_channels):
        h, state = made.net.step(previous, state)
        pixels = made.head(h)
        previous = pixels.sample(torch.rand(6, made.head.noise_size, generator=generator))
        nats = nats + pixels.log_prob(previous)
        values.append(previous)
    x = from_steps(torch.stack(values, 1), spec)
    torch.testing.assert_close(made.log_prob(x), nats, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_an_untrained_model_costs_exactly_log2_of_the_levels(model, head, spec):
    made = zoo.tiny(model, head, spec, scale=None)
    bits = bits_per_dim(made.log_prob(zoo.random_images(spec, 4)), spec)
    torch.testing.assert_close(bits, torch.full_like(bits, math.log2(spec.levels)))


@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_gradient_reaches_every_parameter_and_the_likelihood_stays_float32_in_bf16(model, head, spec):
    made = zoo.tiny(model, head, spec, scale=0.2, dtype=torch.float).train()
    x = zoo.random_images(spec, 8)
    made.objective(x)["loss"].mean().backward()
    dead = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.log_prob(x).dtype == torch.float


@pytest.mark.parametrize(("head", "levels"), [("categorical", 256), ("bernoulli", 2)])
@pytest.mark.parametrize("model", sorted({c[1] for c in zoo.cases({"grey": zoo.GREY, "binary": zoo.BINARY})}))
def test_eight_images_can_be_learnt_by_heart(model, head, levels):
    """Within 0.05 bits/dim of the 3 bits that say which of 8 random images it is: optimisation works."""
    spec = ImageSpec(1, 6, 5, levels)
    made = zoo.tiny(model, head, spec, scale=None, dtype=torch.float, sizes=zoo.MEDIUM).train()
    x = zoo.random_images(spec, 8)
    optimiser = torch.optim.AdamW(made.parameters(), lr=5e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    for _ in range(400):
        optimiser.zero_grad()
        made.objective(x)["loss"].mean().backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    bits = bits_per_dim(made.eval().log_prob(x).detach(), spec).mean().item()
    assert 0 <= bits - math.log2(8) / spec.dims < 0.05
