"""Densities fitted to codes: moments are recovered, power is temperature, and what is no code is made one."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genlab.codes import KL, L1, Dense, Lifetime, SpikeSlab, TopK, support
from genlab.core import RequestError
from genlab.models.densities import fit_gaussian, fit_mixture

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.double)
FACTOR = torch.tensor([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.2, 2.0]], dtype=torch.double)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_codes(n):
    return MEAN + torch.randn(n, 3, dtype=torch.double, generator=seeded()) @ FACTOR.T


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_a_gaussian_is_recovered_and_temperature_scales_its_covariance(temperature):
    density = fit_gaussian(gaussian_codes(40000).float())
    h = density.sample(40000, temperature=temperature, generator=seeded(1))
    torch.testing.assert_close(h.mean(0), MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close(h.T.cov(), temperature * FACTOR @ FACTOR.T, rtol=0, atol=0.08 * temperature)


def test_dead_units_stay_dead():
    h = gaussian_codes(500)
    h[:, 1] = 0
    for density in (fit_gaussian(h), fit_mixture(h, 2)):
        drawn = density.sample(100, generator=seeded())
        assert drawn.isfinite().all()
        assert drawn[:, 1].abs().max() < 1e-2


@pytest.mark.parametrize("unit", [1.0, 1e-5])
def test_a_mixture_finds_its_components_in_any_unit(unit):
    """Codes of a hundred-thousandth are as good: nothing absolute is added to their variances."""
    which = torch.rand(6000, generator=seeded()) < 0.25
    centre = torch.where(which[:, None], torch.tensor([8.0, 0.0]), torch.tensor([-4.0, 3.0]))
    spread = torch.where(which[:, None], 0.5, 2.0)
    h = unit * (centre + spread * torch.randn(6000, 2, generator=seeded(1)))
    density = fit_mixture(h, 2, seed=3)
    assert density.converged
    assert density.weights.min().item() == pytest.approx(0.25, abs=0.02)
    drawn = density.sample(6000, generator=seeded(2)) / unit
    near = (drawn - torch.tensor([8.0, 0.0])).norm(dim=1) < 3
    assert near.double().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(drawn[near].std(0), torch.tensor([0.5, 0.5]).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(drawn[~near].std(0), torch.tensor([2.0, 2.0]).double(), rtol=0, atol=0.1)


def test_draws_are_in_no_order():
    """The first draws are not all of the first component."""
    h = torch.cat([torch.full((50, 1), -5.0), torch.full((50, 1), 5.0)]) + torch.randn(100, 1, generator=seeded())
    drawn = fit_mixture(h, 2).sample(20, generator=seeded())
    assert len(drawn[:10].sign().unique()) == 2


def test_seeds_decide():
    for density in (fit_gaussian(gaussian_codes(200)), fit_mixture(gaussian_codes(200), 3, seed=2**40)):
        a, b, c = (density.sample(5, generator=seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(RequestError, match="at least 2"):
        fit_gaussian(gaussian_codes(1))
    with pytest.raises(RequestError, match="at least 7"):
        fit_mixture(gaussian_codes(6), 7)
    with pytest.raises(RequestError, match="not finite"):
        fit_gaussian(gaussian_codes(4) / 0)
    with pytest.raises(RequestError, match="mixture"):
        fit_mixture(gaussian_codes(50), 2).sample(3, temperature=0.5)


CODES = {
    "identity": partial(Dense),
    "relu": partial(Dense, activation="relu"),
    "sigmoid": partial(Dense, activation="sigmoid"),
    "tanh": partial(Dense, activation="tanh"),
    "l1": partial(L1, weight=0.1),
    "kl": partial(KL, target=0.1, weight=1.0),
    "lifetime": partial(Lifetime, share=0.1),
    "spike_slab": partial(SpikeSlab, share=0.2),
}


def test_a_drawn_topk_code_keeps_its_largest_units():
    fits, says = support(TopK(units=8, k=3))
    drawn = torch.randn(50, 8, generator=seeded())
    fitted = fits(drawn)
    assert "3 largest" in says
    assert ((fitted != 0).sum(1) == 3).all()
    torch.testing.assert_close(fitted.sum(1), drawn.topk(3).values.sum(1))


@pytest.mark.parametrize("name", CODES)
def test_what_was_drawn_becomes_what_could_be_a_code_and_codes_are_left_alone(name):
    code = CODES[name](units=8).eval()
    fits, says = support(code)
    h = code(2 * torch.randn(50, 8 * code.inputs, generator=seeded())).h
    assert torch.equal(fits(h), h)
    drawn = 2 * torch.randn(50, 8, generator=seeded(1))
    fitted = fits(drawn)
    assert torch.equal(fits(fitted), fitted)
    assert bool(says) == (not torch.equal(fitted, drawn))
    assert bool(says) == (name not in ("identity", "spike_slab"))
    if says:
        low = -1.0 if name == "tanh" else 0.0
        assert fitted.min() == low
        assert name in ("relu", "l1", "lifetime") or fitted.max() == 1
