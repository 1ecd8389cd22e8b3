"""Conditional models: p(x | context) is normalised, depends on the context, and needs one."""

from __future__ import annotations

import pytest
import torch
import zoo

from genlab.core import RequestError

SOME = {name: zoo.LISTABLE[name] for name in ("2x2 binary", "1x2 RGB, 3 levels")}
CONDITIONAL = pytest.mark.parametrize("case", zoo.nets(SOME, ("label", "image")))  # heads never see a context


SEEDS = range(4)  # in one random net the ReLUs may block the context, but not in all of several


@pytest.mark.slow
@torch.no_grad()
@CONDITIONAL
def test_probabilities_given_each_context_sum_to_one_and_differ(case):
    images = zoo.every_image(case.spec)
    for seed in SEEDS:
        model = case.tiny(seed=seed)
        one, other = (model.log_prob(images, torch.cat([case.given(1, k)] * len(images))).exp() for k in range(2))
        assert one.sum().item() == pytest.approx(1, abs=1e-10)
        assert other.sum().item() == pytest.approx(1, abs=1e-10)
        if (one - other).abs().sum() > 1e-3:
            return
    raise AssertionError("the context changes nothing")


@pytest.mark.slow
@pytest.mark.parametrize("case", zoo.nets(zoo.SPECS, ("label", "image")))
def test_a_context_changes_samples_and_the_missing_or_superfluous_one_is_refused(case):
    for seed in SEEDS:
        model = case.tiny(seed=seed)
        one, same, other = (
            model.sample(6, context=case.given(6, k), generator=torch.Generator().manual_seed(0)) for k in (0, 0, 1)
        )
        assert torch.equal(one, same)
        if not torch.equal(one, other):
            break
    else:
        raise AssertionError("the context changes nothing")
    with pytest.raises(RequestError, match="conditioned on"):
        model.sample(2)
    unconditional = zoo.replace(case, context="none").tiny()
    with pytest.raises(RequestError, match="unconditional"):
        unconditional.sample(6, context=case.given(6))


@pytest.mark.parametrize("case", zoo.nets({"grey": zoo.GREY}, ("label", "image")))
def test_completion_given_a_context_keeps_to_it(case):
    """Known pixels in the middle, so that the particles carry their contexts through resampling."""
    model = case.tiny(scale=0.3)
    x, known = zoo.random_images(case.spec, 3), torch.zeros(3, 5, 4, dtype=torch.bool)
    known[:, 2] = True
    one, other = (
        model.complete(x, known, context=case.given(3, k), particles=4, generator=torch.Generator().manual_seed(0))
        for k in (0, 1)
    )
    assert torch.equal(one.images[:, :, 2], x[:, :, 2])
    assert not torch.equal(one.images, other.images)


@pytest.mark.parametrize("case", zoo.nets({"rgb": zoo.RGB}, ("label", "image")))
def test_gradient_reaches_every_parameter_of_the_context(case):
    model = case.tiny(scale=0.2, dtype=torch.float).train()
    model.objective(zoo.random_images(case.spec, 6), case.given(6))["loss"].mean().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
