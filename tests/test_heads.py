"""Heads on their own: mass, mean, temperature, and the edges of the inverse distribution function."""

from __future__ import annotations

import math

import pytest
import torch

from genlab.core import RequestError
from genlab.heads import Bernoulli, Categorical
from genlab.heads.bernoulli import BernoulliPixels
from genlab.heads.categorical import CategoricalPixels


def test_categorical_mass_mean_and_temperature():
    logits = torch.randn(5, 7, dtype=torch.double) * 4
    pixels = CategoricalPixels(logits)
    levels = torch.arange(7).expand(5, 7).unsqueeze(-1)
    p = torch.stack([pixels.log_prob(levels[:, k]).exp() for k in range(7)], 1)
    torch.testing.assert_close(p.sum(1), torch.ones(5, dtype=torch.double))
    torch.testing.assert_close(pixels.mean()[:, 0], (p * torch.arange(7)).sum(1))
    cold = torch.stack([pixels.tempered(0.5).log_prob(levels[:, k]).exp() for k in range(7)], 1)
    torch.testing.assert_close(cold, p**2 / (p**2).sum(1, keepdim=True))


def test_levels_of_no_probability_are_never_drawn():
    """Not even at the ends of the uniform numbers: 0 and the largest float32 below 1."""
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]]).repeat(2, 1)
    ends = torch.tensor([[0.0], [1 - 2**-24]])
    assert CategoricalPixels(logits).sample(ends).flatten().tolist() == [1, 3]
    certain = BernoulliPixels(torch.tensor([[-math.inf], [math.inf]]))
    assert certain.sample(torch.tensor([[0.0], [1 - 2**-24]])).flatten().tolist() == [0, 1]


def test_bernoulli_mass_and_mean():
    pixels = BernoulliPixels(torch.linspace(-30, 30, 9)[:, None])
    total = pixels.log_prob(torch.zeros(9, 1)).exp() + pixels.log_prob(torch.ones(9, 1)).exp()
    torch.testing.assert_close(total, torch.ones(9))
    torch.testing.assert_close(pixels.mean()[:, 0], pixels.log_prob(torch.ones(9, 1)).exp())


def test_shapes_that_do_not_match_are_refused_not_broadcast():
    with pytest.raises(ValueError, match="do not match"):
        CategoricalPixels(torch.zeros(4, 3)).log_prob(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="do not match"):
        BernoulliPixels(torch.zeros(4, 1)).log_prob(torch.zeros(1, 1))


def test_images_a_head_cannot_describe_are_refused():
    with pytest.raises(RequestError, match="2 levels"):
        Bernoulli(width=4, channels=1, levels=256)
    with pytest.raises(RequestError, match="one value a step"):
        Categorical(width=4, channels=3, levels=256)
