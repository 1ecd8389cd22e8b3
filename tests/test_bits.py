"""Bits/dim: computed by hand, every image counted once, no value filtered out, the bound on the right side."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from genlab.core import ImageSpec, RunError
from genlab.measure.bits import Tally, bits_per_dim, evaluate, log_marginal

SPEC = ImageSpec(3, 2, 2, 256)
LABELS = {"kind": "exact", "draws": 1, "split": "test", "data": "d", "weights": "ema", "precision": "32"}


class Batch(NamedTuple):
    """A batch as of the data module, without a context."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


class Noisy(torch.nn.Module):
    """A bound: log w is normal with variance 1 and E[w] = 1/8, so log p(x) = -log 8 for every x."""

    exact = False

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(()))

    def log_prob(self, x, context=None):
        """One draw."""
        return torch.randn(len(x)) - 0.5 - math.log(8)


def test_a_uniform_model_has_eight_bits():
    nats = torch.full((5,), -SPEC.dims * math.log(256), dtype=torch.double)
    assert bits_per_dim(nats, SPEC).tolist() == pytest.approx([8.0] * 5)


def test_mean_and_error_are_over_images_whatever_the_batches():
    values = -torch.rand(101, dtype=torch.double) * 50
    for sizes in ([101], [50, 51], [7] * 14 + [3]):
        tally = Tally()
        for part in torch.randperm(101).split(sizes):
            tally.add(part, values[part])
        result = tally.result(SPEC, expected=101, **LABELS)
        bits = -values / (12 * math.log(2))
        assert result.bits_per_dim == pytest.approx(bits.mean().item(), abs=1e-12)
        assert result.standard_error == pytest.approx((bits.std() / math.sqrt(101)).item(), abs=1e-12)
        assert result.n == 101


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_names_its_image(bad):
    tally = Tally()
    tally.add(torch.tensor([4, 9]), torch.tensor([-1.0, -2.0]))
    tally.add(torch.tensor([7, 2]), torch.tensor([bad, -2.0]))
    with pytest.raises(RunError, match="image 7"):
        tally.result(SPEC, **LABELS)


@pytest.mark.parametrize("index", [[0, 1], [0, 1, 1], [0, 1, 2, 3]])
def test_missing_and_double_images_are_errors(index):
    tally = Tally()
    tally.add(torch.tensor(index), torch.zeros(len(index)))
    with pytest.raises(RunError, match="missing or double"):
        tally.result(SPEC, expected=3, **LABELS)


def test_the_bound_tightens_with_draws_and_says_how_many():
    torch.manual_seed(0)
    x = torch.zeros(4000, *SPEC.shape, dtype=torch.uint8)
    batch = Batch(x, torch.zeros(4000), torch.arange(4000))
    results = [evaluate(Noisy(), [batch], SPEC, draws=k, split="test", data="d", weights="raw") for k in (1, 10, 100)]
    exact = math.log(8) / (12 * math.log(2))
    one, ten, hundred = (r.bits_per_dim for r in results)
    assert one > ten > hundred > exact - 3 * results[2].standard_error
    assert hundred == pytest.approx(exact, abs=0.005)
    assert str(results[1]).endswith("(upper bound, 10 draws, 4,000 images)")
    assert str(replace(results[1], draws=1)).endswith("(upper bound, 1 draw, 4,000 images)")
    assert log_marginal(Noisy(), x, draws=2).dtype == torch.double
