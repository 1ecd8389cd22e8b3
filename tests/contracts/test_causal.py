"""T1, T2, T8: nothing sees the future, everything declared is seen, a cached step equals the whole forward pass."""

from __future__ import annotations

import pytest
import torch
import zoo

from genlab.core import from_steps, to_steps
from genlab.nets.causal.recompute import Recompute

SPECS = {"grey": zoo.GREY, "rgb": zoo.RGB}
EVERY_NET = pytest.mark.parametrize("case", zoo.nets(SPECS, zoo.CONTEXTS))


def features(made, case, n):
    """Context features of n images, for a bare net."""
    return None if made.context is None else made.context(case.given(n))


@pytest.mark.slow
@torch.no_grad()
@EVERY_NET
def test_features_never_depend_on_the_present_or_future(case):
    made = case.tiny()
    net, context = made.net, features(made, case, 2)
    x = zoo.random_images(case.spec, 2)
    steps = to_steps(x, net.step_channels)
    reference = net(x, context)
    noise = to_steps(zoo.random_images(case.spec, 2, seed=1), net.step_channels)
    for t in range(steps.shape[1]):
        changed = torch.cat([steps[:, :t], noise[:, t:]], 1)
        # One memory layout, hence the same kernels: equal to the bit.
        image = from_steps(changed, case.spec).clone(memory_format=torch.contiguous_format)
        assert torch.equal(net(image, context)[:, : t + 1], reference[:, : t + 1]), f"step {t} sees itself or later"


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", zoo.nets(SPECS))
def test_receptive_field_is_what_the_net_declares(case):
    """Change one pixel at a time: exactly the pixels that declare to see it change, over a few random nets."""
    height, width = case.spec.height, case.spec.width
    influence = torch.zeros(height * width, height * width, dtype=torch.bool)
    for seed in range(60 if case.model == "made" else 6):  # a ReLU may be off at one point, not at many
        net = case.tiny(seed=seed).net
        x = zoo.random_images(case.spec, 1, seed)
        changed = x.repeat(height * width, 1, 1, 1)
        for j in range(height * width):
            changed[j, :, j // width, j % width] = (x[0, :, j // width, j % width] + 1 + seed % 2) % case.spec.levels
        same = net(x.repeat(height * width, 1, 1, 1))  # one batch size, hence the same kernels: equal to the bit
        per_pixel = (net(changed) != same).view(height * width, height * width, -1)
        influence |= per_pixel.any(-1)
    declared = torch.stack([net.receptive_field(t // width, t % width).flatten() for t in range(height * width)])
    off_diagonal = ~torch.eye(height * width, dtype=torch.bool)  # a pixel's own earlier colours: tested above
    seen = influence.T
    assert torch.equal(seen & off_diagonal, declared & off_diagonal)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"),
    zoo.alternating(zoo.nets(SPECS, zoo.CONTEXTS), (torch.double, 1e-10), (torch.float, 2e-4)),
)
def test_cached_step_equals_forward_from_any_row(case, dtype, tolerance):
    # Weights that saturate an attention lose the digits of float32 in its scores: tamer ones there.
    made = case.tiny(dtype=dtype, scale=0.5 if dtype == torch.double else 0.3)
    net, context = made.net, features(made, case, 3)
    x = zoo.random_images(case.spec, 3)
    steps, full = to_steps(x, net.step_channels), net(x, context)
    for rows in range(case.spec.height):
        state, previous = net.start(3, x.device, (x, rows), context), None
        for t in range(rows * steps.shape[1] // case.spec.height, steps.shape[1]):
            h, state = net.step(previous, state)
            torch.testing.assert_close(h, full[:, t], rtol=tolerance, atol=tolerance)
            previous = steps[:, t]


@pytest.mark.slow
@torch.no_grad()
@EVERY_NET
def test_cached_step_equals_recomputed_step_after_reordering(case):
    made = case.tiny()
    net, context = made.net, features(made, case, 4)
    x = zoo.random_images(case.spec, 4)
    fast = net.start(4, x.device, None, context)
    slow = Recompute.start(net, 4, x.device, None, context)
    order, previous = torch.tensor([2, 0, 2, 3]), None
    steps = to_steps(x, net.step_channels)
    for t in range(steps.shape[1]):
        a, fast = net.step(previous, fast)
        b, slow = Recompute.step(net, previous, slow)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        if t % 7 == 3:  # as resampled particles do: also the pending value moves
            fast.reorder(order)
            slow.reorder(order)
            steps = steps[order]
        previous = steps[:, t]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", zoo.nets_and_heads(SPECS))
def test_same_noise_gives_the_same_image_cached_and_recomputed(case):
    made = case.tiny()
    fast = made.sample(5, generator=torch.Generator().manual_seed(3))
    made.net.start = lambda *a: Recompute.start(made.net, *a)
    made.net.step = lambda *a: Recompute.step(made.net, *a)
    made.net.rows_alike = False
    assert torch.equal(fast, made.sample(5, generator=torch.Generator().manual_seed(3)))
