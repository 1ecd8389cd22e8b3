"""T1, T2, T8: nothing sees the future, everything declared is seen, a cached step equals the whole forward pass."""

from __future__ import annotations

import pytest
import torch
import zoo

from genlab.core import from_steps, to_steps
from genlab.nets.recompute import Recompute

CASES = [pytest.param(m, h, s, id=i) for i, m, h, s in zoo.cases(zoo.SPECS)]


@torch.no_grad()
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_features_never_depend_on_the_present_or_future(model, head, spec):
    net = zoo.tiny(model, head, spec).net
    x = zoo.random_images(spec, 2)
    steps = to_steps(x, net.step_channels)
    reference = net(x)
    noise = to_steps(zoo.random_images(spec, 2, seed=1), net.step_channels)
    for t in range(steps.shape[1]):
        changed = torch.cat([steps[:, :t], noise[:, t:]], 1)
        # One memory layout, hence the same kernels: equal to the bit.
        image = from_steps(changed, spec).clone(memory_format=torch.contiguous_format)
        assert torch.equal(net(image)[:, : t + 1], reference[:, : t + 1]), f"step {t} sees itself or later ones"


@torch.no_grad()
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_receptive_field_is_what_the_net_declares(model, head, spec):
    """Change one pixel at a time: exactly the pixels that declare to see it change, over a few random nets."""
    height, width = spec.height, spec.width
    influence = torch.zeros(height * width, height * width, dtype=torch.bool)
    for seed in range(6):  # a ReLU may be off at one point, not at many
        net = zoo.tiny(model, head, spec, seed=seed).net
        x = zoo.random_images(spec, 1, seed)
        changed = x.repeat(height * width, 1, 1, 1)
        for j in range(height * width):
            changed[j, :, j // width, j % width] = (x[0, :, j // width, j % width] + 1 + seed % 2) % spec.levels
        per_pixel = (net(changed) != net(x)).view(height * width, height * width, -1)
        influence |= per_pixel.any(-1)
    declared = torch.stack([net.receptive_field(t // width, t % width).flatten() for t in range(height * width)])
    off_diagonal = ~torch.eye(height * width, dtype=torch.bool)  # a pixel's own earlier colours: tested above
    seen = influence.T
    assert torch.equal(seen & off_diagonal, declared & off_diagonal)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-10), (torch.float, 2e-4)])
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_cached_step_equals_forward_from_any_row(model, head, spec, dtype, tolerance):
    net = zoo.tiny(model, head, spec, dtype=dtype).net
    x = zoo.random_images(spec, 3)
    steps, full = to_steps(x, net.step_channels), net(x)
    for rows in range(spec.height):
        state, previous = net.start(3, x.device, (x, rows)), None
        for t in range(rows * steps.shape[1] // spec.height, steps.shape[1]):
            h, state = net.step(previous, state)
            torch.testing.assert_close(h, full[:, t], rtol=tolerance, atol=tolerance)
            previous = steps[:, t]


@torch.no_grad()
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_cached_step_equals_recomputed_step_after_reordering(model, head, spec):
    net = zoo.tiny(model, head, spec).net
    x = zoo.random_images(spec, 4)
    fast, slow = net.start(4, x.device), Recompute.start(net, 4, x.device)
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


@torch.no_grad()
@pytest.mark.parametrize(("model", "head", "spec"), CASES)
def test_same_noise_gives_the_same_image_cached_and_recomputed(model, head, spec):
    made = zoo.tiny(model, head, spec)
    fast = made.sample(5, generator=torch.Generator().manual_seed(3))
    made.net.start = lambda *a: Recompute.start(made.net, *a)
    made.net.step = lambda *a: Recompute.step(made.net, *a)
    made.net.rows_alike = False
    assert torch.equal(fast, made.sample(5, generator=torch.Generator().manual_seed(3)))
