"""Gated PixelCNN: no blind spot, nothing flows from the row so far to the rows above, gates of their own colour."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genlab.core import ImageSpec, RequestError, to_steps
from genlab.heads import Categorical
from genlab.models import Autoregressive
from genlab.nets import GatedPixelCNN
from genlab.nets.causal.gated_pixelcnn import gate
from genlab.nets.causal.recompute import Recompute

DILATED = [1, 2, 1, 4]


def past(spec, row, column):
    """All pixels before one in raster order, (H, W) bool."""
    return (torch.arange(spec.height * spec.width) < row * spec.width + column).view(spec.height, spec.width)


@pytest.mark.parametrize(("depth", "kernel", "dilations"), [(16, 3, None), (9, 3, DILATED), (8, 5, None)])
def test_a_deep_enough_net_sees_the_whole_past(depth, kernel, dilations):
    spec = ImageSpec(1, 12, 16, 2)
    net = GatedPixelCNN(spec=spec, width=2, depth=depth, kernel=kernel, dilations=dilations)
    for row, column in [(0, 0), (0, 15), (5, 0), (8, 4), (11, 15)]:
        assert torch.equal(net.receptive_field(row, column), past(spec, row, column))


def test_a_shallow_net_sees_a_box_without_a_wedge():
    net = GatedPixelCNN(spec=ImageSpec(1, 12, 16, 2), width=2, depth=3)
    seen = net.receptive_field(8, 6)
    box = torch.zeros(12, 16, dtype=torch.bool)
    box[8, 3:6] = True  # three to the left
    box[7, 3:10] = True  # three to the right already in the nearest row: the corner that the PixelCNN misses
    assert torch.equal(seen[7:], box[7:])
    assert not seen[:4].any()


@torch.no_grad()
@pytest.mark.parametrize("dilations", [None, [2, 1]])
def test_the_vertical_stack_never_sees_the_row_it_serves(dilations):
    spec = ImageSpec(2, 5, 6, 9)
    net = GatedPixelCNN(spec=spec, width=6, depth=4, dilations=dilations).double()
    stacks = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, __, out: stacks.append(out[0]))
    x = torch.randint(9, (1, *spec.shape))
    net(x)
    for row in range(5):
        changed, before = x.clone(), list(stacks)
        changed[:, :, row] = (changed[:, :, row] + 1) % 9
        stacks.clear()
        net(changed)
        assert all(torch.equal(a[:, :, : row + 1], b[:, :, : row + 1]) for a, b in zip(before, stacks, strict=True))
        stacks[:] = before


@torch.no_grad()
@pytest.mark.parametrize("width", [6, 7, 8, 11])
@pytest.mark.parametrize("dilations", [None, [2, 1]])
def test_values_and_gates_of_any_width_keep_to_their_colour(width, dilations):
    """Features of a colour see earlier colours of their pixel, never their own or later ones."""
    spec = ImageSpec(3, 3, 4, 5)
    seen = torch.zeros(3, 3, dtype=torch.bool)
    for seed in range(8):
        torch.manual_seed(seed)
        net = GatedPixelCNN(spec=spec, width=width, depth=2, dilations=dilations, feature_width=5).double()
        for p in net.parameters():
            p.normal_(0, 0.5)
        x = torch.randint(5, (1, 3, 3, 4))
        for c in range(3):
            changed = x.clone()
            changed[:, c, 1, 1] = (x[:, c, 1, 1] + 1) % 5
            seen[:, c] |= (net(changed) != net(x)).view(3, 4, 3, -1)[1, 1].any(-1)
    assert torch.equal(seen, torch.ones(3, 3).tril(-1).bool())


def test_the_gate_is_that_of_the_paper_in_other_units():
    a = torch.randn(2, 6, 3, 4, dtype=torch.double, requires_grad=True)
    value, opening = a.chunk(2, 1)
    torch.testing.assert_close(gate(a), 2 * value.tanh() * (2 * opening).sigmoid())
    assert torch.autograd.gradcheck(gate, a)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (2, 6, 1), (3, 2, 3), (1, 9, 5)])
@pytest.mark.parametrize(("kernel", "dilations"), [(3, [4, 1]), (5, [1, 3]), (7, None)])
@pytest.mark.parametrize("chained", [False, True])
def test_cache_with_wide_kernels_on_narrow_images(shape, kernel, dilations, chained):
    torch.manual_seed(0)
    spec = ImageSpec(*shape, levels=5)
    net = GatedPixelCNN(
        spec=spec, width=7, depth=3, kernel=kernel, dilations=dilations, feature_width=4, chained=chained
    ).double()
    for p in net.parameters():
        p.normal_(0, 0.5)
    x = torch.randint(5, (2, *shape))
    steps, full = to_steps(x, net.step_channels), net(x)
    for rows in range(spec.height):
        state, previous = net.start(2, x.device, (x, rows)), None
        for t in range(rows * steps.shape[1] // spec.height, steps.shape[1]):
            h, state = net.step(previous, state)
            torch.testing.assert_close(h, full[:, t], rtol=1e-10, atol=1e-10)
            previous = steps[:, t]


def test_signals_and_gradients_pass_twenty_layers():
    torch.manual_seed(0)
    net = GatedPixelCNN(spec=ImageSpec(1, 16, 16), width=32, depth=20)
    stacks = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, __, out: stacks.append(out))
    net(torch.randint(256, (2, 1, 16, 16))).square().sum().backward()
    assert all(0.05 < part.std() < 3 for out in stacks for part in out)
    weight = {name: p.grad.norm() for name, p in net.named_parameters() if name.endswith("vertical.weight")}
    assert min(weight.values()) > 1e-3 * max(weight.values())


@pytest.mark.parametrize(
    "bad", [{"width": 2}, {"depth": 0}, {"kernel": 4}, {"kernel": 1}, {"feature_width": 0}, {"dilations": [1, 0]}]
)
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(RequestError, match="gated_pixelcnn needs"):
        GatedPixelCNN(spec=ImageSpec(3, 4, 4), **bad)


@pytest.mark.gpu
@torch.no_grad()
def test_captured_rows_equal_eager_rows_on_a_gpu():
    net = partial(GatedPixelCNN, width=24, depth=4, dilations=DILATED)
    model = Autoregressive(ImageSpec(3, 6, 5, 8), net=net, head=Categorical)
    for p in model.parameters():
        p.normal_(0, 0.3)
    model = model.double().cuda()
    captured = model.sample(7, generator=torch.Generator().manual_seed(0))
    model.net.rows_alike = False
    eager = model.sample(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(captured, eager)
    model.net.step = partial(Recompute.step, model.net)
    model.net.start = partial(Recompute.start, model.net)
    assert torch.equal(captured, model.sample(7, generator=torch.Generator().manual_seed(0)))
