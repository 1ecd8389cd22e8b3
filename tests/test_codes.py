"""Codes have the sparsity, the rule and the penalty that they state (oracle T20)."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch.distributions import Bernoulli, Normal, kl_divergence

from genlab.codes import KL, L1, L2, Dense, Lifetime, SpikeSlab, TopK
from genlab.codes.penalised import bernoulli_kl
from genlab.codes.spike_slab import kl
from genlab.core import RequestError


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("name", zoo.choices("model/code"))
def test_every_code_says_what_it_is(name):
    code = zoo.part(zoo.Coding("sparse_ae", zoo.GREY, code=name).config()["code"], units=6).double()
    for training in (True, False):
        h, penalty, _ = code.train(training)(numbers(5, 6 * code.inputs))
        assert h.shape == (5, 6)
        assert penalty.shape == (5,)
        assert (penalty >= 0).all()
    assert 0 <= code.threshold < 1
    assert set(code.targets) <= {"active", "mean_activation"}


def test_dense_is_the_activation_for_nothing():
    a = numbers(4, 3)
    for name, function in {"identity": lambda t: t, "relu": torch.relu, "tanh": torch.tanh}.items():
        h, penalty, _ = Dense(units=3, activation=name)(a)
        assert torch.equal(h, function(a))
        assert not penalty.any()
    assert Dense(units=3, activation="sigmoid").threshold == 0.5


def test_l1_and_l2_by_hand():
    a = torch.tensor([[1.0, -2.0, 0.5], [-1.0, -1.0, -1.0]])
    for code, penalty in ((L1(units=3, weight=0.1), 0.1 * 1.5), (L2(units=3, weight=0.1), 0.1 * 1.25)):
        coded = code(a)
        assert torch.equal(coded.h, a.relu())
        torch.testing.assert_close(coded.penalty, torch.tensor([penalty, 0.0]))
        assert code.unit_columns


# ---- units that compete


@pytest.mark.parametrize("k", [1, 3, 10])
def test_topk_keeps_exactly_the_k_largest_of_every_image(k):
    a = numbers(50, 10)
    code = TopK(units=10, k=k)
    for training in (True, False):
        h = code.train(training)(a).h
        assert ((h != 0).sum(1) == k).all()
        kept = h != 0
        assert torch.equal(h[kept], a[kept])
        assert (a.masked_fill(~kept, math.inf).amin(1) >= a.masked_fill(kept, -math.inf).amax(1)).all()
    assert code.targets == {"active": k / 10}


@pytest.mark.parametrize(("share", "batch"), [(0.05, 100), (0.05, 30), (0.07, 100), (0.29, 100), (0.01, 10), (1.0, 7)])
def test_lifetime_keeps_exactly_the_share_of_a_batch_for_every_unit_and_is_a_relu_after(share, batch):
    a = numbers(batch, 8)
    code = Lifetime(units=8, share=share)
    h = code(a).h
    count = {(0.05, 30): 2, (0.01, 10): 1}.get((share, batch), round(share * batch))  # rounded up
    kept = h != 0
    assert (kept.sum(0) == count).all()
    assert torch.equal(h[kept], a[kept])
    assert (a.masked_fill(~kept, math.inf).amin(0) >= a.masked_fill(kept, -math.inf).amax(0)).all()
    assert torch.equal(code.eval()(a).h, a.relu())


def test_only_winners_get_a_gradient():
    for code in (TopK(units=6, k=2), Lifetime(units=6, share=0.2)):
        a = numbers(20, 6).requires_grad_()
        h = code(a).h
        h.sum().backward()
        assert torch.equal(a.grad != 0, h != 0)


# ---- KL of activations


def test_kl_of_bernoullis_is_zero_where_they_are_equal_and_positive_elsewhere():
    rate = torch.linspace(0.01, 0.99, 99, dtype=torch.double)
    for target in (0.05, 0.3, 0.5):
        divergence = bernoulli_kl(target, rate)
        equal = (rate - target).abs() < 1e-12
        assert equal.sum() == 1
        assert divergence[equal].abs().max() < 1e-12
        assert divergence[~equal].min() > 1e-5
        expected = kl_divergence(Bernoulli(torch.tensor(target, dtype=torch.double)), Bernoulli(rate))
        torch.testing.assert_close(divergence, expected)
    extreme = torch.tensor([0.0, 1.0], requires_grad=True)
    divergence = bernoulli_kl(0.05, extreme)
    assert divergence.isfinite().all()
    divergence.sum().backward()
    assert extreme.grad.isfinite().all()


def test_kl_follows_a_running_mean_with_the_gradient_of_the_batch():
    code = KL(units=4, target=0.1, weight=3.0, momentum=0.75).double()
    torch.testing.assert_close(code.running, torch.full((4,), 0.1, dtype=torch.double))
    a, b = numbers(20, 4), numbers(20, 4, seed=1).requires_grad_()
    code(a.clone().requires_grad_())
    running = 0.75 * 0.1 + 0.25 * a.sigmoid().mean(0)
    torch.testing.assert_close(code.running, running)
    penalty = code(b).penalty
    running = 0.75 * running + 0.25 * b.detach().sigmoid().mean(0)
    torch.testing.assert_close(code.running, running)
    torch.testing.assert_close(penalty, 3 * bernoulli_kl(0.1, running).sum().expand(20))
    penalty.mean().backward()
    rate = running.clone().requires_grad_()
    (slope,) = torch.autograd.grad(3 * bernoulli_kl(0.1, rate).sum(), rate)
    s = b.detach().sigmoid()
    torch.testing.assert_close(b.grad, slope * s * (1 - s) / 20)


def test_kl_without_momentum_is_that_of_the_batch_and_looks_do_not_move_the_mean():
    code = KL(units=4, target=0.1, weight=1.0, momentum=0.0).double()
    a = numbers(20, 4)
    with torch.no_grad():
        code(a)
    code.eval()(a)
    torch.testing.assert_close(code.running, torch.full((4,), 0.1, dtype=torch.double))
    coded = code.train()(a)
    torch.testing.assert_close(coded.penalty[0], bernoulli_kl(0.1, a.sigmoid().mean(0)).sum())
    torch.testing.assert_close(code.eval()(a[:1]).penalty, coded.penalty[:1])


def test_a_kl_code_reaches_its_target():
    """Without anything to reconstruct, the penalty alone brings the mean activation to the target."""
    torch.manual_seed(0)
    code, layer = KL(units=5, target=0.2, weight=1.0), torch.nn.Linear(3, 5)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(250):
        optimiser.zero_grad()
        code(layer(torch.randn(64, 3))).penalty.mean().backward()
        optimiser.step()
    mean = code.eval()(layer(torch.randn(2000, 3))).h.mean(0)
    assert (mean - 0.2).abs().max() < 0.05


# ---- spike and slab


@pytest.mark.parametrize("logit", [-2.0, 0.3, 4.0])
def test_spike_and_slab_kl_is_the_mean_of_the_log_ratio(logit):
    """By 400,000 draws; both densities are those of an atom at 0 beside a Gaussian."""
    torch.manual_seed(0)
    mean, log_var, share = torch.tensor(0.7), torch.tensor(-1.0), 0.1
    gate = torch.tensor(logit).sigmoid()
    slab, prior = Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)
    on = torch.rand(400_000) < gate
    z = slab.sample((400_000,))
    ratio = torch.where(
        on,
        gate.log() + slab.log_prob(z) - math.log(share) - prior.log_prob(z),
        (1 - gate).log() - math.log(1 - share),
    )
    error = ratio.std() / math.sqrt(len(ratio))
    assert (kl(mean, log_var, torch.tensor(logit), share) - ratio.mean()).abs() < 4 * error


def test_spike_and_slab_says_how_many_of_its_relaxed_gates_are_on():
    code = SpikeSlab(units=4, share=0.1)
    logit = torch.tensor([[-2.0, 0.0, 0.5, 3.0], [-1.0, -1.0, -1.0, -1.0]])
    a = torch.cat([torch.ones(2, 8), logit], 1)
    coded = code.train()(a)
    assert torch.equal(coded.active, logit.sigmoid().mean(1))
    assert (coded.h != 0).all()
    assert code.eval()(a).active is None


def test_spike_and_slab_kl_is_zero_at_the_prior_alone_and_finite_for_gates_rounded_to_0_or_1():
    share = 0.1
    at_prior = math.log(share / (1 - share))
    zero = torch.zeros((), dtype=torch.double)
    assert kl(zero, zero, zero + at_prior, share).abs() < 1e-12
    for other in ((zero + 0.1, zero, zero + at_prior), (zero, zero + 0.1, zero + at_prior), (zero, zero, zero)):
        assert kl(*other, share) > 1e-5
    logit = torch.tensor([-200.0, -30.0, 30.0, 200.0], requires_grad=True)
    divergence = kl(torch.zeros(4), torch.zeros(4), logit, share)
    torch.testing.assert_close(divergence.detach(), -torch.tensor([0.9, 0.9, 0.1, 0.1]).log())
    divergence.sum().backward()
    assert logit.grad.isfinite().all()


def test_gates_are_relaxed_in_training_and_exact_after():
    code = SpikeSlab(units=4, share=0.2)
    mean, log_var, logit = torch.ones(2000, 4), torch.full((2000, 4), -8.0), torch.tensor([-3.0, -0.1, 0.1, 3.0])
    a = torch.cat([mean, log_var, logit.expand(2000, 4)], 1).requires_grad_()
    torch.manual_seed(0)
    h, penalty, _ = code(a)
    gate = h.detach()
    assert ((gate > 0.02) & (gate < 0.98)).any()
    # A binary concrete gate is above 1/2 with the probability of the gate it relaxes.
    torch.testing.assert_close((gate > 0.5).float().mean(0), logit.sigmoid(), rtol=0, atol=0.04)
    (h.sum() + penalty.sum()).backward()
    assert a.grad.isfinite().all()
    assert (a.grad != 0).all()
    after = code.eval()(a).h
    assert torch.equal(after, torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(2000, 4))
    assert torch.equal(after, code(a).h)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TopK(units=3, k=4), "k between 1 and its 3 units"),
        (lambda: Lifetime(units=3, share=0.0), "0 < share <= 1"),
        (lambda: KL(units=3, target=1.0, weight=1.0), "0 < target < 1"),
        (lambda: L1(units=3, weight=-1.0), "0 or more"),
        (lambda: SpikeSlab(units=3, share=1.0), "0 < share < 1"),
        (lambda: Dense(units=3, activation="gelu"), "choose from identity, relu"),
    ],
)
def test_codes_that_make_no_sense_are_refused(make, sentence):
    with pytest.raises(RequestError, match=sentence):
        make()
