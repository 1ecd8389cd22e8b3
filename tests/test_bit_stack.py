"""The stack of bits, and the maps of integers that use it: popping undoes pushing, and both cost what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genlab.coding.bit_stack import BitStack, Corrupt
from genlab.coding.integer_flow import Curve, Scale

WORDS = 2_000


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=50))
def test_uniform_numbers_lie_below_their_size_and_are_undone(sizes):
    stack, sizes = BitStack(WORDS), np.array(sizes)
    values = stack.pop_uniform(sizes)
    assert (values >= 0).all()
    assert (values < sizes).all()
    stack.push_uniform(values, sizes)
    stack.check_restored()


@pytest.mark.parametrize("size", [2, 3, 2**12, 2**12 + 1, 64_645, 10**6, 3 * 10**9, 2**40 - 1])
def test_a_uniform_number_costs_the_logarithm_of_its_size(size):
    stack = BitStack(10 * WORDS)
    before = stack.bits
    for _ in range(10):
        stack.pop_uniform(np.full(1_000, size))
    assert (before - stack.bits) / 10_000 == pytest.approx(np.log2(size), abs=0.01)


def test_words_that_were_never_reached_are_not_stored():
    stack = BitStack(WORDS)
    values = stack.pop_uniform(np.full(100, 2**10))
    assert len(stack.stored()) < 16
    again = BitStack(WORDS, stack.stored())
    again.push_uniform(values, np.full(100, 2**10))
    again.check_restored()


@pytest.mark.parametrize("stored", [b"", b"abc", b"\xff\xff\xff\xff"])
def test_what_is_no_stack_is_refused(stored):
    with pytest.raises(Corrupt):
        BitStack(WORDS, stored)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**30), 2**30), st.floats(1e-3, 1e3)), min_size=1, max_size=20))
def test_scaling_is_inverted_and_scales(pairs):
    stack = BitStack(WORDS)
    k, slope = np.array([k for k, _ in pairs]), np.array([s for _, s in pairs])
    scaled = Scale(slope).forward(k, stack)
    exact = Scale(slope).top / 2.0 ** Scale(slope).bits
    assert exact == pytest.approx(slope, rel=2**-10)
    assert np.abs(scaled - k * exact).max() <= exact.max() + 1
    assert (Scale(slope).inverse(scaled, stack) == k).all()
    stack.check_restored()


@pytest.mark.parametrize("slope", [0.01, 0.7, 1.0, 20.0])
def test_scaling_costs_the_logarithm_of_the_slope(slope):
    stack = BitStack(WORDS)
    before = stack.bits
    Scale(np.full(1_000, slope)).forward(np.arange(1_000), stack)
    assert (before - stack.bits) / 1_000 == pytest.approx(np.log2(slope), abs=0.05)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20), st.integers(-50, 50))
def test_a_curve_is_inverted_however_poor_the_guess(k, off):
    def function(grid):
        return 2.0**20 * np.tanh(grid / 2**10) + 2.0 * grid

    stack, k = BitStack(WORDS), np.array(k)
    curve = Curve(function, lambda z: np.floor(z / 3e3) + off, 6)
    z = curve.forward(k, stack)
    order = np.argsort(k, kind="stable")
    assert (np.diff(z[order])[np.diff(k[order]) > 0] >= 0).all()
    assert (curve.inverse(z, stack) == k).all()
    stack.check_restored()


@pytest.mark.parametrize("std", [20.0, 300.0, 4000.0, 2.0**26])
def test_a_normal_number_is_undone_and_has_the_deviation_and_the_cost_that_it_should(std):
    """Also where a deviation has many values: no mass leaks into the tails."""
    stack, n = BitStack(200 * WORDS), 20_000
    before, mean = stack.bits, np.full(n, 3.7)
    values = stack.pop_normal(mean, np.full(n, std), 8)
    assert values.std() == pytest.approx(np.hypot(std, 12**-0.5), rel=0.03)
    assert values.mean() == pytest.approx(3.7, abs=0.03 * std)
    assert (before - stack.bits) / n == pytest.approx(np.log2(std * np.sqrt(2 * np.pi * np.e)), abs=0.03)
    stack.push_normal(values, mean, np.full(n, std), 8)
    stack.check_restored()


def test_a_number_beyond_the_reach_is_refused():
    with pytest.raises(OverflowError):
        BitStack(WORDS).push_normal(np.array([10**6]), np.zeros(1), np.ones(1), 8)
